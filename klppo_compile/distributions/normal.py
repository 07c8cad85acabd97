"""Diagonal Gaussian: head outputs `loc` and `scale` > 0, action a real number.

Elementwise: every function takes and returns tensors of one shape; a row is the sum of its
elements. Units are nats.
"""

from torch import Tensor

from klppo_compile.records import Factorised
from klppo_compile.series import phi_of_ratio
from klppo_compile.vocabulary import fma, log, quotient

HALF_LOG_2PI = 0.9189385332046727  # log(2 pi) / 2


def log_prob(action: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(action; loc, scale)."""
    z = (action - loc) * quotient(1.0, scale)
    return -0.5 * z * z - log(scale) - HALF_LOG_2PI


def kl(old_loc: Tensor, old_scale: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """KL(old || new) = (t^2 + d^2) / 2 + phi(d), t the shift in scales, 1 + d the scales' ratio."""
    inverse = quotient(1.0, scale)
    t = (loc - old_loc) * inverse
    d = (old_scale - scale) * inverse
    return fma(fma(t, t, d * d), 0.5, phi_of_ratio(d, old_scale * inverse))


def entropy(loc: Tensor, scale: Tensor) -> Tensor:
    """log(scale) + log(2 pi e) / 2."""
    return log(scale) + (HALF_LOG_2PI + 0.5)


def vjp(
    g_log_prob: Tensor,
    g_kl: Tensor,
    g_entropy: Tensor,
    action: Tensor,
    old_loc: Tensor,
    old_scale: Tensor,
    loc: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """The three gradients pulled back to loc and scale."""
    inverse = quotient(1.0, scale)
    z = (action - loc) * inverse
    t = (loc - old_loc) * inverse
    d = (old_scale - scale) * inverse
    d_loc = fma(g_log_prob, z, g_kl * t) * inverse
    spread = fma(t, t, d * (2.0 + d))
    d_scale = (fma(g_log_prob, fma(z, z, -1.0), g_entropy) - g_kl * spread) * inverse
    return d_loc, d_scale


FAMILY = Factorised(
    name="normal",
    distribution="Normal",
    parameters=("loc", "scale"),
    log_prob=log_prob,
    kl=kl,
    entropy=entropy,
    vjp=vjp,
)
