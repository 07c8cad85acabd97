"""Parts of templates: a row's critic, its terms and the gradient of its value."""

import triton.language as tl

from klppo_compile.kernels.specialise import Free
from klppo_compile.kernels.tiles import counting, number, row_value
from klppo_compile.objective import clipped_value, moved, pessimistic, pessimistic_slope, usable

distance, slope_of = Free("distance"), Free("slope_of")


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
    """What is summed of a row's critic, the columns it goes to, and which are not finite."""
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


def value_gradient(
    i_n,
    live,
    samples,
    grads,
    metrics,
    d_value,
    S: tl.constexpr,
    SG: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Store the gradient of each row's value."""
    factor = tl.load(metrics + 8) * tl.load(metrics + 10)
    b_d_value = 0.0 * factor
    if grads[2] is not None:
        b_slope = critic_slope(i_n, samples, tl.load(metrics + 11), S, CLIPPED)
        b_d_value = row_value(grads[2], i_n, SG[2]) * factor * b_slope
    b_valid = counting(live, samples[7], i_n, S[7])
    if tl.program_id(1) == 0:
        tl.store(d_value + i_n, tl.where(b_valid, b_d_value, 0.0), mask=live)


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
