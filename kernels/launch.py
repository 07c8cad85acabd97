"""Grids and launches. Kernels are built on demand: one set per family and critic distance."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from klppo_compile.kernels import factorised, minibatch, softmax, streaming
from klppo_compile.kernels.layout import Problem, Static
from klppo_compile.kernels.specialise import specialise
from klppo_compile.kernels.tiling import (
    CLOSING,
    WIDE,
    deepest,
    options,
    split,
    streaming_tile,
    tile,
)
from klppo_compile.objective import DISTANCES
from klppo_compile.records import Family, Softmax

FOLD = 1024  # rows of partials that one program of `fold` merges
TEXTS = ("log_prob", "kl", "entropy", "vjp", "correction", "correction_vjp", "moments", "close")


Run = Callable[..., None]


def start(kernel: Any, grid: tuple[int, ...], threads: int, *args: Any) -> None:
    """Launch a kernel."""
    kernel[grid](*args, **options(threads))


@functools.cache
def kernels(family: Family, critic: str) -> dict[str, Any]:
    """Every kernel of a family, by role."""
    bindings = {name: getattr(family, name, None) for name in TEXTS}
    bindings["distance"], bindings["slope_of"] = DISTANCES[critic]
    templates = {
        "forward": factorised.factorised_forward,
        "backward": factorised.factorised_backward,
        "fold": minibatch.fold,
        "finalize": minibatch.finalize,
    }
    if isinstance(family, Softmax):
        templates |= {
            "forward": softmax.softmax_forward,
            "streaming": streaming.streaming_softmax,
            "close": streaming.streaming_close,
            "backward": softmax.softmax_backward,
        }
    return {role: specialise(template, bindings) for role, template in templates.items()}


class Outputs(NamedTuple):
    """What a forward pass returns; losses [1], [*P] with reduction none, [0] where absent."""

    objective: Tensor
    entropy: Tensor
    critic: Tensor
    metrics: Tensor  # [14], see samples.py
    nonfinite: Tensor  # [1] int64
    kl: Tensor  # [*P]
    log_prob: Tensor  # [*P]
    ratio: Tensor  # [*P]
    kept: Tensor  # [5, N K] of softmax heads, else [0]


def outputs(shape: torch.Size, heads: int, like: Tensor, static: Static, critic: bool) -> Outputs:
    """Empty outputs for rows of a shape."""

    def empty(*size: int) -> Tensor:
        return like.new_empty(size, dtype=torch.float32)

    def loss(there: bool) -> Tensor:
        return empty(*shape) if there and static.reduction == "none" else empty(int(there))

    nonfinite = like.new_empty((1,), dtype=torch.int64)
    kept = empty(5, shape.numel() * heads) if heads else empty(0)
    return Outputs(
        objective=loss(True),
        entropy=loss(static.entropy_bonus),
        critic=loss(critic),
        metrics=empty(14),
        nonfinite=nonfinite,
        kl=empty(*shape),
        log_prob=empty(*shape),
        ratio=empty(*shape),
        kept=kept,
    )


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def forward(
    p: Problem, numbers: tuple[Tensor | float, ...], static: Static, run: Run = start
) -> Outputs:
    """Launch the forward pass: rows and partials, then losses, metrics and the next beta."""
    out = outputs(p.shape, p.K if p.softmax else 0, p.new[0], static, p.critic)
    losses = tuple(x if x.numel() or static.reduction == "none" else None for x in out[:3])
    per_row, reduced = (
        (losses, (None,) * 3) if static.reduction == "none" else ((None,) * 3, losses)
    )
    with on(p.new[0].device):
        partials = row_kernels(p, numbers[:5], out, per_row, static, run)
        k, bits = kernels(p.family, static.loss_critic_type), stored(static, p.critic)
        G = partials.shape[0]
        while G > 4 * FOLD:
            folded = partials.new_empty((triton.cdiv(G, FOLD), 16))
            run(
                k["fold"],
                (folded.shape[0],),
                256,
                partials,
                folded,
                G,
                bits,
                static.explained_variance,
                FOLD,
            )
            partials, G = folded, folded.shape[0]
        BG = min(FOLD, max(16, triton.next_power_of_2(max(G, 1))))
        flags = (bits, static.explained_variance, static.reduction == "mean", BG)
        threads = 256 if BG > 256 else 128
        run(
            k["finalize"],
            (1,),
            threads,
            partials,
            numbers,
            reduced,
            out.metrics,
            out.nonfinite,
            G,
            *flags,
        )
    return out


def row_kernels(
    p: Problem,
    numbers: tuple[Tensor | float, ...],
    out: Outputs,
    losses: tuple[Tensor | None, ...],
    static: Static,
    run: Run,
) -> Tensor:
    """Launch what reads the rows; their partials [G, 16]."""
    k = kernels(p.family, static.loss_critic_type)
    wide = p.softmax and p.D > WIDE
    block = CLOSING if wide else tile(p.D, p.N, p.bits, deepest(p))
    G = triton.cdiv(p.N, block.BN)
    partials = out.metrics.new_empty((G, 16))
    common = (p.rows, numbers, (partials, out.log_prob, out.kl, out.ratio, *losses))
    flags = (static.clipped, static.entropy_bonus, static.explained_variance)
    args: tuple[Any, ...]
    if not p.N:
        return partials
    if not p.softmax:
        args = (p.action, p.old, p.new, p.extra, *common, p.N, p.draws, p.SH, p.SN, p.S, p.D)
        run(
            k["forward"],
            (G,),
            block.threads,
            *args,
            *block[:3],
            block.tail(p.D),
            block.unroll(p.D, p.heavy),
            *flags,
        )
    elif not wide:
        args = (p.action, *p.old, *p.new, *common, out.kept, p.N, p.SH, p.S, p.K, p.D)
        run(k["forward"], (G,), block.threads, *args, *block[:3], *flags)
    else:
        stream = streaming_tile(p.D, p.bits)
        steps, programs = split(p.N * p.K, p.D, stream)
        moments = partials.new_empty((p.N * p.K, programs, 9))
        args = (p.action, *p.old, *p.new, moments, steps, p.SH, p.K, p.D, stream.T, stream.W)
        run(k["streaming"], (p.N * p.K, programs), stream.threads, *args)
        merged = triton.next_power_of_2(programs)
        args = (
            p.action,
            *p.new,
            moments,
            *common,
            out.kept,
            p.N,
            p.SH,
            p.S,
            p.K,
            p.D,
            programs,
            block.BN,
            merged,
        )
        run(k["close"], (G,), block.threads, *args, *flags)
    return partials


def stored(static: Static, critic: bool) -> int:
    """Which columns of the partials the forward kernels store, as bits; see samples.py."""
    rows = {0, 1, 2, 3, 4, 5, 7}
    rows |= {6} if static.entropy_bonus else set()
    rows |= {8, 10} if critic else set()
    rows |= {9} if static.clipped else set()
    rows |= {11, 12, 13, 14} if static.explained_variance else set()
    return sum(1 << row for row in rows)


def backward(
    p: Problem,
    grads: tuple[Tensor | None, ...],
    kept: tuple[Tensor, ...],
    static: Static,
    run: Run = start,
) -> list[Tensor]:
    """Launch the backward pass: gradients of the new parameters, and of the value if there is one.

    kept: metrics, log_prob, and the rows that softmax heads keep.
    """
    value = p.rows[2]
    d_new = tuple(x.new_empty(shape) for x, shape in zip(p.new, p.shapes, strict=True))
    d_value = None if value is None else value.new_empty(p.shape)
    result = [*d_new] if d_value is None else [*d_new, d_value]
    args: tuple[Any, ...]
    if not p.N:
        return result
    kernel = kernels(p.family, static.loss_critic_type)["backward"]
    SG = tuple(0 if g is None or g.numel() == 1 else 1 for g in grads)
    wide = p.softmax and p.D > WIDE
    narrow = tile(p.D, p.N, p.bits, deepest(p, backward=True))
    block = streaming_tile(p.D, p.bits) if wide else narrow
    G = triton.cdiv(p.N, block.BN)
    with on(p.new[0].device):
        if not p.softmax:
            args = (
                p.action,
                p.old,
                p.new,
                p.extra,
                p.rows,
                grads,
                kept[:2],
                d_new,
                d_value,
                p.N,
                p.draws,
            )
            run(
                kernel,
                (G,),
                block.threads,
                *args,
                p.SH,
                p.SN,
                p.S,
                SG,
                p.D,
                *block[:3],
                block.tail(p.D),
                block.unroll(p.D, p.heavy),
                static.clipped,
            )
            return result
        chunks = triton.cdiv(p.D, block.T * block.W)
        per = min(4, chunks) if wide else chunks
        groups = triton.cdiv(chunks, per)
        grid = (G, groups if groups == 1 else p.K * groups)
        args = (
            p.action,
            *p.old,
            *p.new,
            p.rows,
            grads,
            kept,
            *d_new,
            d_value,
            p.N,
            p.SH,
            p.S,
            SG,
            p.K,
            p.D,
        )
        run(kernel, grid, block.threads, *args, *block[:3], per, groups, static.clipped)
    return result
