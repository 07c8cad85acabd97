"""Large minibatches block by block, in eager mode on a CPU.

Eager PyTorch writes every intermediate to memory. In blocks of rows the intermediates stay in cache
and are allocated once. A compiler fuses instead, a GPU has the kernels: neither comes here.
"""

from dataclasses import replace

import torch
from torch import Tensor

from klppo_compile.records import PolicyHead, Softmax
from klppo_compile.vocabulary import exporting

ELEMENTS = 2**17  # of a parameter in one block: 512 KiB in float32


def block_rows(head: PolicyHead) -> int | None:
    """How many of a head's leading rows make a block; None where it is taken whole."""
    whole = head.action is None or head.new[0].device.type != "cpu"
    if whole or torch.compiler.is_compiling() or exporting():
        return None
    x = head.new[0]
    if x.ndim < (3 if isinstance(head.family, Softmax) else 2) or x.numel() <= 3 * ELEMENTS // 2:
        return None
    return max(1, ELEMENTS * x.shape[0] // x.numel())


def split_head(head: PolicyHead, rows: int) -> list[PolicyHead]:
    """The head's blocks of `rows` leading rows."""
    assert head.action is not None
    actions, count = head.action.split(rows), head.new[0].shape[0]
    old = zip(*(x.split(rows) for x in head.old), strict=True)
    new = zip(*(x.split(rows) for x in head.new), strict=True)
    volumes: list[Tensor | None] = [None] * len(actions)
    if head.log_volume is not None:
        volumes = [*split_rows(head.log_volume, rows, len(actions))]
    noise = [head.noise] * len(actions)
    if head.noise is not None and head.noise.shape[1] == count:
        noise = list(head.noise.split(rows, 1))
    return [
        replace(head, action=a, old=o, new=n, log_volume=v, noise=z)
        for a, o, n, v, z in zip(actions, old, new, volumes, noise, strict=True)
    ]


def split_rows(x: Tensor, rows: int, blocks: int) -> list[Tensor]:
    """Rows [*P] by blocks; one number [] for all rows goes to each."""
    return [x] * blocks if x.ndim == 0 else list(x.split(rows))
