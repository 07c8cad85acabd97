"""Templates of factorised families: a row is the sum of its elements.

Backward recomputes an element; that costs less than keeping it.
"""

import triton.language as tl

from klppo_compile.kernels.samples import end_head, sample_gradients
from klppo_compile.kernels.specialise import Free
from klppo_compile.kernels.tiles import (
    columns,
    counting,
    inside,
    load,
    offset,
    plus,
    row_sum,
    row_value,
    rows,
    spread,
    store_counting,
)

log_prob, kl, entropy, vjp = Free("log_prob"), Free("kl"), Free("entropy"), Free("vjp")
correction, correction_vjp = Free("correction"), Free("correction_vjp")
INSIDE = tl.constexpr(0.5)  # lies inside every parameter's domain: what columns past D read


def factorised_forward(
    action,
    old,
    new,
    extra,
    samples,
    numbers,
    carry,
    out,
    N,
    STEPS,
    SH: tl.constexpr,
    SN: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    TAIL: tl.constexpr,
    UNROLL: tl.constexpr,
    CLIPPED: tl.constexpr,
    BONUS: tl.constexpr,
    EXPLAINED: tl.constexpr,
):
    """Rows to their outputs and the block's partials.

    old, new: the head's parameters. extra: log_volume [N], noise [STEPS, N, D], weights
    [STEPS]; absent: None. SN: strides of the noise and of log_volume. carry: see `end_head`.
    SH: row strides of action, old and new.
    """
    log_volume, noise, weights = extra
    i_n, live = rows(N, BN)
    b_log_prob = tl.zeros([BN, T, W], tl.float32)
    b_kl, b_entropy = b_log_prob, b_log_prob
    whole: tl.constexpr = D - D % (T * W)
    for j in tl.range(0, whole, T * W, loop_unroll_factor=UNROLL):
        b = elements(action, old, new, noise, weights, i_n, j, STEPS, SH, SN, whole, T, W, BONUS)
        b_log_prob, b_kl, b_entropy = b_log_prob + b[0], b_kl + b[1], b_entropy + b[2]
    b_log_prob, b_kl, b_entropy = row_sum(b_log_prob), row_sum(b_kl), row_sum(b_entropy)
    if whole < D:
        # A column or two more would waste most of a whole tile.
        b = elements(
            action, old, new, noise, weights, i_n, whole, STEPS, SH, SN, D, TAIL[0], TAIL[1], BONUS
        )
        b_log_prob, b_kl = b_log_prob + row_sum(b[0]), b_kl + row_sum(b[1])
        b_entropy = b_entropy + row_sum(b[2])
    if log_volume is not None:
        volume = row_value(log_volume, i_n, SN[3])
        b_log_prob, b_entropy = b_log_prob - volume, b_entropy + volume
    b_head = (b_log_prob, b_kl, b_entropy)
    end_head(b_head, i_n, live, samples, numbers, carry, out, N, S, BN, CLIPPED, BONUS, EXPLAINED)


def elements(
    action,
    old,
    new,
    noise,
    weights,
    i_n,
    j,
    STEPS,
    SH: tl.constexpr,
    SN: tl.constexpr,
    END: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    BONUS: tl.constexpr,
):
    """Log-prob, KL and entropy of the elements in the columns from j: tiles, 0 from END on."""
    i_d = columns(j, T, W)
    valid = inside(i_d, END, T, W)
    b_action = load(action + (spread(i_n) * SH[0] + i_d), valid, INSIDE)
    b_old, b_new = head(old, new, i_n, i_d, valid, SH)
    b_entropy = tl.zeros([1, T, W], tl.float32)
    if BONUS:
        b_entropy = entropy(*b_new)
        if noise is not None:
            b_at = noise + (spread(i_n) * SN[1] + offset(i_d, SN[2], END))
            for s in range(0, STEPS):
                b_more = correction(load(b_at, valid, 0.0), *b_new)
                b_entropy += tl.load(weights + s).to(tl.float32) * b_more
                b_at += SN[0]
    b_log_prob = tl.where(valid, log_prob(b_action, *b_new), 0.0)
    return b_log_prob, tl.where(valid, kl(*b_old, *b_new), 0.0), tl.where(valid, b_entropy, 0.0)


def factorised_backward(
    action,
    old,
    new,
    extra,
    samples,
    grads,
    kept,
    d_new,
    d_value,
    N,
    HEAD,
    STEPS,
    SH: tl.constexpr,
    SN: tl.constexpr,
    S: tl.constexpr,
    SG: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    TAIL: tl.constexpr,
    UNROLL: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Gradients of the new parameters [N, D] and, unless None, of the value.

    kept: metrics, log_prob [N]. HEAD: which of the row's heads it is.
    """
    metrics, row_log_prob = kept
    i_n, live = rows(N, BN)
    b_log_prob = tl.load(row_log_prob + i_n)
    b_g = sample_gradients(
        b_log_prob, i_n, live, samples, grads, metrics, d_value, HEAD, S, SG, BN, CLIPPED
    )
    mask = samples[6]
    b_rows = (i_n, live, counting(live, mask, i_n, S[6]), b_g)
    inputs = (action, old, new, extra)
    whole: tl.constexpr = D - D % (T * W)
    for j in tl.range(0, whole, T * W, loop_unroll_factor=UNROLL):
        pull_back(inputs, b_rows, mask, d_new, j, STEPS, SH, SN, D, whole, T, W)
    if whole < D:
        pull_back(inputs, b_rows, mask, d_new, whole, STEPS, SH, SN, D, D, TAIL[0], TAIL[1])


def pull_back(
    inputs,
    b_rows,
    mask,
    d_new,
    j,
    STEPS,
    SH: tl.constexpr,
    SN: tl.constexpr,
    D: tl.constexpr,
    END: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """Store the gradients of the columns from j up to END.

    b_rows: indices [BN], which exist, which count, and the gradients of log-prob, KL and entropy.
    """
    action, old, new, extra = inputs
    i_n, live, b_counts, b_g = b_rows
    _, noise, weights = extra
    b_g_log_prob, b_g_kl, b_g_entropy = spread(b_g[0]), spread(b_g[1]), spread(b_g[2])
    i_d = columns(j, T, W)
    valid = inside(i_d, END, T, W)
    b_action = load(action + (spread(i_n) * SH[0] + i_d), valid, INSIDE)
    b_old, b_new = head(old, new, i_n, i_d, valid, SH)
    b_d = vjp(b_g_log_prob, b_g_kl, b_g_entropy, b_action, *b_old, *b_new)
    if noise is not None:
        b_at = noise + (spread(i_n) * SN[1] + offset(i_d, SN[2], END))
        for s in range(0, STEPS):
            b_weighted = b_g_entropy * tl.load(weights + s).to(tl.float32)
            b_d = plus(b_d, correction_vjp(b_weighted, load(b_at, valid, 0.0), *b_new))
            b_at += SN[0]
    for k in tl.static_range(len(b_d)):
        b_at = d_new[k] + (spread(i_n) * D + i_d)
        store_counting(b_at, b_d[k], live, b_counts, valid, mask, D)


def head(old, new, i_n, i_d, valid, SH: tl.constexpr):
    """Tiles of the old and the new parameters."""
    b_old, b_new = (), ()
    for k in tl.static_range(len(old)):
        b_old = b_old + (load(old[k] + (spread(i_n) * SH[1 + k] + i_d), valid, INSIDE),)
        b_new = b_new + (load(new[k] + (spread(i_n) * SH[1 + len(old) + k] + i_d), valid, INSIDE),)
    return b_old, b_new
