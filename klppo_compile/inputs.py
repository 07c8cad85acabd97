"""From a tensordict to a `Minibatch`: reading, checks, one run of actor and critic each."""

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch import distributions as td

from klppo_compile import checks, eager
from klppo_compile.advantage import standardise
from klppo_compile.masks import joint_mask, over_rows, reaching, where_counting
from klppo_compile.networks import BY_GAE
from klppo_compile.policy import head_of, require_quadrature, run_actor
from klppo_compile.records import Minibatch, PolicyHead
from klppo_compile.shapes import Found, Head, complaints, mismatch, rows_of, stretched

if TYPE_CHECKING:
    from klppo_compile.loss import KLPENPPOLoss

REAL = {"log_prob", "advantage", "target", "old_value"}
REAL |= {f"old_{parameter}" for parameter in ("logits", "probs", "loc", "scale")}


def read_minibatch(
    loss: "KLPENPPOLoss", tensordict: TensorDictBase
) -> tuple[Minibatch, torch.dtype]:
    """Read, check and run: the minibatch, and its metrics' dtype (float64 where the data are)."""
    loss.actor_head.follow(loss.actor_network)
    found = _data(loss, tensordict)
    checks.require(found)
    checks.no_gradient(found)
    checks.settle([checks.real(key, x) for role, (key, x, _) in found.items() if role in REAL])
    given = {name: x for name, (_, x, _) in found.items()}
    action, old_log_prob, advantage = given["action"], given["log_prob"], given["advantage"]
    assert action is not None and old_log_prob is not None and advantage is not None
    work = tensordict.copy()
    old = _old_head(loss, tensordict, work)
    rows = rows_of(old)
    checks.settle(complaints(found, old, rows))
    masks = [m for m in (tensordict.get(k, None) for k in loss.mask_keys()) if m is not None]
    mask = joint_mask(masks, rows)

    with loss.with_parameters("actor_network"):
        after = run_actor(loss.actor_network, work)
        parameters = loss.actor_head.parameters(after)
        checks.settle(stretched(loss.actor_head, given, parameters))
        if mask is not None and loss.actor_head.reading is None:
            old, parameters = _masked_apart(loss, tensordict, old, parameters, mask)
        new = loss.actor_head.read(parameters)
    checks.settle([mismatch(old, new)])
    if loss.entropy_bonus and loss.entropy_method == "quadrature":
        require_quadrature(new)
    critic = _critic(loss, after, given, masks) if loss.has_critic else {}
    proximal = _log_prob(old, action) if loss.delay_actor else None
    advantage = _normalised(loss, tensordict, advantage, masks)
    head = head_of(old, new, action, loss.sampling(), loss.entropy_bonus)
    batch = Minibatch(
        (head,),
        old_log_prob,
        over_rows(advantage, rows),
        mask=mask,
        proximal_log_prob=proximal,
        **critic,
    )
    return batch, _metric_dtype(given)


def _data(loss: "KLPENPPOLoss", tensordict: TensorDictBase) -> Found:
    """Everything that is read, by role: (key, tensor or None, what it is for)."""
    keys = loss.tensor_keys
    if tensordict.get(keys.advantage, None) is None:
        raise RuntimeError(
            f"The input tensordict has no advantage under {keys.advantage!r}. Compute it first, "
            f"{BY_GAE}, or name its key with loss.set_keys(advantage=...)."
        )
    wanted: list[tuple[str, Any, str]] = [
        ("action", keys.action, "the action taken"),
        ("log_prob", keys.sample_log_prob, "its log-prob under the behaviour policy"),
        ("advantage", keys.advantage, "the advantage"),
    ]
    if loss.has_critic:
        wanted.append(("target", keys.value_target, "the critic's target"))
        if loss.clip_value is not None:
            wanted.append(("old_value", keys.value, "the value at collection time, for clip_value"))
    if not loss.delay_actor:
        head = loss.actor_head
        wanted += [
            (f"old_{name}", key, "a parameter of the behaviour policy's distribution")
            for name, key in zip(head.names, head.in_keys, strict=True)
        ]
    return {role: (key, tensordict.get(key, None), what) for role, key, what in wanted}


def _old_head(loss: "KLPENPPOLoss", tensordict: TensorDictBase, work: TensorDictBase) -> Head:
    """The policy that the KL is to: the data's behaviour policy or `delay_actor`'s proximal one."""
    if not loss.delay_actor:
        return loss.actor_head.read(loss.actor_head.parameters(tensordict))
    with torch.no_grad(), loss.with_parameters("actor_network", target=True):
        after = run_actor(loss.actor_network, work.copy())
        return loss.actor_head.read(loss.actor_head.parameters(after))


def _masked_apart(
    loss: "KLPENPPOLoss",
    tensordict: TensorDictBase,
    old: Head,
    parameters: dict[str, Tensor | None],
    mask: Tensor,
) -> tuple[Head, dict[str, Tensor | None]]:
    """Keep what masked rows hold from torch.distributions: its derivative of NaN is NaN.

    Their new parameters get no gradient, and stand in for old ones that are not finite.
    """
    head, old_parameters = loss.actor_head, {}
    if not loss.delay_actor:
        for name, x in head.parameters(tensordict).items():
            new = parameters[name]
            assert x is not None and new is not None
            finite = torch.where(x.isfinite(), x, new.detach())
            old_parameters[name] = where_counting(mask, x, finite)
        old = head.read(old_parameters)
    new_parameters = {
        name: None if x is None else where_counting(mask, x, x.detach())
        for name, x in parameters.items()
    }
    return old, new_parameters


def _log_prob(head: Head, action: Tensor) -> Tensor:
    if isinstance(head, td.Distribution):
        return head.log_prob(action)
    parameters = tuple(map(_wide, head.canonical()))
    alone = PolicyHead(
        head.family, _wide(head.canonical_action(action)), parameters, parameters, head.log_volume()
    )
    return eager.rows(alone).log_prob


def _wide(x: Tensor) -> Tensor:
    """Floating point of 16 bits as float32, which is what is computed in."""
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x


# ---- the critic


def _critic(
    loss: "KLPENPPOLoss",
    after: TensorDictBase,
    given: dict[str, Tensor | None],
    masks: list[Tensor],
) -> dict[str, Tensor | None]:
    """Value, target and old value [*V], the critic run once."""
    key = loss.tensor_keys.value
    value, target, old = (
        loss.run_critic(after).get(key, None),
        given["target"],
        given.get("old_value"),
    )
    if value is None:
        raise KeyError(
            f"The critic writes no {key!r}; it writes {list(loss.critic_network.out_keys)}. Name "
            "its key with loss.set_keys(value=...)."
        )
    assert target is not None
    keys = loss.tensor_keys
    checks.settle(
        [
            checks.same_shape(keys.value_target, target.shape, "the critic's value", value.shape),
            None
            if old is None
            else checks.same_shape(keys.value, old.shape, "the critic's value", value.shape),
        ]
    )
    samples = {"value": value, "value_target": target, "old_value": old}
    flat = {k: _without_last(x) for k, x in samples.items()}
    mask = joint_mask(masks, tuple(flat["value"].shape))
    return {**flat, "value_mask": mask}


def _without_last(x: Any) -> Any:
    """A trailing dimension of size 1 dropped."""
    return x.squeeze(-1) if x is not None and x.shape[-1:] == (1,) else x


# ---- the advantage


def _normalised(
    loss: "KLPENPPOLoss", tensordict: TensorDictBase, advantage: Tensor, masks: list[Tensor]
) -> Tensor:
    if loss.advantage_norm is not None:
        advantage = _wide(advantage)
        scaled: Tensor = advantage / loss.advantage_norm.scale()
        return scaled
    if not loss.normalize_advantage or advantage.numel() <= 1:
        return advantage
    exclude = loss.normalize_advantage_exclude_dims
    if advantage.numel() > math.prod(tensordict.batch_size) and not exclude:
        warnings.warn(
            "You requested advantage normalization and the advantage key has more dimensions than "
            "the tensordict batch. Pass normalize_advantage_exclude_dims to keep any dimension "
            "(agents, objectives) out of the statistics.",
            UserWarning,
            stacklevel=2,
        )
    shape = tuple(advantage.shape)
    mask = joint_mask([reaching(m, shape) for m in masks], shape)
    return standardise(_wide(advantage), mask, exclude)


def _metric_dtype(given: dict[str, Tensor | None]) -> torch.dtype:
    floats = [x.dtype for x in given.values() if x is not None and x.is_floating_point()]
    return torch.float64 if torch.float64 in floats else torch.float32
