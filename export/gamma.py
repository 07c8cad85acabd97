"""log Gamma and digamma of positive numbers, which ONNX hasn't, from what it has.

Stirling's series at x + 7 and the recurrence back (Abramowitz and Stegun 1964, 6.1.15, 6.1.41 and
6.3.18), in float64 inside the graph: 2e-12 from torch's, before the result is rounded to float32.
"""

import math

import torch
from torch import Tensor
from torch.export import ExportedProgram

SHIFT = 7
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOG_GAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
"""B_2k / (2k (2k - 1))."""
DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760)
"""B_2k / 2k."""
NOTE = "log Gamma and digamma are Stirling series in float64 (2e-12); TensorRT has no float64"


def lgamma(x: Tensor) -> Tensor:
    """log Gamma(x), x > 0; NaN elsewhere."""
    small = x.double()
    product = small
    for i in range(1, SHIFT):
        product = product * (small + i)
    z = small + SHIFT
    inverse = 1.0 / z
    series = _horner(LOG_GAMMA, inverse * inverse) * inverse
    value = (z - 0.5) * z.log() - z + HALF_LOG_TWO_PI + series - product.log()
    return torch.where(small > 0.0, value, torch.nan).to(x.dtype)


def digamma(x: Tensor) -> Tensor:
    """The derivative of log Gamma, x > 0; NaN elsewhere."""
    small = x.double()
    steps = 1.0 / small
    for i in range(1, SHIFT):
        steps = steps + 1.0 / (small + i)
    z = small + SHIFT
    inverse = 1.0 / z
    square = inverse * inverse
    value = z.log() - 0.5 * inverse - _horner(DIGAMMA, square) * square - steps
    return torch.where(small > 0.0, value, torch.nan).to(x.dtype)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


DECOMPOSITIONS = {
    torch.ops.aten.lgamma.default: lgamma,
    torch.ops.aten.digamma.default: digamma,
}


def needs_gamma(program: ExportedProgram) -> bool:
    """Whether a program calls either function."""
    return any(node.target in DECOMPOSITIONS for node in program.graph.nodes)


def without_gamma(program: ExportedProgram) -> ExportedProgram:
    """The program with both written out."""
    out: ExportedProgram = program.run_decompositions(DECOMPOSITIONS)
    return out
