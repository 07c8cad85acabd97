"""A softmax family that only the tests know: Categorical, its KL in bits."""

import dataclasses

from torch import Tensor

from klppo_compile.distributions import categorical

BIT = 0.6931471805599453  # nats
plain_close, plain_vjp = categorical.FAMILY.close, categorical.FAMILY.vjp
plain_vjp_of = categorical.FAMILY.vjp_of


def in_bits(x: Tensor) -> Tensor:
    """Nats to bits."""
    return x * (1.0 / BIT)


def close_in_bits(
    picked: Tensor, log_q: Tensor, log_p: Tensor, u: Tensor, psi_u: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the plain family's, the KL in bits."""
    log_prob, kl, entropy, m = plain_close(picked, log_q, log_p, u, psi_u, y)
    return log_prob, in_bits(kl), entropy, m


def vjp_of_bits(
    g_log_prob: Tensor,
    g_kl: Tensor,
    g_entropy: Tensor,
    pull: Tensor,
    scale: Tensor,
    near: Tensor,
    m: Tensor,
    hit: Tensor,
    old_log_p: Tensor,
    log_p: Tensor,
    u: Tensor,
) -> Tensor:
    """As the plain family's, of a KL in bits."""
    g = in_bits(g_kl)
    return plain_vjp(g_log_prob, g, g_entropy, pull, scale, near, m, hit, old_log_p, log_p, u)


def given_in_bits(g_log_prob: Tensor, g_kl: Tensor, *rest: Tensor) -> Tensor:
    """As the plain family's where its probabilities are at hand, of a KL in bits."""
    return plain_vjp_of(g_log_prob, in_bits(g_kl), *rest)


FAMILY = dataclasses.replace(
    categorical.FAMILY, name="bits", close=close_in_bits, vjp=vjp_of_bits, vjp_of=given_in_bits
)
