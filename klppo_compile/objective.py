"""PPO with a KL penalty: terms of a sample, the critic's distances, figures of a minibatch.

Schulman et al. 2017, "Proximal policy optimization algorithms", section 4,
https://arxiv.org/abs/1707.06347. Sums belong to the bindings (`eager`, the kernels); what is not a
sum is here.
"""

from torch import Tensor

from klppo_compile.records import Text
from klppo_compile.vocabulary import clip, exp, finite, fma, magnitude, maximum, minimum, where

# ---- the policy's rows


def importance(log_prob: Tensor, old_log_prob: Tensor, log_cap: Tensor) -> Tensor:
    """pi_new / pi_old of the action, capped.

    The cap lifts the old log-prob, so that the gradient stays (Hilton et al. 2021, PPO-EWMA).
    https://arxiv.org/abs/2110.00641
    """
    return exp(minimum(log_prob - old_log_prob, log_cap))


def penalised(ratio: Tensor, advantage: Tensor, kl: Tensor, beta: Tensor) -> Tensor:
    """beta KL - ratio advantage, what is minimised; with beta = 0 an infinite KL is no penalty."""
    return where(beta > 0.0, beta * kl, 0.0) - ratio * advantage


def usable(a: Tensor, b: Tensor, c: Tensor, d: "Tensor | float" = 0.0) -> Tensor:
    """Whether a row's four numbers are all finite."""
    return finite(a + b + c + d)


def policy_vjp(
    g_objective: Tensor,
    g_entropy: Tensor,
    ratio: Tensor,
    advantage: Tensor,
    beta: Tensor,
    entropy_coeff: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a row's log-prob, KL and entropy."""
    return -g_objective * ratio * advantage, g_objective * beta, -g_entropy * entropy_coeff


# ---- the critic's rows


def l1(error: Tensor) -> Tensor:
    """|error|."""
    return magnitude(error)


def l1_slope(error: Tensor) -> Tensor:
    """Its derivative, 0 at 0."""
    return where(error > 0.0, 1.0, where(error < 0.0, -1.0, 0.0))


def l2(error: Tensor) -> Tensor:
    """error^2."""
    return error * error


def l2_slope(error: Tensor) -> Tensor:
    """Its derivative."""
    return 2.0 * error


def smooth_l1(error: Tensor) -> Tensor:
    """error^2 / 2 near 0, |error| - 1/2 beyond 1 (Girshick 2015, https://arxiv.org/abs/1504.08083)."""
    size = magnitude(error)
    near = minimum(size, 1.0)
    return near * fma(near, -0.5, size)


def smooth_l1_slope(error: Tensor) -> Tensor:
    """Its derivative."""
    return clip(error, -1.0, 1.0)


DISTANCES: dict[str, tuple[Text, Text]] = {
    "l1": (l1, l1_slope),
    "l2": (l2, l2_slope),
    "smooth_l1": (smooth_l1, smooth_l1_slope),
}


def clipped_value(value: Tensor, old_value: Tensor, radius: Tensor) -> Tensor:
    """The value held within `radius` of its estimate at collection time."""
    return old_value + clip(value - old_value, -radius, radius)


def moved(value: Tensor, old_value: Tensor, radius: Tensor) -> Tensor:
    """Whether clipping moves the value."""
    return magnitude(value - old_value) > radius


def pessimistic(loss: Tensor, clipped_loss: Tensor) -> Tensor:
    """The worse of the distances of the value and of the clipped value."""
    return maximum(loss, clipped_loss)


def pessimistic_slope(
    loss: Tensor, clipped_loss: Tensor, slope: Tensor, clipped_slope: Tensor, held: Tensor
) -> Tensor:
    """Its derivative in the value; half of each at a tie, as torch.maximum.

    `held`: clipping moved the value.
    """
    behind = where(held, 0.0, clipped_slope)
    tie = 0.5 * (slope + behind)
    return where(loss > clipped_loss, slope, where(loss < clipped_loss, behind, tie))


# ---- the minibatch


def effective_sample_size(ratio: Tensor, ratio2: Tensor) -> Tensor:
    """(sum of ratios)^2 / sum of squared ratios (Kong 1992)."""
    return where(ratio2 > 0.0, ratio * ratio / ratio2, 0.0)


def explained_variance(error2: Tensor, target2: Tensor, n: "Tensor | int", eps: float) -> Tensor:
    """1 - var(target - value) / var(target), from sums of squared deviations."""
    return 1.0 - error2 / (target2 + eps * n)
