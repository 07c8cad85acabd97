"""Functions that make a KL exact for small updates: `psi` and `phi` vanish to second order at 0.

A KL of two close policies is a small number made of large ones that cancel. Written with these,
every summand is small itself.
"""

from torch import Tensor

from klppo_compile.vocabulary import exp, log, magnitude, maximum, where


def psi(d: Tensor) -> Tensor:
    """d + exp(-d) - 1, without cancellation near 0."""
    return weighted_psi(1.0, exp(-d), d)


def psi_near(d: Tensor) -> Tensor:
    """psi(d) by its Taylor series, for |d| < 1/2, to 8e-8.

    The last term d^5 / 40320 is economised: d^5 is 5 d^3 / 16 - 5 d / 256 to 1 / 512 (Lanczos 1938,
    doi:10.1002/sapm1938171123).
    """
    cubic = (1 / 720 + 5 / 16 / 40320) - d * (1 / 5040)
    tail = d * (d * (d * cubic - 1 / 120) + (1 / 24 - 5 / 256 / 40320)) - 1 / 6
    return d * d * (d * tail + 0.5)


def weighted_psi(q: "Tensor | float", r: Tensor, d: Tensor) -> Tensor:
    """q psi(d), given r = q exp(-d); it spares the exponential where r is at hand."""
    return where(magnitude(d) < 0.5, q * psi_near(d), q * (d - 1.0) + r)


def phi_near(u: Tensor) -> Tensor:
    """phi(u) by the atanh series in r = u / (2 + u), for |u| < 0.6."""
    r = u / (2.0 + u)
    s = r * r
    tail = 1 / 3 + s * (
        1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s * (1 / 13 + s * (1 / 15)))))
    )
    return r * (u - 2.0 * s * tail)


def phi_nearer(u: Tensor) -> Tensor:
    """phi(u) by the same series for |u| < 1/4, where fewer terms do, to 1e-8.

    The last term s^3 / 9 is economised as in `psi_near`, s at most 1 / 49.
    """
    r = u / (2.0 + u)
    s = r * r
    linear = 1 / 5 - 18 / 32 / 9 / 2401
    tail = (1 / 3 + 1 / 32 / 9 / 117649) + s * (linear + s * (1 / 7 + 48 / 32 / 9 / 49))
    return r * (u - 2.0 * s * tail)


def phi(u: Tensor) -> Tensor:
    """u - log(1 + u), without cancellation near 0 (u > -1)."""
    return where(magnitude(u) < 0.5, phi_near(u), u - log(1.0 + u))


def log_one_plus(u: Tensor) -> Tensor:
    """log(1 + u) to the last digits for small u too (u > -1)."""
    return u - phi(u)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digits for very negative x too."""
    return maximum(x, 0.0) + log_one_plus(exp(-magnitude(x)))
