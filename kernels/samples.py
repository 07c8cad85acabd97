"""Templates of a row's own terms: their sums over the block, and their gradients.

Partials are [G, 16] float32, a row per block, merged in a fixed order without atomics. Columns:
0 objective, 1 KL, 2 ratio, 3 ratio^2, 4 KL approximation, 5 non-finite rows, 6 entropy, 7 rows that
count, 8 critic, 9 values that clipping moves, 10 values that count, 11 error, 12 target, 13 and 14
their squared deviations from the block's own mean.

Metrics are [14] float32: 0 mean KL, 1 KL approximation, 2 effective sample size, 3 entropy, 4 clip
fraction, 5 explained variance, 6 next beta, 7 and 8 the policy's and the critic's factor from a sum
to its reduction, 9-13 the numbers that this launch used: beta, critic_coeff, clip radius, log of
the ratio's cap, entropy_coeff. Backward reads those, so a beta that moves meanwhile can't reach it.
"""

import triton.language as tl

from klppo_compile.kernels.specialise import Free
from klppo_compile.kernels.tiles import block_sums, counting, number, row_value
from klppo_compile.objective import (
    clipped_value,
    importance,
    moved,
    penalised,
    pessimistic,
    pessimistic_slope,
    policy_vjp,
    usable,
)

distance, slope_of = Free("distance"), Free("slope_of")


def sum_samples(
    b_log_prob,
    b_kl,
    b_entropy,
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
):
    """Store the rows' outputs, and the block's row of partials.

    samples: old_log_prob, advantage, value, target, old_value, proximal_log_prob, mask, value_mask,
    with strides S; absent: None. out: partials, log_prob, kl, ratio [N], and losses [N] or None.
    """
    i_g = tl.program_id(0)
    sums_at = out[0] + i_g.to(tl.int64) * 16
    n_live = tl.minimum(N - i_g.to(tl.int64) * BN, BN).to(tl.float32)
    tl.store(out[1] + i_n, b_log_prob, mask=live)
    tl.store(out[2] + i_n, b_kl, mask=live)
    terms, slots, b_bad = policy_terms(
        b_log_prob, b_kl, b_entropy, i_n, live, samples, numbers, out, S, BONUS
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
    sums = block_sums(*terms)
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
        squares = block_sums(b_error * b_error, b_target * b_target)
        for k in tl.static_range(2):
            tl.store(sums_at + (13 + k), squares[k])


def policy_terms(
    b_log_prob,
    b_kl,
    b_entropy,
    i_n,
    live,
    samples,
    numbers,
    out,
    S: tl.constexpr,
    BONUS: tl.constexpr,
):
    """What is summed of a row's policy, the columns it goes to, and which rows are not finite."""
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
    if samples[6] is not None:
        terms, slots = terms + (tl.full(live.shape, 1.0, tl.float32),), slots + (7,)
    selected = ()
    for k in tl.static_range(len(terms)):
        selected = selected + (tl.where(b_counts, terms[k], 0.0),)
    if out[4] is not None:
        tl.store(out[4] + i_n, selected[0], mask=live)
        if BONUS:
            tl.store(out[5] + i_n, -number(numbers[4]) * selected[5], mask=live)
    return selected, slots, b_counts & ~usable(b_log_prob, b_kl, b_old, b_advantage)


def critic_terms(
    b_valid,
    i_n,
    live,
    samples,
    numbers,
    out,
    S: tl.constexpr,
    CLIPPED: tl.constexpr,
    EXPLAINED: tl.constexpr,
):
    """The same of a row's critic."""
    b_value, b_target = row_value(samples[2], i_n, S[2]), row_value(samples[3], i_n, S[3])
    b_error = b_value - b_target
    b_loss = distance(b_error)
    b_old_value = b_value
    if samples[4] is not None:
        b_old_value = row_value(samples[4], i_n, S[4])
    terms, slots = (), ()
    if CLIPPED:
        radius = number(numbers[2])
        b_clipped_loss = distance(clipped_value(b_value, b_old_value, radius) - b_target)
        b_loss = pessimistic(b_loss, b_clipped_loss)
        b_moved = b_valid & moved(b_value, b_old_value, radius)
        terms, slots = (tl.where(b_moved, 1.0, 0.0),), (9,)
    b_loss = tl.where(b_valid, b_loss, 0.0)
    if out[6] is not None:
        tl.store(out[6] + i_n, number(numbers[1]) * b_loss, mask=live)
    terms, slots = terms + (b_loss,), slots + (8,)
    if samples[7] is not None:
        terms, slots = terms + (tl.where(b_valid, 1.0, 0.0),), slots + (10,)
    if EXPLAINED:
        b_both = (tl.where(b_valid, b_error, 0.0), tl.where(b_valid, b_target, 0.0))
        terms, slots = terms + b_both, slots + (11, 12)
    return terms, slots, b_valid & ~usable(b_value, b_target, b_old_value)


def sample_gradients(
    b_log_prob,
    i_n,
    live,
    samples,
    grads,
    metrics,
    d_value,
    S: tl.constexpr,
    SG: tl.constexpr,
    BN: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Gradients [BN] of each row's log-prob, KL and entropy; the value's is stored.

    SG: strides of the three upstream gradients.
    """
    b_old, b_advantage = row_value(samples[0], i_n, S[0]), row_value(samples[1], i_n, S[1])
    b_ratio = importance(b_log_prob, b_old, tl.load(metrics + 12))
    scale = tl.load(metrics + 7)
    b_g_objective = row_value(grads[0], i_n, SG[0]) * scale
    b_g_entropy = 0.0 * scale
    if grads[1] is not None:
        b_g_entropy = row_value(grads[1], i_n, SG[1]) * scale
    beta, entropy_coeff = tl.load(metrics + 9), tl.load(metrics + 13)
    b_g = policy_vjp(b_g_objective, b_g_entropy, b_ratio, b_advantage, beta, entropy_coeff)
    if d_value is not None:
        b_d_value = 0.0 * scale
        if grads[2] is not None:
            factor = tl.load(metrics + 8) * tl.load(metrics + 10)
            b_slope = critic_slope(i_n, samples, tl.load(metrics + 11), S, CLIPPED)
            b_d_value = row_value(grads[2], i_n, SG[2]) * factor * b_slope
        b_valid = counting(live, samples[7], i_n, S[7])
        if tl.program_id(1) == 0:
            tl.store(d_value + i_n, tl.where(b_valid, b_d_value, 0.0), mask=live)
    zero = tl.zeros([BN], tl.float32)
    return b_g[0] + zero, b_g[1] + zero, b_g[2] + zero


def critic_slope(i_n, samples, radius, S: tl.constexpr, CLIPPED: tl.constexpr):
    """Slope of each row's distance in the value."""
    b_value, b_target = row_value(samples[2], i_n, S[2]), row_value(samples[3], i_n, S[3])
    b_error = b_value - b_target
    b_slope = slope_of(b_error)
    if CLIPPED:
        b_old_value = row_value(samples[4], i_n, S[4])
        b_clipped = clipped_value(b_value, b_old_value, radius) - b_target
        held = moved(b_value, b_old_value, radius)
        b_losses = (distance(b_error), distance(b_clipped))
        b_slope = pessimistic_slope(*b_losses, b_slope, slope_of(b_clipped), held)
    return b_slope
