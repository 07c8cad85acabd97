"""Gaussian squashed by tanh: head outputs `loc` and `scale` > 0 of the Gaussian, action in (-1, 1).

tanh is a bijection, so the KL is the Gaussians' own. The entropy is H(N) + E[log |tanh'(x)|], x =
loc + scale * noise; the
expectation has no closed form: `correction` is averaged over standard-normal noise, drawn or at the
    nodes of a quadrature.
Elementwise, in nats. Other bounds than (-1, 1) are a change of unit that `recognise` makes.
"""

from torch import Tensor

from klppo_compile.distributions import normal
from klppo_compile.distributions.normal import entropy, kl
from klppo_compile.records import Factorised
from klppo_compile.series import log_one_plus
from klppo_compile.vocabulary import exp, log, magnitude, quotient

LOG_2 = 0.6931471805599453
normal_log_prob = normal.log_prob
normal_vjp = normal.vjp


def unsquash(action: Tensor) -> Tensor:
    """atanh(action)."""
    return 0.5 * log(quotient(1.0 + action, 1.0 - action))


def log_slope(x: Tensor) -> Tensor:
    """log tanh'(x) = 2 (log 2 - |x| - log(1 + exp(-2 |x|)))."""
    size = magnitude(x)
    return 2.0 * (LOG_2 - size - log_one_plus(exp(-2.0 * size)))


def log_prob(action: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(atanh(action); loc, scale) - log tanh'(atanh(action))."""
    x = unsquash(action)
    return normal_log_prob(x, loc, scale) - log_slope(x)


def correction(noise: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """What the entropy adds to the Gaussian's at one draw of the noise."""
    return log_slope(loc + scale * noise)


def correction_vjp(g: Tensor, noise: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Its gradient pulled back to loc and scale: log tanh' has the slope -2 tanh."""
    x = loc + scale * noise
    falling = exp(-2.0 * magnitude(x))
    tanh = quotient(1.0 - falling, 1.0 + falling) * quotient(x, magnitude(x) + 1e-30)
    d_loc = -2.0 * g * tanh
    return d_loc, d_loc * noise


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
    """The three gradients pulled back to loc and scale, the entropy's without its correction."""
    return normal_vjp(g_log_prob, g_kl, g_entropy, unsquash(action), old_loc, old_scale, loc, scale)


FAMILY = Factorised(
    name="tanh_normal",
    distribution="Normal",
    squashed=True,
    parameters=("loc", "scale"),
    log_prob=log_prob,
    kl=kl,
    entropy=entropy,
    vjp=vjp,
    correction=correction,
    correction_vjp=correction_vjp,
)
