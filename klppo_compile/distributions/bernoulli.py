"""Bernoulli: head output `logits`, action 0 or 1.

Elementwise, in nats. Swapping 0 and 1 flips the sign of the logits and leaves KL and entropy as
they are: both are written for the rarer outcome, where nothing cancels.
"""

from torch import Tensor

from klppo_compile.records import Factorised
from klppo_compile.series import log_one_plus, phi, psi, psi_near, softplus
from klppo_compile.vocabulary import exp, magnitude, maximum, sigmoid, where


def log_prob(action: Tensor, logits: Tensor) -> Tensor:
    """log p(action) = action z - softplus(z)."""
    return action * logits - maximum(logits, 0.0) - log_one_plus(exp(-magnitude(logits)))


def kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(old || new) = q psi(w) - phi(q (psi(w) - w)), with w the fall of the rarer one's logit.

    It is the softmax form over two actions with the other's logit as the constant. Far out, where
    exp(-w) could overflow, nothing cancels in the plain q w + softplus(new) - softplus(old).
    """
    fall = where(old_logits > 0.0, logits - old_logits, old_logits - logits)
    rare = -magnitude(old_logits)
    q = sigmoid(rare)
    p = psi(fall)
    exact = q * p - phi(q * (p - fall))
    plain = q * fall + softplus(rare - fall) - softplus(rare)
    return where(magnitude(fall) < 8.0, exact, plain)


def entropy(logits: Tensor) -> Tensor:
    """softplus(z) - z sigmoid(z), an even function, taken at -|z|."""
    rare = -magnitude(logits)
    return softplus(rare) - rare * sigmoid(rare)


def vjp(
    g_log_prob: Tensor,
    g_kl: Tensor,
    g_entropy: Tensor,
    action: Tensor,
    old_logits: Tensor,
    logits: Tensor,
) -> tuple[Tensor]:
    """The three gradients pulled back to the logits.

    The KL's is p - q = p (1 - q) (1 - exp(-rise)), which does not cancel.
    """
    p, q = sigmoid(logits), sigmoid(old_logits)
    rise = logits - old_logits
    close = p * sigmoid(-old_logits) * (rise - psi_near(rise))
    d_kl = where(magnitude(rise) < 0.5, close, p - q)
    d_entropy = logits * p * sigmoid(-logits)
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
