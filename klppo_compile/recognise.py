"""From a distribution to its family and head parameters.

A head is read, where that is possible, from the parameters themselves and not from a distribution
built of them: building one normalises the logits, which costs the digits a small KL lives in,
checks values, which waits for the device, and is work. torchrl's and tensordict's classes are known
by name, never imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from klppo_compile.distributions import FAMILIES
from klppo_compile.records import Factorised, Family, Softmax

TEXT_CLASSES = (td.Normal, td.Bernoulli, td.Categorical, td.OneHotCategorical)
ONE_HOT = (
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "OneHotOrdinal",
    "MaskedOneHotCategorical",
)
KNOWN_ROOTS = ("torch", "torchrl", "tensordict")


@dataclass(frozen=True, eq=False)
class Described:
    """A distribution in a family's terms, in its own shapes.

    Attributes:
        family: whose text serves it.
        parameters: `[*P, *event]`, softmax `[*P, *event, A]`.
        event_dims: dimensions that one row's log-prob sums over.
        one_hot: the action is a one-hot vector.
        indices: `[..., A]` the actions that the logits stand for, where they are not 0 .. A - 1.
        actions: how many there are to stand for.
        centre, half_width: bounds of a squashed action, action = centre + half_width tanh(x).
        safe: the action is held to its dtype's resolution from the bounds (torchrl), not to its
            epsilon (torch).
    """

    family: Family
    parameters: tuple[Tensor, ...]
    event_dims: int
    one_hot: bool = False
    indices: Tensor | None = None
    actions: int | None = None
    centre: Tensor | float = 0.0
    half_width: Tensor | float = 1.0
    safe: bool = False

    def action_shape(self) -> tuple[int, ...]:
        """Shape of the action in the data."""
        shape = tuple(self.parameters[0].shape)
        if not isinstance(self.family, Softmax):
            return shape
        if not self.one_hot:
            return shape[:-1]
        return (*shape[:-1], self.actions or shape[-1])

    def canonical(self) -> tuple[Tensor, ...]:
        """The parameters as a head wants them: `[*P, D]` or `[*P, K, A]`."""
        last = 1 if isinstance(self.family, Softmax) else 0
        return tuple(_fold(p, self.event_dims, last) for p in self.parameters)

    def canonical_action(self, action: Tensor) -> Tensor:
        """The action as a head wants it: `[*P, D]`, squashed in (-1, 1), or `[*P, K]` indices."""
        if isinstance(self.family, Softmax):
            return _fold(self._index(action), self.event_dims, 0)
        if isinstance(self.family, Factorised) and self.family.squashed:
            action = self._inside(action)
        if not action.is_floating_point():
            action = action.to(self.parameters[0].dtype)
        return _fold(action, self.event_dims, 0)

    def _index(self, action: Tensor) -> Tensor:
        if self.one_hot:
            action = (action.byte() if action.dtype == torch.bool else action).argmax(-1)
        if self.indices is None:
            return action.long()
        hit = self.indices == action.unsqueeze(-1)
        return torch.where(hit.any(-1), hit.int().argmax(-1), -1)

    def _inside(self, action: Tensor) -> Tensor:
        """In units of the bounds, held inside them as the transform's inverse does; inf is NaN."""
        unit = (action - self.centre) / self.half_width
        info = torch.finfo(unit.dtype)
        limit = 1.0 - (info.resolution if self.safe else info.eps)
        return torch.where(unit.isfinite(), unit.clamp(-limit, limit), torch.nan)

    def log_volume(self) -> Tensor | None:
        """Log of the volume of the action's unit, summed over the event: `[*P]`, or None for 0."""
        width, like = self.half_width, self.parameters[0]
        if not isinstance(width, Tensor):
            if width == 1.0:
                return None
            width = like.new_full((), width, dtype=torch.promote_types(like.dtype, torch.float32))
        return _fold(width.to(like.device).log().expand(like.shape), self.event_dims, 0).sum(-1)


def _fold(x: Tensor, event_dims: int, last: int) -> Tensor:
    """Event dimensions, before the `last` ones, as one."""
    if event_dims == 0:
        return x.unsqueeze(-1 - last)
    if event_dims == 1:
        return x
    end = x.ndim - 1 - last
    return x.flatten(end - event_dims + 1, end)


# ---- from an instance


def describe(distribution: td.Distribution) -> Described | None:
    """A distribution in a family's terms, or None where no family's text serves it."""
    dims, base = _unwrap(distribution)
    if isinstance(base, td.TransformedDistribution):
        return _describe_squashed(base, dims)
    if not isinstance(base, TEXT_CLASSES) or not _plain(type(base)):
        return None
    if isinstance(base, td.OneHotCategorical):
        return Described(FAMILIES["categorical"], (base.logits,), dims, one_hot=True)
    if isinstance(base, td.Normal):
        return Described(FAMILIES["normal"], (base.loc, base.scale), dims)
    if isinstance(base, td.Bernoulli):
        probs = "probs" in base.__dict__
        logits = bernoulli_logits(base.probs) if probs else base.logits
        return Described(FAMILIES["bernoulli"], (logits,), dims)
    one_hot = type(base).__name__ in ONE_HOT
    indices = getattr(base, "_mask", None) if getattr(base, "_sparse_mask", False) else None
    actions = getattr(base, "num_samples", None)
    return Described(FAMILIES["categorical"], (base.logits,), dims, one_hot, indices, actions)


def _unwrap(distribution: td.Distribution) -> tuple[int, td.Distribution]:
    dims = 0
    while isinstance(distribution, td.Independent) and _plain(type(distribution), td.Independent):
        dims += distribution.reinterpreted_batch_ndims
        distribution = distribution.base_dist
    return dims, distribution


def _plain(kind: type, parent: type | None = None) -> bool:
    """Whether a class computes what its parent does: known, or with its parent's methods."""
    if kind.__module__.split(".")[0] in KNOWN_ROOTS:
        return True
    parent = parent or next(k for k in TEXT_CLASSES if issubclass(kind, k))
    return all(getattr(kind, f) is getattr(parent, f) for f in ("log_prob", "entropy"))


def _describe_squashed(distribution: td.TransformedDistribution, dims: int) -> Described | None:
    if not _plain(type(distribution), td.TransformedDistribution):
        return None
    inner, base = _unwrap(distribution.base_dist)
    transforms = list(flattened(distribution.transforms))
    names = [type(t).__name__.removeprefix("_Patched") for t in transforms]
    squashes = names in (["TanhTransform"], ["SafeTanhTransform"])
    scales = names in (
        ["TanhTransform", "AffineTransform"],
        ["SafeTanhTransform", "AffineTransform"],
    )
    if not (type(base) is td.Normal and (squashes or scales)):
        return None
    centre, half_width = (transforms[1].loc, transforms[1].scale) if scales else (0.0, 1.0)
    if isinstance(centre, Tensor) or isinstance(half_width, Tensor) or half_width <= 0:
        return None  # bounds may be the policy's own, and then the KL is not the Gaussians'
    return Described(
        FAMILIES["tanh_normal"],
        (base.loc, base.scale),
        dims + inner,
        centre=centre,
        half_width=half_width,
        safe=names[0].startswith("Safe"),
    )


def flattened(transforms: list[Any]) -> Iterator[Any]:
    """Transforms, composed ones as their parts."""
    for transform in transforms:
        if isinstance(transform, td.ComposeTransform):
            yield from flattened(transform.parts)
        else:
            yield transform


def categorical_logits(probs: Tensor) -> Tensor:
    """Logits of probabilities, float64: rounding would lose the difference of two close ones.

    A probability of 0 gets no gradient, as in torch: the logarithm's would be infinite there.
    """
    wide = probs.double()
    none = wide == 0.0
    return torch.where(none, 1.0, wide).log().masked_fill(none, -torch.inf)


def bernoulli_logits(probs: Tensor) -> Tensor:
    """Logits of probabilities, float64, away from 0 and 1 as torch keeps them."""
    eps = torch.finfo(probs.dtype).eps
    held = probs.double().clamp(eps, 1.0 - eps)
    return held.log() - (-held).log1p()
