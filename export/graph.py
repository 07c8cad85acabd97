"""The loss, the policy or the critic as a module over plain tensors: what is traced into a graph.

The mathematics is `eager.terms` and `penalty.adaptive`, the text that every backend runs; here are
only names. Beta and the coefficients are inputs, so that nothing folds them into the graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor, nn

from klppo_compile import eager, packing, penalty
from klppo_compile.coefficients import BETA_NUMBERS, COEFFICIENTS
from klppo_compile.inputs import read_minibatch
from klppo_compile.loss import KLPENPPOLoss
from klppo_compile.policy import ActorHead, run_actor
from klppo_compile.records import Minibatch

Key = str | tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One array of the rollout that a graph reads.

    Attributes:
        name: of the graph's input.
        key: in the tensordict.
        role: one of `validation.ROLES`.
    """

    name: str
    key: Key
    role: str


def joined(key: Any) -> str:
    """A nested key as one word, "agents.observation"."""
    return ".".join(key) if isinstance(key, tuple) else str(key)


class Graph(nn.Module):
    """A module from entries of a rollout, and scalars, to a tuple of named outputs."""

    kind: str

    def __init__(self, loss: KLPENPPOLoss, entries: tuple[Entry, ...], batch_dims: int) -> None:
        super().__init__()
        self.loss = loss
        self.entries = entries
        self.batch_dims = batch_dims
        self.names: tuple[str, ...] = ()
        """Of the outputs; set by a run."""

    def scalars(self) -> dict[str, Tensor]:
        """The optional inputs, `[]` float32 each, and their current values."""
        return {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The named outputs of entries and scalars, in their orders."""
        entries = {e.key: x for e, x in zip(self.entries, tensors, strict=False)}
        numbers = dict(zip(self.scalars(), tensors[len(self.entries) :], strict=True))
        shape = tensors[0].shape[: self.batch_dims]
        # TensorDict takes nested keys apart by itself.
        rollout = TensorDict({}, batch_size=shape)
        for key, x in entries.items():
            rollout.set(key, x)
        with set_interaction_type(InteractionType.DETERMINISTIC), self.loss.recurrent():
            outputs = self.outputs(rollout, numbers)
        self.names = tuple(outputs)
        # An output that is an input would lose one of its two names.
        return tuple(x.clone() for x in outputs.values())

    def outputs(self, rollout: TensorDict, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name."""
        raise NotImplementedError


class LossGraph(Graph):
    """The loss's forward, its rows, the new policy's head, and the next beta."""

    kind = "loss"

    def __init__(self, loss: KLPENPPOLoss, entries: tuple[Entry, ...], batch_dims: int) -> None:
        super().__init__(loss, entries, batch_dims)
        self.recorder = RecordingHead(loss)
        loss.actor_head = self.recorder

    def scalars(self) -> dict[str, Tensor]:
        """Beta, the coefficients that the loss has, and what moves beta."""
        loss = self.loss
        used = [name for name in COEFFICIENTS if getattr(loss, name) is not None]
        if not loss.entropy_bonus:
            used.remove("entropy_coeff")
        if not loss.has_critic:
            used = [name for name in used if name not in ("critic_coeff", "clip_value")]
        return {name: getattr(loss, name) for name in ("beta", *used, *BETA_NUMBERS)}

    def outputs(self, rollout: TensorDict, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Torch's names, then the rows, the head and the next beta."""
        loss = self.loss
        batch, _ = read_minibatch(loss, rollout)
        batch = in_float32(batch)
        if loss.normalize_advantage:
            batch = _single_row_as_it_is(batch, rollout.get(loss.tensor_keys.advantage))
        static, hyper = self._static(batch), self._hyper(batch, numbers)
        found, heads = eager.terms(batch, hyper, static)
        rows = {}
        if loss.entropy_bonus:
            each = [head.entropy.sum(-1) for head in heads]
            rows["entropy_rows"] = torch.stack(each).sum(0)
        if batch.value is not None:
            plain = hyper._replace(critic_coeff=torch.ones(()))
            each_row = eager.critic_terms(batch, plain, eager.Static("none", *_tail(static)))
            rows["critic_rows"] = each_row["loss_critic"]
            rows["value"] = batch.value
        if batch.mask is not None:
            rows["valid"] = batch.mask
        if batch.value_mask is not None and batch.value is not None:
            rows["value_valid"] = batch.value_mask
        found["kl"] = found["kl"].unsqueeze(-1)
        valid = eager.count(batch.mask, found["log_prob"])
        moves = [numbers[name] for name in BETA_NUMBERS]
        at_least = torch.as_tensor(valid) if batch.mask is not None else torch.ones(())
        beta_next = penalty.adaptive(numbers["beta"], found["mean_kl"], at_least, *moves)
        head = self.recorder.last
        _refuse_collisions(found, rows, head)
        return {**found, **rows, **head, "beta_next": beta_next}

    def _static(self, batch: Minibatch) -> eager.Static:
        loss, critic = self.loss, batch.value is not None
        return eager.Static(
            reduction=loss.reduction,
            loss_critic_type=loss.loss_critic_type,
            clipped=loss.clip_value is not None and critic,
            entropy_bonus=loss.entropy_bonus,
            centred_entropy=True,
            explained_variance=loss.log_explained_variance and critic,
        )

    def _hyper(self, batch: Minibatch, numbers: Mapping[str, Tensor]) -> eager.Hyper:
        absent = torch.full((), torch.inf)
        cap = numbers.get("max_importance_ratio")
        zero = torch.zeros(())
        return eager.Hyper(
            beta=numbers["beta"],
            critic_coeff=numbers.get("critic_coeff", zero),
            clip_value=numbers.get("clip_value", absent),
            log_cap=absent if cap is None else cap.log(),
            entropy_coeff=(numbers.get("entropy_coeff", zero),) * len(batch.policy),
        )


class PolicyGraph(Graph):
    """Observations to the head's parameters and the most likely action."""

    kind = "policy"

    def outputs(self, rollout: TensorDict, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002  one signature
        """The head, and `action`."""
        loss = self.loss
        work = rollout.copy()
        with loss.with_parameters("actor_network"):
            after = loss.actor_network(work)
        head = {joined(k): after.get(k) for k in head_keys(loss)}
        actions = loss.tensor_keys.action
        for key in actions if isinstance(actions, list) else [actions]:
            head[joined(key)] = after.get(key)
        return {
            name: x.float() if x.dtype == torch.float16 else x
            for name, x in head.items()
            if x is not None
        }


class CriticGraph(Graph):
    """Observations to the value."""

    kind = "critic"

    def outputs(self, rollout: TensorDict, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002  one signature
        """The value, by its key."""
        loss, key = self.loss, self.loss.tensor_keys.value
        work: TensorDictBase = rollout.copy()
        if _reads_the_actor(loss):
            with loss.with_parameters("actor_network"):
                work = run_actor(loss.actor_network, work)
        return {joined(key): loss.run_critic(work).get(key).float()}


GRAPHS: dict[str, type[Graph]] = {g.kind: g for g in (LossGraph, PolicyGraph, CriticGraph)}


def in_float32(batch: Minibatch) -> Minibatch:
    """The minibatch as the loss computes with it: detached, in float32."""
    layout = tuple((head.family, len(head.old)) for head in batch.policy)
    return packing.unflatten(layout, packing.flatten(batch), torch.float32)


def head_keys(loss: KLPENPPOLoss) -> list[Key]:
    """The parameters that the actor computes; the distribution may take others from the data."""
    written = written_keys(loss)
    return [key for key in loss.actor_head.in_keys if joined(key) in written]


def written_keys(loss: KLPENPPOLoss) -> set[str]:
    """What the actor writes, as words."""
    actor: Any = loss.actor_network
    return {joined(key) for key in actor.out_keys}


def in_keys_of(network: Any) -> list[Any]:
    """What a network reads; nothing where there is none."""
    return [] if network is None else list(network.in_keys)


class RecordingHead(ActorHead):
    """A loss's head that remembers which parameters it gave last: those of the new policy."""

    def __init__(self, loss: KLPENPPOLoss) -> None:
        self.__dict__.update(vars(loss.actor_head))
        self.written = head_keys(loss)
        self.last: dict[str, Tensor] = {}

    def parameters(self, tensordict: TensorDictBase) -> dict[str, Tensor | None]:
        """The parameters, remembered in float32 by the names of the outputs."""
        found = super().parameters(tensordict)
        by_key = {joined(key): found[n] for n, key in zip(self.names, self.in_keys, strict=True)}
        computed = {joined(key): by_key[joined(key)] for key in self.written}
        self.last = {name: x.float() for name, x in computed.items() if x is not None}
        return found


def _single_row_as_it_is(batch: Minibatch, advantage: Tensor) -> Minibatch:
    """One advantage alone is not standardised; a traced graph can't ask how many there are."""
    single = torch.ones_like(advantage).sum() < 2
    value = torch.where(single, advantage.max().to(batch.advantage.dtype), batch.advantage)
    return Minibatch(**{**vars(batch), "advantage": value})


def entries_of(loss: KLPENPPOLoss, kind: str, example: TensorDictBase) -> tuple[Entry, ...]:
    """What a graph reads of a rollout: observations first, then what the loss needs."""
    keys, written = loss.tensor_keys, written_keys(loss)
    critic = in_keys_of(loss.critic_network)
    theirs = [key for key in critic if joined(key) not in written]
    reads_actor = kind != "critic" or len(theirs) < len(critic)
    seen = (in_keys_of(loss.actor_network) if reads_actor else []) + (
        theirs if kind == "critic" or (kind == "loss" and loss.has_critic) else []
    )
    found = [(joined(key), key, "observation") for key in seen]
    if kind == "loss":
        found += [(joined(keys.action), keys.action, "action")]
        found += [(joined(keys.sample_log_prob), keys.sample_log_prob, "log_prob")]
        if not loss.delay_actor:
            found += [(f"old_{joined(key)}", key, "old_head") for key in head_keys(loss)]
        found += [(joined(keys.advantage), keys.advantage, "advantage")]
        if loss.has_critic:
            found += [(joined(keys.value_target), keys.value_target, "value_target")]
            if loss.clip_value is not None:
                found += [(joined(keys.value), keys.value, "state_value")]
        given = [key for key in loss.mask_keys() if example.get(key, None) is not None]
        found += [(joined(key), key, "mask") for key in given]
    once = {joined(key): Entry(name, key, role) for name, key, role in reversed(found)}
    return tuple(reversed(once.values()))


def _tail(static: eager.Static) -> tuple[Any, ...]:
    return (static.loss_critic_type, static.clipped, static.entropy_bonus, False)


def _reads_the_actor(loss: KLPENPPOLoss) -> bool:
    written = written_keys(loss)
    return any(joined(key) in written for key in in_keys_of(loss.critic_network))


def _refuse_collisions(*groups: Mapping[str, Tensor]) -> None:
    names = [name for group in groups for name in group]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"The actor writes {', '.join(map(repr, twice))}, which is the name of an output of the"
            " loss. Rename the actor's key."
        )
