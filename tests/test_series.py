"""The series behind every KL, against 50 digits over the whole range that each is for."""

import inspect

import mpmath
import pytest
import torch

from klppo_compile import series


def phi(u):
    return u - mpmath.log(1 + u)


def psi(d):
    return d + mpmath.exp(-d) - 1


# A function, the truth, the range, and the largest relative error in float64: of the series alone.
CASES = {
    "phi_near": (series.phi_near, phi, (-0.5, 1.0), 4e-9),
    "psi_near": (series.psi_near, psi, (-0.5, 0.5), 1e-7),
    "log_one_plus": (series.log_one_plus, lambda u: mpmath.log(1 + u), (-0.5, 1.0), 1e-9),
    "tanh_half_near": (series.tanh_half_near, lambda d: mpmath.tanh(d / 2), (-0.25, 0.25), 7e-9),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 0.0), (torch.float32, 4e-7)])
def test_a_series_holds_where_it_is_used(name, dtype, rounding):
    near, true, (low, high), error = CASES[name]
    small = torch.logspace(-7, -3, 60, dtype=torch.float64)
    x = torch.cat([torch.linspace(low, high, 400, dtype=torch.float64), small, -small]).to(dtype)
    x = x[x.abs() > 1e-12]  # what linspace has for 0 is a rounding error of 1
    with mpmath.workdps(50):
        expected = torch.tensor([float(true(mpmath.mpf(v))) for v in x.tolist()], dtype=x.dtype)
    # The text, and what eager mode takes in its place.
    for function in (inspect.unwrap(near), near):
        assert ((function(x) - expected).abs() <= (error + rounding) * expected.abs()).all()
