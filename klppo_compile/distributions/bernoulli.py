"""Bernoulli: head output `logits`, action 0 or 1.

Elementwise, in nats. Swapping 0 and 1 flips the sign of the logits and leaves KL and entropy as
they are: both are written for the rarer outcome, where nothing cancels.
"""

from torch import Tensor

from klppo_compile.records import Factorised
from klppo_compile.series import log_one_plus, phi_near, psi, softplus, tanh_half_near
from klppo_compile.vocabulary import (
    above,
    exp,
    log,
    magnitude,
    maximum,
    minimum,
    quotient,
    where,
    within,
)


def log_prob(action: Tensor, logits: Tensor) -> Tensor:
    """log p(action) = action z - softplus(z)."""
    return action * logits - softplus(logits)


def kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(old || new) = q psi(w) - phi(m), m = q (psi(w) - w), w the fall of the rarer one's logit.

    It is the softmax form over two actions with the other's logit as the constant. Where m is
    large nothing cancels in the plain q w + softplus(new) - softplus(old), and where exp(-w) is, q
    may have lost its digits: it can be as small as float32 has it, or 0.
    """
    rare = where(above(old_logits, 0.0), -logits, logits)
    size = magnitude(old_logits)
    falling = exp(-size)
    rest = quotient(1.0, 1.0 + falling)
    fall = -size - rare
    q = falling * rest
    p = psi(fall)
    m = q * (p - fall)
    plain = q * fall + maximum(rare, 0.0) + log_one_plus(exp(-magnitude(logits))) + log(rest)
    return where((m < 1.0) & (fall > -30.0), q * p - phi_near(m), plain)


def entropy(logits: Tensor) -> Tensor:
    """softplus(z) - z sigmoid(z), an even function, taken at -|z|."""
    size = magnitude(logits)
    falling = exp(-size)
    return log_one_plus(falling) + size * falling * quotient(1.0, 1.0 + falling)


def vjp(
    g_log_prob: Tensor,
    g_kl: Tensor,
    g_entropy: Tensor,
    action: Tensor,
    old_logits: Tensor,
    logits: Tensor,
) -> tuple[Tensor]:
    """The three gradients pulled back to the logits.

    The KL's is p - q = tanh((new - old) / 2) (p (1 - q) + q (1 - p)), which does not cancel; with
    (1 - p) / p = exp(-z) the second factor is p q (exp(-new) + exp(-old)). Where the logits are far
    apart and both positive, it is (1 - q) - (1 - p), for p and q are near 1.
    """
    odds, old_odds = exp(-logits), exp(-old_logits)
    p, q = quotient(1.0, 1.0 + odds), quotient(1.0, 1.0 + old_odds)
    rise = logits - old_logits
    # Where the sum is infinite, p q is 0.
    both = p * q * minimum(odds + old_odds, 1e38)
    far = where(above(minimum(logits, old_logits), 0.0), old_odds * q - odds * p, p - q)
    d_kl = where(within(rise, 0.25), tanh_half_near(rise) * both, far)
    d_entropy = logits * (p - p * p)
    return (g_log_prob * (action - p) + g_kl * d_kl - g_entropy * d_entropy,)


FAMILY = Factorised(
    name="bernoulli",
    distribution="Bernoulli",
    parameters=("logits",),
    log_prob=log_prob,
    kl=kl,
    entropy=entropy,
    vjp=vjp,
)
