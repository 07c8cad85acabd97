"""What a forward pass writes: one type for launches, fakes and autograd."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile.kernels.layout import Static


class Outputs(NamedTuple):
    """What a forward pass returns; losses [1], rows with reduction none, [0] where absent."""

    objective: Tensor
    entropy: Tensor
    critic: Tensor
    metrics: Tensor  # [13 + heads], see samples.py
    nonfinite: Tensor  # [1] int64
    kl: Tensor  # [*P]
    log_prob: Tensor  # [*P]
    ratio: Tensor  # [*P]
    kept: Tensor  # [5 N K] of each softmax head, one after the other


def outputs(
    rows: torch.Size,
    values: torch.Size | None,
    heads: Sequence[int],
    like: Tensor,
    static: Static,
) -> Outputs:
    """Empty outputs; heads: how many softmaxes a row of each action head has."""

    def empty(*size: int) -> Tensor:
        return like.new_empty(size, dtype=torch.float32)

    def loss(there: bool, shape: Sequence[int]) -> Tensor:
        return empty(*shape) if there and static.reduction == "none" else empty(int(there))

    return Outputs(
        objective=loss(True, rows),
        entropy=loss(static.entropy_bonus, rows),
        critic=loss(values is not None, values or ()),
        metrics=empty(13 + len(heads)),
        nonfinite=like.new_empty((1,), dtype=torch.int64),
        kl=empty(*rows),
        log_prob=empty(*rows),
        ratio=empty(*rows),
        kept=empty(5 * math.prod(rows) * sum(heads)),  # `numel` would bind a symbol
    )


def kept_by(kept: Tensor, N: int, heads: Sequence[int]) -> list[Tensor]:
    """Each head's part of `kept`."""
    return list(kept.split([5 * N * K for K in heads]))


def stored(static: Static, critic: bool, heads: int) -> int:
    """Which columns of the partials the forward kernels store, as bits; see samples.py."""
    columns = {0, 1, 2, 3, 4, 5, 7}
    columns |= {6} if static.entropy_bonus else set()
    columns |= {15} if static.entropy_bonus and heads > 1 else set()
    columns |= {8, 10} if critic else set()
    columns |= {9} if static.clipped else set()
    columns |= {11, 12, 13, 14} if static.explained_variance else set()
    return sum(1 << column for column in columns)
