"""The actor's distribution as a `PolicyHead`, old parameters from the data, new from the actor.

A distribution without a family of ours runs through torch.distributions, see `registry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor, nn
from torch import distributions as td

from klppo_compile.reading import Reading, direct_reading
from klppo_compile.recognise import KNOWN_ROOTS, Described, describe
from klppo_compile.records import PolicyHead, Rows
from klppo_compile.registry import distribution_entropy, is_squashed, kl_divergence, within

# Methods of an actor by which it could make another distribution than its distribution_class does.
BUILDERS = ("get_dist", "build_dist_from_params", "get_dist_params")


@dataclass(frozen=True)
class Sampling:
    """How what has no closed form is estimated.

    Attributes:
        kl, entropy: samples per row.
        nodes, weights: of the entropy's quadrature, which takes the place of its samples.
    """

    kl: int
    entropy: int
    nodes: Tensor | None = None
    weights: Tensor | None = None


class ActorHead:
    """Reads the action's head from tensordicts, by the actor's one probabilistic module."""

    def __init__(self, actor: nn.Module) -> None:
        self._take(actor)

    def _take(self, actor: nn.Module) -> None:
        modules = [m for m in actor.modules() if isinstance(m, ProbabilisticTensorDictModule)]
        if not modules:
            raise RuntimeError("Could not find the probabilistic module in the actor.")
        if len(modules) > 1:
            raise RuntimeError(
                "Actors with one and only one distribution are currently supported in "
                f"KLPENPPOLoss; this one has {len(modules)} probabilistic modules."
            )
        module = modules[0]
        if _last(actor) is not module:
            raise TypeError(
                "The actor must end in its probabilistic module, as ProbabilisticActor and "
                f"ProbabilisticTensorDictSequential do; got a {type(actor).__name__}."
            )
        _refuse_own_ways(actor)
        _refuse_composite(module.distribution_class)
        self.in_keys = list(module.in_keys)
        self.names = tuple(k[-1] if isinstance(k, tuple) else k for k in module.dist_keys)
        self.module = module
        self.kind, self.constants = module.distribution_class, module.distribution_kwargs
        self.known: Reading | None = direct_reading(self.kind, self.constants, self.names)

    @property
    def reading(self) -> Reading | None:
        """How the head is read without the distribution; None where only that tells.

        What a trainer assigns to the module later, say another temperature, is built.
        """
        module = self.module
        if isinstance(self.kind, partial) and torch.compiler.is_compiling():
            # Dynamo can't tell partials of tensors apart: one for another is not seen there.
            same = isinstance(module.distribution_class, partial)
        else:
            same = module.distribution_class is self.kind
        return self.known if same and module.distribution_kwargs is self.constants else None

    def follow(self, actor: nn.Module) -> None:
        """Read by the module of this actor, which may have taken the place of the first.

        Raises:
            RuntimeError, TypeError, NotImplementedError: as for the first.
        """
        module = _last(actor)
        if module is self.module:
            return
        if torch.compiler.is_compiling():
            self.module = module  # its distribution is built
        else:
            self._take(actor)

    def parameters(self, tensordict: TensorDictBase) -> dict[str, Tensor | None]:
        """The distribution's parameters by name, None where the tensordict lacks them."""
        return {
            name: tensordict.get(key, None)
            for name, key in zip(self.names, self.in_keys, strict=True)
        }

    def read(self, given: Mapping[str, Any]) -> Described | td.Distribution:
        """The head in a family's terms, or the distribution where no family serves it."""
        reading = self.reading
        if reading is not None:
            return reading(given)
        module = self.module
        distribution = module.distribution_class(**given, **module.distribution_kwargs)
        found = describe(distribution)
        return distribution if found is None else found


def run_actor(actor: nn.Module, tensordict: TensorDictBase) -> TensorDictBase:
    """Run all of the actor before its probabilistic module, once; what it computes comes back."""
    part: Any = actor
    while not isinstance(part, ProbabilisticTensorDictModule):
        tensordict = part.det_part(tensordict)
        part = _end(part)
    return tensordict


def _last(actor: Any) -> Any:
    """The last module, within sequences of sequences."""
    # The type first: to look for an attribute in vain is slow, also in each call's guards.
    while not isinstance(actor, ProbabilisticTensorDictModule) and hasattr(
        actor, "get_dist_params"
    ):
        actor = _end(actor)
    return actor


def _end(sequence: Any) -> Any:
    modules = sequence.module
    return list(modules.values() if isinstance(modules, nn.ModuleDict) else modules)[-1]


def _refuse_own_ways(actor: nn.Module) -> None:
    """Refuse modules that build their distribution in a way of their own: nobody would call it."""
    kinds = (ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential)
    for module in (m for m in actor.modules() if isinstance(m, kinds)):
        kind = type(module)
        for name in BUILDERS:
            owner = next((k for k in kind.__mro__ if name in vars(k)), kind)
            if name in vars(module) or owner.__module__.split(".")[0] not in KNOWN_ROOTS:
                raise TypeError(
                    "The actor's distribution must be what its distribution_class makes of its "
                    f"parameters; this {kind.__name__} overrides {name}. Give it as "
                    "distribution_class, which may be a callable."
                )


def _refuse_composite(kind: Any) -> None:
    while isinstance(kind, partial):
        kind = kind.func
    if getattr(kind, "__name__", "") == "CompositeDistribution":
        raise NotImplementedError(
            "Composite actions (CompositeDistribution) are not supported yet; use an actor with "
            "one action, say a multi-discrete one: Independent(Categorical(logits=...), 1)."
        )


def head_of(
    old: Described | td.Distribution,
    new: Described | td.Distribution,
    action: Tensor,
    sampling: Sampling,
    entropy: bool,
) -> PolicyHead:
    """The head of an action under an old and a new policy."""
    if isinstance(old, Described) and isinstance(new, Described):
        return _family_head(old, new, action, sampling, entropy)
    assert isinstance(old, td.Distribution) and isinstance(new, td.Distribution)
    kl = kl_divergence(old, new, sampling.kl)
    log_prob = new.log_prob(action)
    h = distribution_entropy(new, sampling.entropy) if entropy else torch.zeros_like(log_prob)
    return PolicyHead(Rows(), None, (), (log_prob, kl, h))


def require_quadrature(head: Described | td.Distribution) -> None:
    """Raise ValueError where a squashed Gaussian's entropy would be sampled all the same."""
    if isinstance(head, td.Distribution) and is_squashed(head):
        raise ValueError(
            'entropy_method="quadrature" serves a TanhNormal that is read from its parameters; '
            f"this {type(within(head)).__name__} can't be. Name the class, with its bounds in "
            'distribution_kwargs={"low": ..., "high": ...}, or use entropy_method="sample".'
        )


def _family_head(
    old: Described, new: Described, action: Tensor, sampling: Sampling, entropy: bool
) -> PolicyHead:
    parameters, noise, weights = new.canonical(), None, None
    if entropy and getattr(new.family, "correction", None) is not None:
        noise, weights = _noise(parameters[0], sampling)
    return PolicyHead(
        new.family,
        new.canonical_action(action),
        old.canonical(),
        parameters,
        new.log_volume(),
        noise,
        weights,
    )


def _noise(like: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draws [S, *P, D] with equal weights, or nodes [S, 1, ..., 1] with theirs."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if sampling.nodes is not None and sampling.weights is not None:
        nodes = sampling.nodes.to(dtype).reshape(-1, *[1] * like.ndim)
        return nodes, sampling.weights.to(dtype)
    draws = torch.randn(sampling.entropy, *like.shape, dtype=dtype, device=like.device)
    return draws, draws.new_full((sampling.entropy,), 1.0 / sampling.entropy)
