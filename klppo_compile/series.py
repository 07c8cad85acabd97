"""Functions that make a KL exact for small updates: `psi` and `phi` vanish to second order at 0.

A KL of two close policies is a small number made of large ones that cancel. Written with these,
every summand is small itself.
"""

from torch import Tensor

from klppo_compile import passes
from klppo_compile.vocabulary import (
    exp,
    fma,
    magnitude,
    maximum,
    quotient,
    reduce_phi,
    where,
    within,
)


def psi(d: Tensor) -> Tensor:
    """d + exp(-d) - 1, without cancellation near 0."""
    return weighted_psi(1.0, exp(-d), d, psi_near(d))


def psi_near(d: Tensor) -> Tensor:
    """psi(d) by its Taylor series, for |d| < 1/2, to 8e-8.

    The last term d^5 / 40320 is economised: d^5 is 5 d^3 / 16 - 5 d / 256 to 1 / 512 (Lanczos 1938,
    doi:10.1002/sapm1938171123).
    """
    cubic = fma(d, -1 / 5040, 1 / 720 + 5 / 16 / 40320)
    linear = fma(d, fma(d, cubic, -1 / 120), 1 / 24 - 5 / 256 / 40320)
    return d * d * fma(d, fma(d, linear, -1 / 6), 0.5)


def retaken(r: Tensor, d: Tensor, lost: Tensor) -> Tensor:
    """r exp(lost), what rounding took from r = q exp(-d); r itself for a large d.

    q psi(d) is small where d is, but not q d nor r: the two have to be wrong alike. Where r is all
    of it, as where q is e^-75, it keeps the digits that q hasn't.
    """
    return fma(r, where(within(d, 4.0), lost, 0.0), r)


def weighted_psi(q: "Tensor | float", r: Tensor, d: Tensor, near: Tensor) -> Tensor:
    """q psi(d), given r = q exp(-d), which spares the exponential, and psi_near(d)."""
    return where(within(d, 0.5), q * near, fma(d - 1.0, q, r))


@passes.phi
def phi_near(u: Tensor) -> Tensor:
    """phi(u) by the atanh series, for -1/2 <= u <= 1: log(1 + u) is 2 atanh r, r = u / (2 + u)."""
    r = quotient(u, 2.0 + u)
    s = r * r
    return r * fma(-2.0 * s, atanh_tail(s), u)


def atanh_tail(s: Tensor) -> Tensor:
    """(atanh(r) / r - 1) / s, s = r^2 at most 1/9, to 4e-9.

    1/3 + s/5 + s^2/7 + ... with the coefficients of the least largest error (Remez 1934).
    """
    rest = fma(s, fma(s, 0.116268923658, 0.108500204881), 0.142964053774)
    return fma(s, fma(s, rest, 0.199998481526), 0.333333336776)


def phi(u: Tensor) -> Tensor:
    """u - log(1 + u), without cancellation near 0 (u > -1)."""
    return phi_of_ratio(u, 1.0 + u)


def phi_of_ratio(d: Tensor, ratio: Tensor) -> Tensor:
    """phi(d) where 1 + d is at hand as a ratio, which has digits that 1 + d loses near -1."""
    rest, u = reduce_phi(d, ratio)
    return rest + phi_near(u)


def tanh_half_near(d: Tensor) -> Tensor:
    """tanh(d / 2) for |d| < 1/4, to 7e-9; coefficients as in `atanh_tail`."""
    s = d * d
    return d * fma(s, fma(s, 0.00412743940757, -0.0416657499365), 0.499999996824)


@passes.log1p
def log_one_plus(u: Tensor) -> Tensor:
    """log(1 + u) to the last digits for small u too, for -1/2 <= u <= 1."""
    r = quotient(u, 2.0 + u)
    s = r * r
    twice = 2.0 * r
    return fma(twice * s, atanh_tail(s), twice)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digits for very negative x too."""
    return maximum(x, 0.0) + log_one_plus(exp(-magnitude(x)))
