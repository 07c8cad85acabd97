"""A family that only the tests know: Exponential, head output `rate`, action >= 0. In nats."""

from torch import Tensor

from klppo_compile.records import Factorised
from klppo_compile.series import phi
from klppo_compile.vocabulary import log


def log_prob(action: Tensor, rate: Tensor) -> Tensor:
    """log p(action)."""
    return log(rate) - rate * action


def kl(old_rate: Tensor, rate: Tensor) -> Tensor:
    """KL(old || new) = phi(d), 1 + d the rates' ratio."""
    return phi((rate - old_rate) * (1.0 / old_rate))


def entropy(rate: Tensor) -> Tensor:
    """1 - log rate."""
    return 1.0 - log(rate)


def vjp(
    g_log_prob: Tensor,
    g_kl: Tensor,
    g_entropy: Tensor,
    action: Tensor,
    old_rate: Tensor,
    rate: Tensor,
) -> tuple[Tensor]:
    """The three gradients pulled back to the rate."""
    inverse = 1.0 / rate
    d_kl = (rate - old_rate) * inverse * (1.0 / old_rate)
    return (g_log_prob * (inverse - action) + g_kl * d_kl - g_entropy * inverse,)


FAMILY = Factorised(
    name="exponential",
    distribution="Exponential",
    parameters=("rate",),
    log_prob=log_prob,
    kl=kl,
    entropy=entropy,
    vjp=vjp,
)
