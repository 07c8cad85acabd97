"""Eager mode on a CPU: every operator is a pass over memory, and some are slow ones."""

import ctypes
from collections.abc import Callable
from functools import reduce, wraps
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

Text = Callable[[Tensor], Tensor]
Pass = Callable[..., Tensor]
Number = float | Tensor


def eager_on_cpu(x: Tensor) -> bool:
    """Whether each operator on `x` runs by itself on a CPU, and no compiler or mode reads it."""
    return type(x) is Tensor and x.is_cpu and not torch.compiler.is_compiling()


FEW = 2**14  # numbers, of which operators take as long for being called as for computing


def few(x: Tensor) -> bool:
    """Whether in eager mode on a CPU the count of operators is what takes the time."""
    return eager_on_cpu(x) and x.numel() < FEW


def constant(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor []; making one costs as much as a small operator."""
    known = CONSTANTS.get((value, dtype))
    if known is not None:
        return known
    with torch.inference_mode(False):
        made = torch.scalar_tensor(value, dtype=dtype, device="cpu")
    if type(made) is Tensor and not is_functorch_wrapped_tensor(made):
        CONSTANTS[value, dtype] = made  # and not what a mode or a transform made for itself
    return made


CONSTANTS: dict[tuple[float, torch.dtype], Tensor] = {}


def log1p(text: Text) -> Text:
    """Bind a formula of log(1 + x): eager mode on a CPU takes torch's, which is one operator."""

    @wraps(text)
    def bound(x: Tensor) -> Tensor:
        return torch.log1p(x) if eager_on_cpu(x) else text(x)

    return bound


def phi(text: Text) -> Text:
    """Bind a formula of u - log(1 + u): eager mode on a CPU takes few numbers in float64.

    That has the digits which cancel, in four operators.
    """

    @wraps(text)
    def bound(u: Tensor) -> Tensor:
        if u.dtype != torch.float32 or not few(u):
            return text(u)
        wide = u.double()
        return (wide - torch.log1p(wide)).float()

    return bound


MANY = 2**14  # numbers for which `Inside` is faster than booleans


def many(x: Tensor) -> bool:
    """Whether `Inside` serves this tensor, and sooner than booleans."""
    return x.numel() >= MANY and x.dtype in (torch.float32, torch.float64)


class Inside(NamedTuple):
    """Where low < x < high, in place of booleans. Low is -high or -inf; NaN is nowhere in `x`.

    Comparisons and torch.where go number by number, and where neighbours differ the processor
    guesses wrong: for 70,000 numbers they take 50 to 220 us, a choice by what zeroes the numbers
    inside of an interval, or outside, in vectors, 15 to 50.
    """

    x: Tensor
    low: float
    high: float

    @staticmethod
    def of(x: Tensor, low: float, high: float) -> "Inside":
        """`Inside` of any x, the ends as its type has them; a NaN is outside."""
        if x.dtype == torch.float32:
            low, high = (ctypes.c_float(end).value for end in (low, high))
        return Inside(torch.nan_to_num(x, nan=torch.inf), low, high)

    def where(self, x: Number, y: Number) -> Tensor:
        """x inside, y outside."""
        dtype = self.x.dtype
        if any(isinstance(z, Tensor) and z.dtype != dtype for z in (x, y)):
            return torch.where((self.x > self.low) & (self.x < self.high), x, y)
        zero = constant(0.0, dtype)
        x, y = (z if isinstance(z, Tensor) else constant(float(z), dtype) for z in (x, y))
        parts = []
        if x is not zero:
            parts.append(ZERO_OUTSIDE(x, self.x, self.low, self.high))
        if y is not zero:
            zero_inside = ZERO_UP_TO_SIZE if self.low == -self.high else ZERO_UP_TO
            parts.append(zero_inside(y, self.x, self._last()))
        return reduce(torch.add, parts) if parts else torch.zeros_like(self.x)

    def _last(self) -> float:
        """The last number inside; no number between the smallest normal one and 0 is in `x`."""
        limits = torch.finfo(self.x.dtype)
        # Between half and 1.2 times what lies between two numbers there: it rounds to the last one.
        step = 0.6 * limits.eps * abs(self.high)
        return self.high - step if self.high else -limits.tiny


# Of (x, by, ...): x, but 0 where `by` is outside of an open interval, of at most this size, or at
# most this number. That they are derivatives of activations plays no part.
ZERO_OUTSIDE: Pass = torch.ops.aten.hardtanh_backward.default
ZERO_UP_TO_SIZE: Pass = torch.ops.aten.hardshrink_backward.default
ZERO_UP_TO: Pass = torch.ops.aten.threshold_backward.default
