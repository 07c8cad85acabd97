"""Templates of vocabularies: a row of logits is read once, by one program or by several.

And a second time where its KL cancelled.
"""

import triton.language as tl

from klppo_compile.kernels.samples import end_head
from klppo_compile.kernels.softmax import LOWEST, close_head
from klppo_compile.kernels.specialise import Free
from klppo_compile.kernels.tiles import columns, load, plus, row_max, row_sum, rows
from klppo_compile.kernels.vocabulary import exp, log, quotient

fall, level = Free("fall"), Free("level")
moments, close = Free("moments"), Free("close")
# A KL is taken again where it is a smaller part than this of what it is a difference of: at worst
# it has lost 3 of 24 bits then.
CANCELLED = tl.constexpr(8.0)


def streaming_softmax(
    action,
    old,
    new,
    partial,
    STEPS,
    SH: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """One pass over STEPS chunks of one row, with the constants of the action's chunk.

    partial [heads' rows, programs on a row, 9]: both constants, both maxima, sums of q, p, q u,
    q psi(u), p y.
    """
    i_r = tl.program_id(0).to(tl.int64)
    i_n, k = i_r // K, i_r % K
    o_old, o_new = i_n * SH[2] + k * SH[3], i_n * SH[4] + k * SH[5]
    b_action = tl.load(action + (i_n * SH[0] + k * SH[1])).to(tl.int64)
    home = (tl.minimum(tl.maximum(b_action, 0), D - 1) // (T * W)).to(tl.int32)
    i_a = columns(home * (T * W), T, W)
    b_old, b_new = (
        load(old + (o_old + i_a), i_a < D, LOWEST),
        load(new + (o_new + i_a), i_a < D, LOWEST),
    )
    old_ref, ref = tl.max(row_max(b_old), 0), tl.max(row_max(b_new), 0)
    # Any constants are exact, but infinite ones.
    old_ref, ref = tl.where(old_ref > LOWEST, old_ref, 0.0), tl.where(ref > LOWEST, ref, 0.0)
    x = b_old - old_ref
    q = exp(x)
    mass = tl.sum(row_sum(q), 0)
    mean_fall = quotient(tl.sum(row_sum(q * fall(x, b_old, b_new)), 0), mass)
    ref = level(old_ref, ref, tl.where(mass > 0.0, mean_fall, 0.0))
    b_out = partial + (i_r * tl.num_programs(1) + tl.program_id(1)) * 9
    sweep(old + o_old, new + o_new, old_ref, ref, home, b_out, STEPS, D, T, W)


def streaming_again(
    old,
    new,
    partial,
    again,
    STEPS,
    SH: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    BP: tl.constexpr,
):
    """Another pass over a row whose KL cancelled: now the mean change of its logits is known.

    So it is where the action's chunk is rare and the rest of the row moved otherwise. Of all other
    rows the partial moments are copied. again: like `partial`, of which P belong to a row.
    """
    i_r = tl.program_id(0).to(tl.int64)
    b_at = partial + (i_r * (P * 9) + tl.zeros([1], tl.int64))
    log_q, log_p, u, psi_u, y = merged(b_at, P, BP)
    kl = close(u, log_q, log_p, u, psi_u, y)[1]
    b_out = again + (i_r * P + tl.program_id(1)) * 9
    if tl.sum((psi_u > CANCELLED * kl).to(tl.int32), 0) > 0:
        i_n, k = i_r // K, i_r % K
        o_old, o_new = i_n * SH[2] + k * SH[3], i_n * SH[4] + k * SH[5]
        b_old_ref, b_ref = tl.load(b_at), tl.load(b_at + 1)
        b_ref = level(b_old_ref + log_q, b_ref + log_p, u + (b_old_ref - b_ref))
        refs = tl.sum(b_old_ref + log_q, 0), tl.sum(b_ref, 0)
        sweep(old + o_old, new + o_new, refs[0], refs[1], -1, b_out, STEPS, D, T, W)
    else:
        b_in = partial + (i_r * P + tl.program_id(1)) * 9
        for i in tl.static_range(9):
            tl.store(b_out + i, tl.load(b_in + i))


def sweep(
    old,
    new,
    old_ref,
    ref,
    home,
    b_out,
    STEPS,
    D: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """The moments of a program's chunks of one row, with given constants."""
    first = tl.program_id(1) * STEPS
    last = tl.minimum(first + STEPS, tl.cdiv(D, T * W))
    # It begins where it has just read.
    chunk = tl.where((first <= home) & (home < last), home, first)
    b_q = tl.zeros([1, T], tl.float32)
    b_p, b_u, b_psi, b_y, b_old_top, b_top = b_q, b_q, b_q, b_q, b_q, b_q
    for _ in range(first, last):
        i_a = columns(chunk * (T * W), T, W)
        b_old, b_new = load(old + i_a, i_a < D, LOWEST), load(new + i_a, i_a < D, LOWEST)
        x, y = b_old - old_ref, b_new - ref
        old_top, top = tl.maximum(b_old_top, tl.max(x, 2)), tl.maximum(b_top, tl.max(y, 2))
        f, g = exp(b_old_top - old_top), exp(b_top - top)
        x = x - old_top[:, :, None]
        q, p = exp(x), exp(y - top[:, :, None])
        r, u = p * exp(top - old_top)[:, :, None], fall(x, b_old, b_new) - (old_ref - ref)
        u, psi_u, y, _ = moments(q, p, r, u, y)
        b_q, b_u, b_psi = (
            f * b_q + tl.sum(q, 2),
            f * b_u + tl.sum(u, 2),
            f * b_psi + tl.sum(psi_u, 2),
        )
        b_p, b_y = g * b_p + tl.sum(p, 2), g * b_y + tl.sum(y, 2)
        b_old_top, b_top = old_top, top
        chunk = tl.where(chunk + 1 < last, chunk + 1, first)
    old_top, top = tl.max(tl.max(b_old_top, 1), 0), tl.max(tl.max(b_top, 1), 0)
    f, g = exp(b_old_top - old_top), exp(b_top - top)
    b_moments = (
        old_ref,
        ref,
        old_top,
        top,
        total(f * b_q),
        total(g * b_p),
        total(f * b_u),
        total(f * b_psi),
        total(g * b_y),
    )
    for i in tl.static_range(9):
        tl.store(b_out + i, b_moments[i])


def total(b_x):
    """All of a [1, T] block."""
    return tl.sum(tl.sum(b_x, 1), 0)


def streaming_close(
    action,
    new,
    partial,
    samples,
    numbers,
    carry,
    out,
    kept,
    N,
    SH: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    BN: tl.constexpr,
    BP: tl.constexpr,
    CLIPPED: tl.constexpr,
    BONUS: tl.constexpr,
    EXPLAINED: tl.constexpr,
):
    """The P partial moments of each head's row, merged and closed. BP: next power of 2 of P."""
    i_n, live = rows(N, BN)
    b_zero = tl.zeros([BN], tl.float32)
    b_head = (b_zero, b_zero, b_zero)
    for k in range(0, K):
        b_at = partial + (i_n * K + k) * (P * 9)
        b_refs = (tl.load(b_at), tl.load(b_at + 1))
        b_sums = merged(b_at, P, BP)
        b_closed = close_head(action, new, b_refs, b_sums, kept, i_n, k, live, N, SH, K, D)
        b_head = plus(b_head, b_closed)
    end_head(b_head, i_n, live, samples, numbers, carry, out, N, S, BN, CLIPPED, BONUS, EXPLAINED)


def merged(b_at, P: tl.constexpr, BP: tl.constexpr):
    """What `close` takes, from the P partial moments of each row that begin at b_at [BN]."""
    i_p = tl.arange(0, BP)[None, :]
    valid = i_p < P
    b_at = b_at[:, None] + i_p * 9
    b_old_top = tl.load(b_at + 2, mask=valid, other=LOWEST)
    b_top = tl.load(b_at + 3, mask=valid, other=LOWEST)
    old_top, top = tl.max(b_old_top, 1), tl.max(b_top, 1)
    f, g = exp(b_old_top - old_top[:, None]), exp(b_top - top[:, None])
    q = tl.sum(f * tl.load(b_at + 4, mask=valid, other=0.0), 1)
    p = tl.sum(g * tl.load(b_at + 5, mask=valid, other=0.0), 1)
    u = tl.sum(f * tl.load(b_at + 6, mask=valid, other=0.0), 1)
    psi_u = tl.sum(f * tl.load(b_at + 7, mask=valid, other=0.0), 1)
    y = tl.sum(g * tl.load(b_at + 8, mask=valid, other=0.0), 1)
    sums = (quotient(u, q), quotient(psi_u, q), quotient(y, p))
    return (old_top + log(q), top + log(p)) + sums
