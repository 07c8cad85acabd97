"""A minibatch as the flat tensors that autograd sees, and back."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from klppo_compile.records import Critic, Minibatch, PolicyHead, Softmax

SAMPLES = ("old_log_prob", "advantage", "value", "value_target", "old_value", "proximal_log_prob")
MASKS = ("mask", "value_mask")
CRITIC = tuple((SAMPLES + MASKS).index(name) for name in Critic._fields)
VALUE = SAMPLES.index("value")
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def flatten(batch: Minibatch) -> tuple[Tensor | None, ...]:
    """The minibatch as the flat arguments that autograd sees.

    Data are detached, which also keeps two names of one tensor apart for a compiler.
    """
    out = [
        getattr(batch, name) if name == "value" else _detached(getattr(batch, name))
        for name in SAMPLES + MASKS
    ]
    for head in batch.policy:
        still = (head.action, head.log_volume, head.noise, head.weights, *head.old)
        out += [_detached(x) for x in still]
        out += head.new
    return tuple(out)


def unflatten(
    layout: tuple[tuple[Any, int], ...],
    tensors: tuple[Tensor | None, ...],
    dtype: torch.dtype | None,
) -> Minibatch:
    """Back again, floating point cast to the dtype that is computed in; None: as it is."""
    cast = cast_all(tensors, dtype)
    samples = dict(zip(SAMPLES + MASKS, cast, strict=False))
    at, heads = len(SAMPLES) + len(MASKS), []
    for family, old in layout:
        new = at + 4 + old
        end = new + len(family.parameters)
        action, volume, noise, weights = cast[at : at + 4]
        action = _action(family, action, dtype)
        old_parameters: Any = tuple(cast[at + 4 : new])
        parameters: Any = tuple(cast[new:end])
        heads.append(PolicyHead(family, action, old_parameters, parameters, volume, noise, weights))
        at = end
    return Minibatch(tuple(heads), **samples)  # type: ignore[arg-type]


def cast_all(tensors: Iterable[Tensor | None], dtype: torch.dtype | None) -> list[Tensor | None]:
    """Floating point cast to the dtype that is computed in; None: as it is."""
    return [_cast(x, dtype) for x in tensors]


def _cast(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    if x is None or dtype is None or x.dtype == dtype or not x.is_floating_point():
        return x
    return x.to(dtype)


def _action(family: Any, x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """A number of any kind as the others are; an index of a kind that torch can clamp."""
    if x is None or dtype is None or x.is_floating_point():
        return x
    if isinstance(family, Softmax):
        return x.long() if x.dtype in UNSIGNED else x
    return x.to(dtype)


def _detached(x: Tensor | None) -> Tensor | None:
    return x.detach() if x is not None and (x.requires_grad or is_compiling()) else x


def dtype_of(tensors: tuple[Tensor | None, ...]) -> torch.dtype:
    """What to compute in: float64 where any of the tensors is, else float32."""
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32
