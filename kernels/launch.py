"""Grids and launches: a row's heads one after the other, then what follows from the sums.

Nothing here reads a value of a tensor or waits for the device, and all memory comes from torch's
allocator: a CUDA graph can capture it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from klppo_compile.kernels.binding import kernels
from klppo_compile.kernels.layout import Head, Problem, Rows, Static
from klppo_compile.kernels.outputs import Outputs, kept_by, outputs, stored
from klppo_compile.kernels.tiling import (
    CLOSING,
    CRITIC,
    WIDE,
    deepest,
    options,
    split,
    streaming_tile,
    tile,
)

FOLD = 1024  # rows of partials that one program of `fold` merges
RULE = 5  # numbers of beta's rule, the last ones
NONE = (None,) * 8  # rows that a head other than the last doesn't read

Run = Callable[..., None]
Numbers = tuple[Tensor | float, ...]
Carry = tuple[Tensor | None, Tensor | None]


def start(kernel: Any, grid: tuple[int, ...], threads: int, *args: Any) -> None:
    """Launch a kernel."""
    kernel[grid](*args, **options(threads))


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def softmaxes(p: Problem) -> list[int]:
    """How many softmaxes a row of each head has."""
    return [h.K if h.softmax else 0 for h in p.heads]


def forward(p: Problem, numbers: Numbers, static: Static, run: Run = start) -> Outputs:
    """Launch the forward pass: rows and partials, then losses, metrics and the next beta.

    numbers: beta, critic_coeff, clip radius, log of the ratio's cap, each head's entropy_coeff,
    beta's rule.
    """
    first, value = p.heads[0].new[0], p.value
    values = None if value is None else (p.values or p.rows).shape
    out = outputs(p.rows.shape, values, softmaxes(p), first, static)
    losses = tuple(x if x.numel() or static.reduction == "none" else None for x in out[:3])
    nothing: tuple[Tensor | None, ...] = (None,) * 3
    per_row, reduced = (losses, nothing) if static.reduction == "none" else (nothing, losses)
    with on(first.device):
        partials = row_kernels(p, numbers[:-RULE], out, per_row, static, run)
        k = kernels(p.heads[-1].family, static.loss_critic_type)
        bits = stored(static, value is not None, len(p.heads))
        G = partials.shape[0]
        while G > 4 * FOLD:
            folded = partials.new_empty((triton.cdiv(G, FOLD), 16))
            args = (partials, folded, G, bits, static.explained_variance, FOLD)
            run(k["fold"], (folded.shape[0],), 256, *args)
            partials, G = folded, folded.shape[0]
        BG = min(FOLD, max(16, triton.next_power_of_2(max(G, 1))))
        flags = (bits, static.explained_variance, static.reduction == "mean", BG)
        used = (numbers[:4] + numbers[-RULE:], numbers[4:-RULE])
        where = (reduced, out.metrics, out.nonfinite)
        run(k["finalize"], (1,), 256 if BG > 256 else 128, partials, *used, *where, G, *flags)
    return out


def row_kernels(
    p: Problem,
    numbers: Numbers,
    out: Outputs,
    losses: tuple[Tensor | None, ...],
    static: Static,
    run: Run,
) -> Tensor:
    """Launch what reads the rows; their partials [G, 16]."""
    N, last = p.rows.N, len(p.heads) - 1
    block = block_of(p.heads[last], N)
    G, more = triton.cdiv(N, block.BN), 0
    partials = out.metrics.new_empty((G, 16))
    if p.values is not None:
        # Neither kind of block stores the other's columns.
        more = triton.cdiv(p.values.N, CRITIC.BN)
        partials = out.metrics.new_zeros((G + more, 16))
    carries = [out.metrics.new_empty((4, N)) for _ in range(last)]
    kept = kept_by(out.kept, N, softmaxes(p))
    where = (partials, out.log_prob, out.kl, out.ratio, *losses)
    for i, head in enumerate(p.heads if N else ()):
        carry = (carries[i - 1] if i else None, carries[i] if i < last else None)
        mine = (*numbers[:4], numbers[4 + i])
        if i < last:
            unread = Rows(p.rows.shape, N, NONE, (0,) * 8)
            head_forward(head, unread, mine, carry, NONE[:7], kept[i], static, run)
        else:
            head_forward(head, p.rows, mine, carry, where, kept[i], static, run)
    if more:
        assert p.values is not None
        k, values = kernels(p.heads[last].family, static.loss_critic_type), p.values
        args = (values.tensors, (*numbers[:4], 0.0), (partials[G:], *where[1:]), values.N, values.S)
        flags = (CRITIC.BN, static.clipped, static.explained_variance)
        run(k["critic_forward"], (more,), CRITIC.threads, *args, *flags)
    return partials


def block_of(head: Head, N: int) -> Any:
    """The tile whose blocks close the rows of a head."""
    wide = head.softmax and head.D > WIDE
    return CLOSING if wide else tile(head.D, N, head.bits, deepest(head))


def head_forward(
    h: Head,
    rows: Rows,
    numbers: Numbers,
    carry: Carry,
    where: tuple[Tensor | None, ...],
    kept: Tensor,
    static: Static,
    run: Run,
) -> None:
    """Launch one head's forward pass over its rows."""
    k, block = kernels(h.family, static.loss_critic_type), block_of(h, rows.N)
    grid = (triton.cdiv(rows.N, block.BN),)
    common = (rows.tensors, numbers, carry, where)
    critic = rows.critic
    flags = (
        static.clipped and critic,
        static.entropy_bonus,
        static.explained_variance and critic,
    )
    args: tuple[Any, ...]
    if not h.softmax:
        args = (h.action, h.old, h.new, h.extra, *common, rows.N, h.draws, h.SH, h.SN, rows.S, h.D)
        args += (*block[:3], block.tail(h.D), block.unroll(h.D, h.heavy))
        run(k["forward"], grid, block.threads, *args, *flags)
        return
    closing = (*common, kept, rows.N, h.SH, rows.S, h.K, h.D)
    if h.D <= WIDE:
        args = (h.action, *h.old, *h.new, *closing, *block[:3])
        run(k["forward"], grid, block.threads, *args, *flags)
        return
    stream, lines = streaming_tile(h.D, h.bits), rows.N * h.K
    steps, programs = split(lines, h.D, stream)
    moments, again = kept.new_empty((2, lines, programs, 9)).unbind()
    parts = (programs, triton.next_power_of_2(programs))
    how = (steps, h.SH, h.K, h.D, stream.T, stream.W)
    run(k["streaming"], (lines, programs), stream.threads, h.action, *h.old, *h.new, moments, *how)
    args = (*h.old, *h.new, moments, again, *how, *parts)
    run(k["again"], (lines, programs), stream.threads, *args)
    args = (h.action, *h.new, again, *closing, parts[0], block.BN, parts[1])
    run(k["close"], grid, block.threads, *args, *flags)


def backward(
    p: Problem,
    grads: tuple[Tensor | None, ...],
    metrics: Tensor,
    log_prob: Tensor,
    kept: Tensor,
    static: Static,
    run: Run = start,
) -> list[Tensor]:
    """Launch the backward pass: gradients of the new parameters, and of the value if there is one.

    grads: to objective, entropy and critic, [1] or a row each. The rest is the forward pass's.
    """
    d_new = [
        tuple(x.new_empty(shape) for x, shape in zip(h.new, h.shapes, strict=True)) for h in p.heads
    ]
    value, values = p.value, p.values or p.rows
    d_value = None if value is None else value.new_empty(values.shape)
    SG = tuple(0 if g is None or g.numel() == 1 else 1 for g in grads)
    each = kept_by(kept, p.rows.N, softmaxes(p))
    with on(p.heads[0].new[0].device):
        for i, h in enumerate(p.heads if p.rows.N else ()):
            # The first head's launch takes the value along.
            d_mine = d_value if i == 0 and p.rows.critic else None
            args = (p.rows.tensors, grads, (metrics, log_prob, each[i]), d_new[i], d_mine)
            head_backward(h, i, p.rows, *args, SG, static, run)
        if p.values is not None and p.values.N:
            k = kernels(p.heads[0].family, static.loss_critic_type)["critic_backward"]
            flags = (CRITIC.BN, static.clipped)
            grid = (triton.cdiv(p.values.N, CRITIC.BN),)
            more = (p.values.tensors, grads, metrics, d_value, p.values.N, p.values.S, SG)
            run(k, grid, CRITIC.threads, *more, *flags)
    result = [d for ds in d_new for d in ds]
    return result if d_value is None else [*result, d_value]


def head_backward(
    h: Head,
    index: int,
    rows: Rows,
    tensors: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
    kept: tuple[Tensor, ...],
    d_new: tuple[Tensor, ...],
    d_value: Tensor | None,
    SG: tuple[int, ...],
    static: Static,
    run: Run,
) -> None:
    """Launch one head's backward pass over its rows."""
    kernel = kernels(h.family, static.loss_critic_type)["backward"]
    wide = h.softmax and h.D > WIDE
    narrow = tile(h.D, rows.N, h.bits, deepest(h, backward=True))
    block = streaming_tile(h.D, h.bits) if wide else narrow
    G, clipped = triton.cdiv(rows.N, block.BN), static.clipped and rows.critic
    args: tuple[Any, ...]
    if not h.softmax:
        args = (h.action, h.old, h.new, h.extra, tensors, grads, kept[:2], d_new, d_value)
        args += (rows.N, index, h.draws, h.SH, h.SN, rows.S, SG, h.D, *block[:3])
        args += (block.tail(h.D), block.unroll(h.D, h.heavy), clipped)
        run(kernel, (G,), block.threads, *args)
        return
    chunks = triton.cdiv(h.D, block.T * block.W)
    per = min(4, chunks) if wide else chunks
    groups = triton.cdiv(chunks, per)
    grid = (G, groups if groups == 1 else h.K * groups)
    args = (h.action, *h.old, *h.new, tensors, grads, kept, *d_new, d_value)
    args += (rows.N, index, h.SH, rows.S, SG, h.K, h.D, *block[:3], per, groups, clipped)
    run(kernel, grid, block.threads, *args)
