"""The closed set of functions the mathematics may use, bound to torch.

Distributions, `objective` and `penalty` import bare names from here (and from `series`) and nothing
else; the Triton binding provides the same names. What is not in this list can't be said in a
formula of the loss.
"""

import torch
from torch import Tensor, clamp, sigmoid

from klppo_compile.passes import Inside, constant, eager_on_cpu, many

__all__ = [
    "above",
    "clip",
    "exp",
    "finite",
    "fma",
    "log",
    "magnitude",
    "maximum",
    "minimum",
    "probability",
    "quotient",
    "reduce_phi",
    "sigmoid",
    "where",
    "within",
]


def exp(x: Tensor) -> Tensor:
    """Exponential."""
    if by_inductor_on_cpu(x) and x.dtype == torch.float32:
        return _exp_of_parts(x)
    return torch.exp(x)


def probability(log_p: Tensor) -> Tensor:
    """exp(log_p), of what is not above 0 but for rounding.

    Without the check for what overflows a softmax loss's backward takes nine tenths of the time.
    """
    if by_inductor_on_cpu(log_p) and log_p.dtype == torch.float32:
        return _exp_of_parts(log_p, overflows=False)
    return torch.exp(log_p)


def log(x: Tensor) -> Tensor:
    """Natural logarithm."""
    if by_inductor_on_cpu(x) and x.dtype == torch.float32:
        return _log_of_parts(x)
    return torch.log(x)


def reduce_phi(d: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """phi(d) = d - log(ratio) = rest + phi(u), |u| < 1/2, where ratio is 1 + d: rest and u.

    Near 1 rest is 0 and u is d, which has the digits that 1 + d loses.
    """
    if by_inductor_on_cpu(d) and d.dtype == torch.float32:
        k, f = _parts(ratio)
        u = where(k == 0, d, f)
        return where(ratio < SMALLEST, torch.inf, d - u - k * LOG_2), u
    near = within(d, 0.5)
    return where(near, 0.0, d - torch.log(ratio)), where(near, d, 0.0)


def by_inductor_on_cpu(x: Tensor) -> bool:
    """Whether a compiler for the CPU reads this, and not an exporter."""
    compiling = torch.compiler.is_compiling() and not exporting()
    return compiling and x.device.type == "cpu"


def _is_exporting() -> bool:
    return torch.compiler._is_exporting_flag  # noqa: SLF001


exporting = torch.compiler.is_exporting if torch.__version__ >= "2.12" else _is_exporting
"""Whether torch.export reads this: torch 2.11's dynamo takes its own word for it as always true."""


def _exp_of_parts(x: Tensor, overflows: bool = True) -> Tensor:
    """exp(n log 2 + f) = 2^n exp(f), |f| <= log(2) / 2, to 3 units in the last place.

    The coefficients are those of the least largest error, 3e-9 (Remez 1934). 2^n is (2^(n >> 3))^8
    2^(n & 7), where the powers are integers' shifts: bits read as a float would be read one by one
    at the end of every row. With Sleef's exp2, a call, a softmax loss takes 1.1 times as long.
    What is under exp(-83) is 0, what is over exp(88.3) is infinite. Without fused multiply-add
    (`compile_loss` has it) the product's rounding counts |x| times.
    """
    whole = torch.round(x * LOG2_E)
    n, one = whole.to(torch.int32), torch.ones_like(x, dtype=torch.int32)
    eighth = (one << ((n >> 3) + 15)).to(torch.float32) * (1 / 32768)
    rest = (one << (n & 7)).to(torch.float32)
    f = x - whole * LOG_2
    f2 = f * f
    # Side by side, not one inside the other: a vector's chain of steps is what a loop waits for.
    high = 0.04166838804 + 0.0083687168774 * f + f2 * 0.0013814599232
    series = (1.0 + f) + f2 * (0.49999993448 + 0.16666520632 * f + f2 * high)
    quarter = eighth * eighth
    half = quarter * quarter
    out = half * (half * rest * series)
    return where(x < -83.0, 0.0, where(x > 88.3, torch.inf, out) if overflows else out)


def _log_of_parts(x: Tensor) -> Tensor:
    """log(2^k (1 + f)) = k log 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)), to 1.5 units.

    The series is f - f^2 / 2 + f^3 / 3 - ... with the coefficients of the least largest error, 6e-9
    (Remez 1934). Sleef, which Inductor calls for torch.log, takes 2.5 times as long. Denormal and
    negative numbers count as 0 here; infinity and NaN stay.
    """
    k, f = _parts(x)
    f2 = f * f
    low = (0.33333331707 - 0.25000821034 * f) + f2 * (0.20001226907 - 0.16623357379 * f)
    high = (0.14201757458 - 0.1316018156 * f) + f2 * (0.12761579997 - 0.076345020288 * f)
    normal = k * LOG_2 + (f + f2 * (f * (low + f2 * f2 * high) - 0.5))
    return where(x < SMALLEST, -torch.inf, where(x < torch.inf, normal, x))


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """k and f of x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    bits = x.view(torch.int32)
    k = (bits - 0x3F3504F3) >> 23
    return k, (bits - (k << 23)).view(torch.float32) - 1.0


LOG2_E, LOG_2 = 1.4426950408889634, 0.6931471805599453
SMALLEST = 1.17549435e-38  # the smallest normal float32


def finite(x: Tensor) -> Tensor:
    """Neither NaN nor infinite."""
    zero = constant(0.0, x.dtype) if eager_on_cpu(x) else 0.0
    return x - x == zero  # 2 steps where torch.isfinite takes 4


def where(condition: "Tensor | Inside", x: "Tensor | float", y: "Tensor | float") -> Tensor:
    """x where the condition holds, else y."""
    if isinstance(condition, Inside):
        return condition.where(x, y)
    if isinstance(x, Tensor):
        if not isinstance(y, Tensor) and eager_on_cpu(x):
            y = constant(y, x.dtype)
    elif isinstance(y, Tensor) and eager_on_cpu(y):
        x = constant(x, y.dtype)
    return torch.where(condition, x, y)


def fma(x: Tensor, y: "Tensor | float", z: "Tensor | float") -> Tensor:
    """x y + z: in eager mode on a CPU one pass over memory, where the operators take two."""
    if not eager_on_cpu(x):
        return x * y + z
    if not isinstance(z, Tensor):
        z = constant(z, x.dtype)
    elif z.numel() not in (1, max(x.numel(), y.numel()) if isinstance(y, Tensor) else x.numel()):
        return x * y + z  # addcmul takes what is broadcast number by number
    return torch.addcmul(z, x, y) if isinstance(y, Tensor) else torch.add(z, x, alpha=y)


def quotient(x: "Tensor | float", y: Tensor) -> Tensor:
    """x / y: as a word, so that a GPU need not divide right by what no formula here divides by."""
    return y.reciprocal() if isinstance(x, float) and x == 1.0 else x / y


def magnitude(x: Tensor) -> Tensor:
    """Absolute value."""
    return x.abs()


def within(x: Tensor, limit: "Tensor | float") -> "Tensor | Inside":
    """|x| < limit, which is finite; false where `x` is NaN."""
    if not eager_on_cpu(x):
        return x.abs() < limit
    if not many(x):
        return x.abs() < (limit if isinstance(limit, Tensor) else constant(limit, x.dtype))
    if isinstance(limit, Tensor):
        return Inside.of(x.abs() - limit.to(x.dtype), -torch.inf, 0.0)
    return Inside.of(x, -limit, limit)


def above(x: Tensor, limit: float) -> "Tensor | Inside":
    """x > limit; false where `x` is NaN."""
    if not eager_on_cpu(x):
        return x > limit
    if not many(x):
        return x > constant(limit, x.dtype)
    # The smallest numbers above 0 are too small for `Inside`.
    return Inside.of(-x if limit else x * -(2.0**64), -torch.inf, -limit)


def maximum(x: Tensor, y: "Tensor | float") -> Tensor:
    """Larger of two; a NaN in `x` stays."""
    return clamp(x, min=y)


def minimum(x: Tensor, y: "Tensor | float") -> Tensor:
    """Smaller of two; a NaN in `x` stays."""
    return clamp(x, max=y)


def clip(x: Tensor, low: "Tensor | float", high: "Tensor | float") -> Tensor:
    """`x` held to [low, high]; a NaN in `x` stays."""
    return clamp(x, low, high)  # type: ignore[arg-type]  # torch types no mixed bounds
