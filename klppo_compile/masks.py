"""Masks: which rows count, and how a tensor lies over rows."""

from functools import reduce

import torch
from torch import Tensor


def joint_mask(masks: list[Tensor], rows: tuple[int, ...]) -> Tensor | None:
    """Which rows count: all masks hold. [*P] bool."""
    if not masks:
        return None
    return reduce(torch.logical_and, [over_rows(m.bool(), rows, strict=True) for m in masks])


def over_rows(x: Tensor, rows: tuple[int, ...], strict: bool = False) -> Tensor:
    """A tensor [*B, 1] or [*B] over the rows [*P] that it heads; a mask must fit.

    After its first dimension it may have size 1 for all of the rows' there.
    """
    while x.ndim > len(rows) and x.shape[-1] == 1:
        x = x.squeeze(-1)
    if strict and x.ndim > len(rows):
        raise ValueError(
            f"A mask of shape {list(x.shape)} cannot be applied to rows of shape {list(rows)}: it "
            "has more non-singleton dimensions."
        )
    if strict and not _fits(x.shape, rows):
        raise ValueError(
            f"A mask of shape {list(x.shape)} cannot be applied to rows of shape {list(rows)}: it "
            "must be of the shape of their first dimensions, or 1 after the first."
        )
    if tuple(x.shape) == rows:
        return x
    return x.reshape((*x.shape, *[1] * (len(rows) - x.ndim))).expand(rows)


def _fits(shape: tuple[int, ...], rows: tuple[int, ...]) -> bool:
    both = enumerate(zip(shape, rows, strict=False))
    return all(size == whole or (dim > 0 and size == 1) for dim, (size, whole) in both)


def reaching(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask finer than the advantage counts a decision where any of its rows counts."""
    if mask.ndim < len(shape) or (mask.ndim == len(shape) and mask.shape[-1] == 1):
        return mask
    return mask.bool().flatten(len(shape) - 1).any(-1, True)


def where_counting(mask: Tensor, x: Tensor, masked: Tensor) -> Tensor:
    """`x` in the rows that count; a parameter without rows of its own stays."""
    if x.shape[: mask.ndim] != mask.shape or x.shape != masked.shape:
        return x
    return torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)), x, masked)
