"""Standardising an advantage: mean 0, deviation 1, over the rows that count.

Estimating one is not here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PLAIN_FLOOR = 1e-6  # torchrl's floors under the deviation
MASKED_FLOOR = 1e-4


def standardise(
    advantage: Tensor, mask: Tensor | None = None, exclude_dims: Sequence[int] = ()
) -> Tensor:
    """Return (advantage - mean) / deviation, as torchrl: unbiased without a mask, biased with one.

    The largest value is taken off first: what is left is small, so that a constant advantage
    becomes exactly 0 and a large offset costs no digits.

    Args:
        advantage: `[*B, 1]`.
        mask: `[*B, 1]` bool, True where a row counts.
        exclude_dims: dimensions with statistics of their own.

    Raises:
        ValueError: a dimension that the advantage lacks.
    """
    ndim = advantage.ndim
    if absent := [d for d in exclude_dims if not -ndim <= d < ndim]:
        raise ValueError(
            f"normalize_advantage_exclude_dims must lie in [{-ndim}, {ndim - 1}] for an advantage "
            f"of shape {list(advantage.shape)}; got {absent[0]}."
        )
    kept = {d % ndim for d in exclude_dims}
    dims = [d for d in range(ndim) if d not in kept]
    if advantage.numel() <= 1 or not dims:
        return advantage
    if mask is None:
        shifted = advantage - advantage.amax(dims, keepdim=True)
        centred = shifted - shifted.mean(dims, keepdim=True)
        count = shifted.numel() // max(1, shifted.mean(dims).numel())
        variance = centred.square().sum(dims, keepdim=True) / max(count - 1, 1)
        return centred / variance.sqrt().clamp_min(PLAIN_FLOOR)
    lowest = torch.finfo(advantage.dtype).min
    top = torch.where(mask, advantage, lowest).amax(dims, keepdim=True)
    n = mask.sum(dims, keepdim=True).clamp_min(1)
    shifted = torch.where(mask, advantage - top, 0.0)
    mean = shifted.sum(dims, keepdim=True) / n
    centred = torch.where(mask, shifted - mean, 0.0)
    variance = centred.square().sum(dims, keepdim=True) / n
    return centred / variance.sqrt().clamp_min(MASKED_FLOOR)
