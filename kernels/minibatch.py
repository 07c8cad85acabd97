"""Templates of the minibatch: the blocks' partials merged, and what follows from their sums."""

import triton
import triton.language as tl

from klppo_compile.kernels.tiles import number
from klppo_compile.objective import effective_sample_size, explained_variance
from klppo_compile.penalty import adaptive

EPS = tl.constexpr(1.1920928955078125e-07)  # of float32


def merge(partials, first, last, BITS: tl.constexpr, EXPLAINED: tl.constexpr, BG: tl.constexpr):
    """Sums [16] of the rows from first to last, and the two sums of squared deviations.

    BITS: the columns that are stored.
    """
    i_k = tl.arange(0, 16)[None, :]
    stored = ((BITS >> i_k) & 1) != 0
    b_sum = tl.zeros([BG, 16], tl.float32)
    for j in range(first, last, BG):
        i_g = j + tl.arange(0, BG)[:, None]
        b_sum += tl.load(partials + (i_g * 16 + i_k), mask=stored & (i_g < last), other=0.0)
    b_sum = tl.sum(b_sum, 0)
    b_error2, b_target2 = tl.zeros([BG], tl.float32), tl.zeros([BG], tl.float32)
    if EXPLAINED:
        inverse = 1.0 / tl.maximum(entry(b_sum, 10), 1.0)
        error, target = entry(b_sum, 11) * inverse, entry(b_sum, 12) * inverse
        for j in range(first, last, BG):
            b_at = partials + (j + tl.arange(0, BG)) * 16
            there = j + tl.arange(0, BG) < last
            b_n = tl.load(b_at + 10, mask=there, other=0.0)
            b_inverse = 1.0 / tl.maximum(b_n, 1.0)
            b_error = tl.load(b_at + 11, mask=there, other=0.0) * b_inverse - error
            b_target = tl.load(b_at + 12, mask=there, other=0.0) * b_inverse - target
            b_error2 += tl.load(b_at + 13, mask=there, other=0.0) + b_n * b_error * b_error
            b_target2 += tl.load(b_at + 14, mask=there, other=0.0) + b_n * b_target * b_target
    return b_sum, tl.sum(b_error2, 0), tl.sum(b_target2, 0)


@triton.jit
def entry(b_sum, k: tl.constexpr):
    """The k-th of a block's entries [16], as []."""
    return tl.sum(tl.where(tl.arange(0, 16) == k, b_sum, 0.0), 0)


def fold(partials, folded, G, BITS: tl.constexpr, EXPLAINED: tl.constexpr, BG: tl.constexpr):
    """BG rows of the partials to one, so that many blocks don't queue before one program."""
    first = tl.program_id(0) * BG
    b_sum, error2, target2 = merge(partials, first, tl.minimum(first + BG, G), BITS, EXPLAINED, BG)
    i_k = tl.arange(0, 16)
    b_sum = tl.where(i_k == 13, error2, tl.where(i_k == 14, target2, b_sum))
    tl.store(folded + (tl.program_id(0) * 16 + i_k), b_sum, mask=((BITS >> i_k) & 1) != 0)


def finalize(
    partials,
    numbers,
    coeffs,
    losses,
    metrics,
    nonfinite,
    G,
    BITS: tl.constexpr,
    EXPLAINED: tl.constexpr,
    MEAN: tl.constexpr,
    BG: tl.constexpr,
):
    """One program: losses [1], None where they are per row; metrics; rows that aren't finite.

    numbers: beta, critic_coeff, clip radius, log of the ratio's cap, beta's rule. coeffs: of the
    heads' entropies.
    """
    b_bad = tl.zeros([BG], tl.int64)
    for j in range(0, G, BG):
        i_g = j + tl.arange(0, BG)
        b_bad += tl.load(partials + (i_g * 16 + 5), mask=i_g < G, other=0.0).to(tl.int64)
    tl.store(nonfinite, tl.sum(b_bad, 0))
    b_sum, error2, target2 = merge(partials, 0, G, BITS, EXPLAINED, BG)
    beta, critic_coeff, radius, log_cap = (
        number(numbers[0]),
        number(numbers[1]),
        number(numbers[2]),
        number(numbers[3]),
    )
    n, inverse = entry(b_sum, 7), 1.0 / tl.maximum(entry(b_sum, 7), 1.0)
    n_value = tl.maximum(entry(b_sum, 10), 1.0)
    scale, value_scale = 1.0, 1.0
    if MEAN:
        scale, value_scale = inverse, 1.0 / n_value
    objective, entropy, critic = losses
    if objective is not None:
        tl.store(objective, entry(b_sum, 0) * scale)
    if entropy is not None:
        b_bonus = entry(b_sum, 15)
        if len(coeffs) == 1:
            b_bonus = number(coeffs[0]) * entry(b_sum, 6)
        tl.store(entropy, -b_bonus * scale)
    if critic is not None:
        tl.store(critic, critic_coeff * entry(b_sum, 8) * value_scale)
    mean_kl = entry(b_sum, 1) * inverse
    band = (
        number(numbers[4]),
        number(numbers[5]),
        number(numbers[6]),
        number(numbers[7]),
        number(numbers[8]),
    )
    tl.store(metrics + 0, mean_kl)
    tl.store(metrics + 1, entry(b_sum, 4) * inverse)
    tl.store(metrics + 2, effective_sample_size(entry(b_sum, 2), entry(b_sum, 3)))
    tl.store(metrics + 3, entry(b_sum, 6) * inverse)
    tl.store(metrics + 4, entry(b_sum, 9) / n_value)
    tl.store(metrics + 5, explained_variance(error2, target2, n_value, EPS))
    tl.store(metrics + 6, adaptive(beta, mean_kl, n, *band))
    used = (scale, value_scale, beta, critic_coeff, radius, log_cap)
    for k in tl.static_range(6):
        tl.store(metrics + 7 + k, used[k])
    for k in tl.static_range(len(coeffs)):
        tl.store(metrics + 13 + k, number(coeffs[k]))
