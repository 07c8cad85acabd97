"""Templates of a row's own terms: their sums over the block, and their gradients.

Partials are [G, 16] float32, a row per block, merged in a fixed order without atomics. Columns:
0 objective, 1 KL, 2 ratio, 3 ratio^2, 4 KL approximation, 5 non-finite rows, 6 entropy, 7 rows that
count, 8 critic, 9 values that clipping moves, 10 values that count, 11 error, 12 target, 13 and 14
their squared deviations from the block's own mean, 15 entropies by their coefficients where a row
has several heads.

Metrics are [13 + heads] float32: 0 mean KL, 1 KL approximation, 2 effective sample size, 3 mean
entropy, 4 clip fraction, 5 explained variance, 6 next beta, 7 and 8 the policy's and the critic's
factor from a sum to its reduction, from 9 on the numbers that this launch used: beta, critic_coeff,
clip radius, log of the ratio's cap, each head's entropy_coeff. Backward reads those, so a beta that
moves meanwhile can't reach it.
"""

import triton.language as tl

from klppo_compile.kernels.critic import critic_terms, value_gradient
from klppo_compile.kernels.tiles import block_sums, counting, number, row_value, rows
from klppo_compile.objective import importance, penalised, policy_vjp, usable


def end_head(
    b_head,
    i_n,
    live,
    samples,
    numbers,
    carry,
    out,
    N,
    S: tl.constexpr,
    BN: tl.constexpr,
    CLIPPED: tl.constexpr,
    BONUS: tl.constexpr,
    EXPLAINED: tl.constexpr,
):
    """A head's rows of log-prob, KL and entropy, added to the heads before it; the last one closes.

    carry: [4, N] from the head before and to the head after, log-prob, KL, entropy and entropy by
    its coefficient; None where there is none.
    """
    before, after = carry
    b_log_prob, b_kl, b_entropy = b_head
    size = N.to(tl.int64)
    b_bonus = number(numbers[4]) * b_entropy
    if before is not None:
        b_log_prob = b_log_prob + tl.load(before + i_n)
        b_kl = b_kl + tl.load(before + (size + i_n))
        if BONUS:
            b_entropy = b_entropy + tl.load(before + (2 * size + i_n))
            b_bonus = b_bonus + tl.load(before + (3 * size + i_n))
    if after is not None:
        tl.store(after + i_n, b_log_prob, mask=live)
        tl.store(after + (size + i_n), b_kl, mask=live)
        if BONUS:
            tl.store(after + (2 * size + i_n), b_entropy, mask=live)
            tl.store(after + (3 * size + i_n), b_bonus, mask=live)
    else:
        b_all = (b_log_prob, b_kl, b_entropy, b_bonus)
        several: tl.constexpr = before is not None
        sum_samples(
            b_all, i_n, live, samples, numbers, out, N, S, BN, CLIPPED, BONUS, EXPLAINED, several
        )


def sum_samples(
    b_head,
    i_n,
    live,
    samples,
    numbers,
    out,
    N,
    S: tl.constexpr,
    BN: tl.constexpr,
    CLIPPED: tl.constexpr,
    BONUS: tl.constexpr,
    EXPLAINED: tl.constexpr,
    SEVERAL: tl.constexpr,
):
    """Store the rows' outputs, and the block's row of partials.

    b_head: rows of log-prob, KL, entropy and entropy by its coefficient; a critic alone has none.
    samples: old_log_prob, advantage, value, target, old_value, proximal_log_prob, mask, value_mask,
    with strides S; absent: None. out: partials, log_prob, kl, ratio [N], and losses [N] or None.
    """
    i_g = tl.program_id(0)
    sums_at = out[0] + i_g.to(tl.int64) * 16
    n_live = tl.minimum(N - i_g.to(tl.int64) * BN, BN).to(tl.float32)
    terms, slots, b_bad = (), (), live & (i_n < 0)
    if b_head is not None:
        tl.store(out[1] + i_n, b_head[0], mask=live)
        tl.store(out[2] + i_n, b_head[1], mask=live)
        terms, slots, b_bad = policy_terms(
            b_head, i_n, live, samples, numbers, out, S, BONUS, SEVERAL
        )
        if samples[6] is None:
            tl.store(sums_at + 7, n_live)
    b_valid = live
    if samples[2] is not None:
        b_valid = counting(live, samples[7], i_n, S[7])
        more, more_slots, b_bad_value = critic_terms(
            b_valid, i_n, live, samples, numbers, out, S, CLIPPED, EXPLAINED
        )
        terms, slots, b_bad = terms + more, slots + more_slots, b_bad | b_bad_value
        if samples[7] is None:
            tl.store(sums_at + 10, n_live)
    terms, slots = terms + (tl.where(b_bad, 1.0, 0.0),), slots + (5,)
    sums = block_sums(terms)
    for k in tl.static_range(len(slots)):
        tl.store(sums_at + slots[k], sums[k])
    if EXPLAINED:
        # `critic_terms` puts the count, the errors and the targets last.
        last: tl.constexpr = len(slots) - 1
        if samples[7] is not None:
            n_live = sums[last - 3]
        inverse = 1.0 / tl.maximum(n_live, 1.0)
        b_error = tl.where(b_valid, terms[last - 2] - sums[last - 2] * inverse, 0.0)
        b_target = tl.where(b_valid, terms[last - 1] - sums[last - 1] * inverse, 0.0)
        squares = block_sums((b_error * b_error, b_target * b_target))
        for k in tl.static_range(2):
            tl.store(sums_at + (13 + k), squares[k])


def policy_terms(
    b_head,
    i_n,
    live,
    samples,
    numbers,
    out,
    S: tl.constexpr,
    BONUS: tl.constexpr,
    SEVERAL: tl.constexpr,
):
    """What is summed of a row's policy, the columns it goes to, and which rows are not finite."""
    b_log_prob, b_kl, b_entropy, b_bonus = b_head
    b_old, b_advantage = row_value(samples[0], i_n, S[0]), row_value(samples[1], i_n, S[1])
    b_counts = counting(live, samples[6], i_n, S[6])
    b_ratio = importance(b_log_prob, b_old, number(numbers[3]))
    tl.store(out[3] + i_n, b_ratio, mask=live)
    b_objective = penalised(b_ratio, b_advantage, b_kl, number(numbers[0]))
    b_anchor = b_old
    if samples[5] is not None:
        b_anchor = row_value(samples[5], i_n, S[5])
    terms = (b_objective, b_kl, b_ratio, b_ratio * b_ratio, b_anchor - b_log_prob)
    slots = (0, 1, 2, 3, 4)
    if BONUS:
        terms, slots = terms + (b_entropy,), slots + (6,)
        if SEVERAL:
            terms, slots = terms + (b_bonus,), slots + (15,)
    if samples[6] is not None:
        terms, slots = terms + (tl.full(live.shape, 1.0, tl.float32),), slots + (7,)
    selected = ()
    for k in tl.static_range(len(terms)):
        selected = selected + (tl.where(b_counts, terms[k], 0.0),)
    if out[4] is not None:
        tl.store(out[4] + i_n, selected[0], mask=live)
        if BONUS:
            tl.store(out[5] + i_n, tl.where(b_counts, -b_bonus, 0.0), mask=live)
    return selected, slots, b_counts & ~usable(b_log_prob, b_kl, b_old, b_objective)


def sample_gradients(
    b_log_prob,
    i_n,
    live,
    samples,
    grads,
    metrics,
    d_value,
    HEAD,
    S: tl.constexpr,
    SG: tl.constexpr,
    BN: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Gradients [BN] of a head's log-prob, KL and entropy; the value's is stored, unless None.

    HEAD: which head of the row. SG: strides of the three upstream gradients.
    """
    b_old, b_advantage = row_value(samples[0], i_n, S[0]), row_value(samples[1], i_n, S[1])
    b_ratio = importance(b_log_prob, b_old, tl.load(metrics + 12))
    scale = tl.load(metrics + 7)
    b_g_objective = row_value(grads[0], i_n, SG[0]) * scale
    b_g_entropy = 0.0 * scale
    if grads[1] is not None:
        b_g_entropy = row_value(grads[1], i_n, SG[1]) * scale
    beta, entropy_coeff = tl.load(metrics + 9), tl.load(metrics + (13 + HEAD))
    b_g = policy_vjp(b_g_objective, b_g_entropy, b_ratio, b_advantage, beta, entropy_coeff)
    if d_value is not None:
        value_gradient(i_n, live, samples, grads, metrics, d_value, S, SG, CLIPPED)
    return (
        tl.broadcast_to(b_g[0], [BN]),
        tl.broadcast_to(b_g[1], [BN]),
        tl.broadcast_to(b_g[2], [BN]),
    )


def critic_forward(
    samples,
    numbers,
    out,
    N,
    S: tl.constexpr,
    BN: tl.constexpr,
    CLIPPED: tl.constexpr,
    EXPLAINED: tl.constexpr,
):
    """The block's row of partials where the critic's rows are not the policy's."""
    i_n, live = rows(N, BN)
    sum_samples(None, i_n, live, samples, numbers, out, N, S, BN, CLIPPED, False, EXPLAINED, False)


def critic_backward(
    samples,
    grads,
    metrics,
    d_value,
    N,
    S: tl.constexpr,
    SG: tl.constexpr,
    BN: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """The value's gradient, likewise."""
    i_n, live = rows(N, BN)
    value_gradient(i_n, live, samples, grads, metrics, d_value, S, SG, CLIPPED)
