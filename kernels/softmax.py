"""Templates of softmax families: a row's moments, summed over its actions, then closed.

K heads per row are added up. What a head's row keeps for backward, [5, N * K] float32: old and new
log-normaliser, entropy, m, and the shift of the constants.
"""

import triton.language as tl

from klppo_compile.kernels.samples import end_head, sample_gradients
from klppo_compile.kernels.specialise import Free
from klppo_compile.kernels.tiles import (
    columns,
    counting,
    load,
    offset,
    plus,
    row_max,
    row_sum,
    rows,
    spread,
    store_counting,
)
from klppo_compile.kernels.vocabulary import exp, log, quotient

fall, level = Free("fall"), Free("level")
moments, close = Free("moments"), Free("close")
pulls, vjp = Free("pulls"), Free("vjp")
LOWEST = tl.constexpr(float("-inf"))


def softmax_forward(
    action,
    old,
    new,
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
    BN: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    CLIPPED: tl.constexpr,
    BONUS: tl.constexpr,
    EXPLAINED: tl.constexpr,
):
    """Up to a few thousand actions: two sweeps for the constants, one for the moments.

    SH: strides of row and head for action [N, K], old and new [N, K, D].
    """
    i_n, live = rows(N, BN)
    b_zero = tl.zeros([BN], tl.float32)
    b_head = (b_zero, b_zero, b_zero)
    for k in range(0, K):
        b_old_at = old + (spread(i_n) * SH[2] + offset(k, SH[3], K))
        b_new_at = new + (spread(i_n) * SH[4] + offset(k, SH[5], K))
        b_refs = constants(b_old_at, b_new_at, D, BN, T, W)
        b_sums = row_moments(b_old_at, b_new_at, b_refs, D, BN, T, W)
        b_closed = close_head(action, new, b_refs, b_sums, kept, i_n, k, live, N, SH, K, D)
        b_head = plus(b_head, b_closed)
    end_head(b_head, i_n, live, samples, numbers, carry, out, N, S, BN, CLIPPED, BONUS, EXPLAINED)


def constants(
    b_old_at, b_new_at, D: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    """Constants of the old and the new logits [BN], read from where each row begins."""
    b_old_top = tl.full([BN, T, W], LOWEST, tl.float32)
    b_top = b_old_top
    for j in tl.static_range(0, D, T * W):
        i_a = columns(j, T, W)
        b_old_top = tl.maximum(b_old_top, load(b_old_at + i_a, i_a < D, LOWEST))
        b_top = tl.maximum(b_top, load(b_new_at + i_a, i_a < D, LOWEST))
    b_old_top, b_top = row_max(b_old_top), row_max(b_top)
    b_q = tl.zeros([BN, T, W], tl.float32)
    b_fall = b_q
    for j in tl.static_range(0, D, T * W):
        i_a = columns(j, T, W)
        b_old, b_new = load(b_old_at + i_a, i_a < D, LOWEST), load(b_new_at + i_a, i_a < D, LOWEST)
        x = b_old - spread(b_old_top)
        q = exp(x)
        b_q, b_fall = b_q + q, b_fall + q * fall(x, b_old, b_new)
    return b_old_top, level(b_old_top, b_top, quotient(row_sum(b_fall), row_sum(b_q)))


def row_moments(
    b_old_at, b_new_at, b_refs, D: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    """Log-normalisers less the constants, and the means of u, psi(u) and y: what `close` takes."""
    b_old_ref, b_ref = b_refs
    b_q = tl.zeros([BN, T, W], tl.float32)
    b_p, b_u, b_psi, b_y = b_q, b_q, b_q, b_q
    for j in tl.static_range(0, D, T * W):
        i_a = columns(j, T, W)
        b_old, b_new = load(b_old_at + i_a, i_a < D, LOWEST), load(b_new_at + i_a, i_a < D, LOWEST)
        x, y = b_old - spread(b_old_ref), b_new - spread(b_ref)
        q, p, u = exp(x), exp(y), fall(x, b_old, b_new) - spread(b_old_ref - b_ref)
        u, psi_u, y, _ = moments(q, p, p, u, y)
        b_q, b_p, b_u, b_psi, b_y = b_q + q, b_p + p, b_u + u, b_psi + psi_u, b_y + y
    q, p = row_sum(b_q), row_sum(b_p)
    u, psi_u = quotient(row_sum(b_u), q), quotient(row_sum(b_psi), q)
    return log(q), log(p), u, psi_u, quotient(row_sum(b_y), p)


def close_head(
    action,
    new,
    b_refs,
    b_sums,
    kept,
    i_n,
    k,
    live,
    N,
    SH: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
):
    """Log-prob, KL and entropy of a head's rows; what backward needs is kept.

    b_refs: the constants of old and new logits; b_sums: see `row_moments`. An action out of range
    has the log-prob NaN.
    """
    b_old_ref, b_ref = b_refs
    log_q, log_p, u, psi_u, y = b_sums
    b_action = tl.load(action + (i_n * SH[0] + offset(k, SH[1], K))).to(tl.int64)
    b_at = tl.minimum(tl.maximum(b_action, 0), D - 1)
    b_picked = tl.load(new + (i_n * SH[4] + offset(k, SH[5], K) + b_at)).to(tl.float32) - b_ref
    b_picked = tl.where(b_action == b_at, b_picked, float("nan"))
    b_log_prob, b_kl, b_entropy, b_m = close(b_picked, log_q, log_p, u, psi_u, y)
    b_kept = (b_old_ref + log_q, b_ref + log_p, b_entropy, b_m, b_old_ref - b_ref)
    for i in tl.static_range(5):
        tl.store(kept + (i * (N.to(tl.int64) * K) + i_n * K + k), b_kept[i], mask=live)
    return b_log_prob, b_kl, b_entropy


def softmax_backward(
    action,
    old,
    new,
    samples,
    grads,
    kept,
    d_new,
    d_value,
    N,
    HEAD,
    SH: tl.constexpr,
    S: tl.constexpr,
    SG: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Gradient of the logits [N, K, D], elementwise given the row's values.

    And of the value, unless None. HEAD: which of the row's action heads it is.

    A program takes CHUNKS chunks of its rows; where those are all (GROUPS = 1), of all heads.
    kept: metrics, log_prob, rows [5, N K].
    """
    metrics, row_log_prob, row_kept = kept
    i_n, live = rows(N, BN)
    b_log_prob = tl.load(row_log_prob + i_n)
    b_g = sample_gradients(
        b_log_prob, i_n, live, samples, grads, metrics, d_value, HEAD, S, SG, BN, CLIPPED
    )
    b_counts = counting(live, samples[6], i_n, S[6])
    first = tl.program_id(1) // GROUPS
    heads: tl.constexpr = K if GROUPS == 1 else 1
    for k in range(first, first + heads):
        o_kept, size = i_n * K + k, N.to(tl.int64) * K
        b_old_lse, b_lse = tl.load(row_kept + o_kept), tl.load(row_kept + (size + o_kept))
        b_entropy, b_m = (
            tl.load(row_kept + (2 * size + o_kept)),
            tl.load(row_kept + (3 * size + o_kept)),
        )
        b_shift = tl.load(row_kept + (4 * size + o_kept))
        b_pull, b_scale, b_near = pulls(b_g[0], b_g[2], b_entropy, b_m)
        b_action = tl.load(action + (i_n * SH[0] + offset(k, SH[1], K))).to(tl.int64)
        # In 32 bits, one comparison per action: LLVM sees through a clamp and compares all 64.
        b_action = spread(tl.where((b_action >= 0) & (b_action < D), b_action.to(tl.int32), -1))
        for j in tl.static_range(0, CHUNKS):
            i_a = columns(((tl.program_id(1) % GROUPS) * CHUNKS + j) * (T * W), T, W)
            valid = i_a < D
            b_old = load(old + (spread(i_n) * SH[2] + offset(k, SH[3], K) + i_a), valid, 0.0)
            b_new = load(new + (spread(i_n) * SH[4] + offset(k, SH[5], K) + i_a), valid, 0.0)
            b_d = vjp(
                spread(b_g[0]),
                spread(b_g[1]),
                spread(b_g[2]),
                spread(b_pull),
                spread(b_scale),
                spread(b_near),
                spread(b_m),
                i_a == b_action,
                b_old - spread(b_old_lse),
                b_new - spread(b_lse),
                (b_old - b_new) - spread(b_shift),
            )
            b_at = d_new + ((spread(i_n) * K + k) * D + i_a)
            store_counting(b_at, b_d, live, b_counts, valid, samples[6], D)
