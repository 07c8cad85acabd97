"""Softmax families: head output `logits`, action an index. Per action, then once per row.

x and y are the old and the new logits less constants of their row, u = x - y, and q and p are
exp(x) and exp(y) up to factors of their row. So a row may be taken whole or in chunks, with
whatever constants are at hand: the formulas are exact. Digits are kept where the constants make u
small where q is not, as those of `level` do; where u is small at one rare action alone, the KL
cancels. In nats.
"""

from torch import Tensor

from klppo_compile.records import Softmax
from klppo_compile.series import phi_near, psi_near, weighted_psi
from klppo_compile.vocabulary import (
    above,
    clip,
    exp,
    fma,
    maximum,
    probability,
    quotient,
    where,
    within,
)


def fall(x: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The old less the new logit; its mean is what `level` takes.

    Where the old policy forbids an action, q psi(u) has the limit r: the mass that the KL would
    miss otherwise. Any u of 1/2 or more gives it, for then psi is not taken from its series. What
    exp(-80) is as likely as counts as forbidden: q u is nothing there for a u of 1e10.
    """
    return where(above(x, -80.0), old - new, 1e10)


def level(old_top: Tensor, top: Tensor, mean_fall: Tensor) -> Tensor:
    """The new logits' constant, where the old ones' is their maximum: the mean of u is 0 then.

    It stays so near the new maximum that no exponential overflows, nor does p vanish. Where only
    the new policy forbids an action, the mean is infinite, and the KL with it.
    """
    return clip(old_top - mean_fall, top - 60.0, top + 60.0)


def moments(
    q: Tensor, p: Tensor, r: Tensor, u: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is summed over actions beside q and p; r = q exp(-u), which is p in units of q.

    And psi(u) of a small u, which `vjp_of` takes. Any finite floor under y will do: below it p is
    0, and 0 times infinity would be NaN.
    """
    psi_u = psi_near(u)
    return q * u, weighted_psi(q, r, u, psi_u), p * maximum(y, -1e4), psi_u


def close(
    picked: Tensor, log_q: Tensor, log_p: Tensor, u: Tensor, psi_u: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log pi(a), KL(old || new), entropy and m, from a row's sums.

    These are y at a, the log-normalisers of x and y, and the means of u, psi(u) and y.
    KL = E_q[psi(u)] - phi(m), m = E_q[psi(u) - u], is exact for every constant and does not cancel.
    Where m is large there is nothing to cancel: the plain KL = E_q[u] + log_p - log_q is accurate,
    and stays so where an exponential overflowed; m follows from the normalisers then.
    """
    log_ratio, m = log_p - log_q, psi_u - u
    near = within(m, 0.5)
    kl = maximum(where(near, psi_u - phi_near(m), u + log_ratio), 0.0)
    return picked - log_p, kl, log_p - y, where(near, m, exp(log_ratio) - 1.0)


def pulls(
    g_log_prob: Tensor, g_entropy: Tensor, entropy: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradients of a row's actions share: the pull on p, 1 / (1 + m), and `near`."""
    near = where(within(m, 0.5), 0.5, 0.0)
    return fma(g_entropy, entropy, g_log_prob), quotient(1.0, 1.0 + m), near


def vjp(
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
    """The three gradients pulled back to the logits; `hit` marks the action taken."""
    return vjp_of(
        g_log_prob,
        g_kl,
        g_entropy,
        pull,
        scale,
        near,
        m,
        hit,
        probability(old_log_p),
        probability(log_p),
        log_p,
        u,
        psi_near(u),
    )


def vjp_of(
    g_log_prob: Tensor,
    g_kl: Tensor,
    g_entropy: Tensor,
    pull: Tensor,
    scale: Tensor,
    near: Tensor,
    m: Tensor,
    hit: Tensor,
    q: Tensor,
    p: Tensor,
    log_p: Tensor,
    u: Tensor,
    psi_u: Tensor,
) -> Tensor:
    """`vjp`, given the probabilities and psi(u) of a small u.

    The KL's is p - q. Where p and q are close, |u| < near, it is q (psi(u) - u - m) / (1 + m),
    which does not cancel.
    """
    d_kl = where(within(u, near), q * (psi_u - u - m) * scale, p - q)
    # Any finite floor will do: below it p is 0, and 0 times infinity would be NaN.
    pull = fma(g_entropy, maximum(log_p, -1e4), pull)
    return where(hit, g_log_prob, 0.0) - p * pull + g_kl * d_kl


FAMILY = Softmax(
    name="categorical",
    distribution="Categorical",
    parameters=("logits",),
    fall=fall,
    level=level,
    moments=moments,
    close=close,
    pulls=pulls,
    vjp=vjp,
    vjp_of=vjp_of,
)
