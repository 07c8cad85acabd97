"""What the mathematics may use, bound to Triton: the names of `klppo_compile.vocabulary`."""

import triton
import triton.language as tl

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

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def exp(x):
    """e^x."""
    # 2 instructions; tl.exp rounds alike and takes 5.
    return tl.exp2(x * LOG2_E)


@triton.jit
def probability(log_p):
    """e^log_p, of what is not above 0 but for rounding."""
    return exp(log_p)


@triton.jit
def log(x):
    """Natural logarithm."""
    # 2 instructions; tl.log takes 29 for the last bit and for denormals.
    if tl.target_info.is_cuda():
        return LOG_2 * tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )
    else:
        return tl.log(x)


@triton.jit
def reduce_phi(d, ratio):
    """phi(d) = d - log(ratio) = rest + phi(u), |u| < 1/2, where ratio is 1 + d: rest and u."""
    near = tl.abs(d) < 0.5
    return tl.where(near, 0.0, d - log(ratio)), tl.where(near, d, 0.0)


@triton.jit
def quotient(x, y):
    """x / y."""
    # 2 instructions; x / y takes 9, for divisors below 1e-38 and above 1e38.
    if tl.target_info.is_cuda():
        return x * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, True, 1
        )
    else:
        return x / y


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return quotient(1.0, 1.0 + exp(-x))


@triton.jit
def where(condition, x, y):
    """x where the condition holds, else y."""
    return tl.where(condition, x, y)


@triton.jit
def finite(x):
    """Neither NaN nor infinite."""
    return tl.abs(x) < INFINITY


@triton.jit
def fma(x, y, z):
    """x y + z."""
    return x * y + z


@triton.jit
def magnitude(x):
    """Absolute value."""
    return tl.abs(x)


@triton.jit
def within(x, limit):
    """|x| < limit; false where `x` is NaN."""
    return tl.abs(x) < limit


@triton.jit
def above(x, limit):
    """x > limit; false where `x` is NaN."""
    return x > limit


@triton.jit
def maximum(x, y):
    """Larger of two; a NaN stays."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """Smaller of two; a NaN stays."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clip(x, low, high):
    """x held to [low, high]; a NaN stays."""
    return minimum(maximum(x, low), high)
