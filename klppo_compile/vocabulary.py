"""The closed set of functions the mathematics may use, bound to torch.

Distributions, `objective` and `penalty` import bare names from here (and from `series`) and nothing
else; the Triton binding provides the same names. What is not in this list can't be said in a
formula of the loss.
"""

import torch
from torch import Tensor, clamp, sigmoid, where

__all__ = [
    "clip",
    "exp",
    "finite",
    "log",
    "magnitude",
    "maximum",
    "minimum",
    "quotient",
    "sigmoid",
    "where",
]


def exp(x: Tensor) -> Tensor:
    """Exponential."""
    if _compiled_for_cpu(x) and x.dtype == torch.float32:
        # Sleef's exp2 takes 0.7 times as long as its exp. The product's rounding counts |x| times:
        # 1e-6 where the result is 1e-7, nothing near 1.
        return torch.exp2(x * LOG2_E)
    return torch.exp(x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm."""
    if _compiled_for_cpu(x) and x.dtype == torch.float32:
        return _log_of_parts(x)
    return torch.log(x)


def _compiled_for_cpu(x: Tensor) -> bool:
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu"


def _log_of_parts(x: Tensor) -> Tensor:
    """log(m 2^k) = k log 2 + log m, m in [sqrt(1/2), sqrt(2)), to a unit in the last place.

    The method and the four coefficients are fdlibm's (Sun Microsystems 1993, e_logf.c). Inductor
    calls Sleef for torch.log, which takes 2.2 times as long: 1.4 times for the whole Gaussian loss.
    """
    bits = x.view(torch.int32)
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).view(torch.float32) - 1.0
    s = f / (2.0 + f)
    z = s * s
    tail = z * (0.66666662693 + z * (0.40000972152 + z * (0.28498786688 + z * 0.24279078841)))
    half = 0.5 * f * f
    low, high = k * 9.0580006145e-06, k * 0.69313812256
    normal = high - ((half - (s * (half + tail) + low)) - f)
    # A denormal number counts as 0 here; infinity and NaN stay.
    edge = where(x >= 0.0, where(x < 1.0, -torch.inf, x), torch.nan)
    return where((x >= SMALLEST) & (x < torch.inf), normal, edge)


LOG2_E = 1.4426950408889634
SMALLEST = 1.17549435e-38  # the smallest normal float32


def finite(x: Tensor) -> Tensor:
    """Neither NaN nor infinite."""
    return x - x == 0.0  # 2 steps where torch.isfinite takes 4


def quotient(x: "Tensor | float", y: Tensor) -> Tensor:
    """x / y: as a word, so that a GPU need not divide right by what no formula here divides by."""
    return x / y


def magnitude(x: Tensor) -> Tensor:
    """Absolute value."""
    return x.abs()


def maximum(x: Tensor, y: "Tensor | float") -> Tensor:
    """Larger of two; a NaN in `x` stays."""
    return clamp(x, min=y)


def minimum(x: Tensor, y: "Tensor | float") -> Tensor:
    """Smaller of two; a NaN in `x` stays."""
    return clamp(x, max=y)


def clip(x: Tensor, low: "Tensor | float", high: "Tensor | float") -> Tensor:
    """`x` held to [low, high]; a NaN in `x` stays."""
    return clamp(x, low, high)  # type: ignore[arg-type]  # torch types no mixed bounds
