"""KL and entropy of distributions without a family of ours: torch's registry, or samples."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.kl import _dispatch_kl
from torch.distributions.utils import _sum_rightmost

from klppo_compile.recognise import flattened

logger = logging.getLogger("klppo_compile")
FROM_USE = ("_inv", "_cached_x_y")  # of a transform; the rest it was made with
Formula = Callable[[td.Distribution, td.Distribution], Tensor]


def kl_divergence(old: td.Distribution, new: td.Distribution, samples: int) -> Tensor:
    """KL(old || new) [*P] in closed form where it has one, else from samples."""
    _look_up(old, new)
    agree = same(transforms_of(old), transforms_of(new))
    exact = None if agree is False else registered_kl(old, new)
    if exact is None:
        say_once(
            f"No closed-form KL for {type(within(old)).__name__}: it is estimated from "
            f"samples_mc_kl={samples} sample(s) per row, so beta follows a noisy number. More "
            "samples, or a family with a closed form, make it steady."
        )
        return sampled_kl(old, new, samples)
    if isinstance(agree, Tensor):
        return torch.where(agree, exact, sampled_kl(old, new, samples))
    return exact


def _look_up(old: td.Distribution, new: td.Distribution) -> None:
    """Fill `_FORMULAS` for a pair and all that it wraps: a compiler reads it once."""
    kl_formula(type(old), type(new))
    if hasattr(old, "base_dist") and hasattr(new, "base_dist"):
        _look_up(old.base_dist, new.base_dist)


def registered_kl(old: td.Distribution, new: td.Distribution) -> Tensor | None:
    """KL(old || new) [*P] by torch's registry, or None; transforms are taken to be the same."""
    name = kl_formula(type(old), type(new))
    theirs = name != "" and _FORMULAS[name].__module__ != "torch.distributions.kl"
    if theirs:
        return _FORMULAS[name](old, new)
    if isinstance(old, td.Independent) and isinstance(new, td.Independent):
        inner = registered_kl(old.base_dist, new.base_dist)
        dims = old.reinterpreted_batch_ndims
        return None if inner is None else _sum_rightmost(inner, dims)
    if isinstance(old, td.TransformedDistribution) and isinstance(new, td.TransformedDistribution):
        inner = registered_kl(old.base_dist, new.base_dist)
        extra = len(old.event_shape) - len(old.base_dist.event_shape)
        return None if inner is None else _sum_rightmost(inner, extra)
    return _FORMULAS[name](old, new) if name else None


_FORMULAS: dict[str, Formula] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kl_formula(old: type, new: type) -> str:
    """Name in `_FORMULAS` of torch's registered formula for two classes, or "".

    Compilers take the name, and with it the formula, for a constant: the registry is Python.
    """
    formula = _dispatch_kl(old, new)
    if formula is NotImplemented:
        return ""
    name = f"{old.__module__}.{old.__qualname__} {new.__module__}.{new.__qualname__}"
    _FORMULAS[name] = formula
    return name


def sampled_kl(old: td.Distribution, new: td.Distribution, samples: int) -> Tensor:
    """Monte-Carlo KL(old || new) [*P]: mean log old - log new of samples of old; can be < 0."""
    with torch.no_grad():
        x = old.sample((samples,))
        old_log_prob = old.log_prob(x)
    return (old_log_prob - new.log_prob(x)).mean(0)


def within(distribution: td.Distribution) -> td.Distribution:
    """What Independent wraps."""
    while isinstance(distribution, td.Independent):
        distribution = distribution.base_dist
    return distribution


# ---- transforms


def transforms_of(distribution: td.Distribution) -> list[td.Transform]:
    """Every transform on the way from the base to the action."""
    found: list[td.Transform] = []
    while isinstance(distribution, td.Independent | td.TransformedDistribution):
        if isinstance(distribution, td.TransformedDistribution):
            found += distribution.transforms
        distribution = distribution.base_dist
    return found


def same(a: Any, b: Any) -> bool | Tensor:
    """Whether two transforms, or what they hold, are equal: `[]` bool where that is in tensors."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a == b).all() if a.shape == b.shape else False
    if type(a) is not type(b):
        return False
    if isinstance(a, td.Transform):
        names = [name for name in a.__dict__ if name not in FROM_USE]
        return _all_same(*([getattr(x, name, None) for name in names] for x in (a, b)))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and _all_same(a, b)
    return bool(a == b)


def _all_same(a: Sequence[Any], b: Sequence[Any]) -> bool | Tensor:
    found = [same(x, y) for x, y in zip(a, b, strict=True)]
    tensors = [x for x in found if isinstance(x, Tensor)]
    if False in [x for x in found if isinstance(x, bool)]:
        return False
    return torch.stack(tensors).all() if tensors else True


def is_squashed(distribution: td.Distribution) -> bool:
    """Whether a tanh is on the way from the base to the action."""
    transforms = flattened(transforms_of(distribution))
    return any("TanhTransform" in type(transform).__name__ for transform in transforms)


# ---- entropy


def distribution_entropy(distribution: td.Distribution, samples: int) -> Tensor:
    """Entropy [*P] in closed form, or from samples, reparameterised where they can be."""
    base = within(distribution)
    if _has_entropy(type(base)):
        return distribution.entropy()
    say_once(
        f"No closed-form entropy for {type(base).__name__}: it is estimated from "
        f"samples_mc_entropy={samples} sample(s) per row."
    )
    draw = distribution.rsample if distribution.has_rsample else distribution.sample
    return -distribution.log_prob(draw((samples,))).mean(0)


def _has_entropy(kind: type[td.Distribution]) -> bool:
    """Whether a class gives its entropy.

    Torch's exponential families derive it from a carrier measure, which Poisson has none of.
    """
    if kind.entropy is td.ExponentialFamily.entropy:
        measure = "_mean_carrier_measure"
        return getattr(kind, measure) is not getattr(td.ExponentialFamily, measure)
    return kind.entropy is not td.Distribution.entropy


_said: set[str] = set()


def say_once(text: str) -> None:
    """Log a line, once in a process; not while a compiler traces."""
    if not torch.compiler.is_compiling() and text not in _said:
        _said.add(text)
        logger.warning(text)
