"""What the words become when compiled for a CPU, against float64: value, edges and row ends."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from klppo_compile import vocabulary
from klppo_compile.compiling import FUSED_MULTIPLY_ADD
from klppo_compile.series import phi_near

inf, nan = float("inf"), float("nan")


def compiled(function, *x, options=FUSED_MULTIPLY_ADD):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, options=options)(*x)


def rows(*parts, size=18):
    """Numbers as rows of 18: two vectors and two numbers more."""
    x = torch.cat([p.double() for p in parts]).float()
    return x[: len(x) // size * size].reshape(-1, size)


@pytest.mark.parametrize(
    ("word", "x", "error"),
    [
        (vocabulary.exp, rows(torch.linspace(-82.9, 88.2, 40_000)), 3.5e-7),
        (vocabulary.exp, rows(torch.linspace(-0.7, 0.7, 40_000)), 1.5e-7),
        (vocabulary.probability, rows(torch.linspace(-82.9, 0.001, 40_000)), 3.5e-7),
        (vocabulary.log, rows(torch.logspace(-37, 38, 40_000)), 2e-7),
        (vocabulary.log, rows(torch.linspace(0.5, 2, 40_000)), 2e-7),
    ],
    ids=["exp", "exp-near-0", "probability", "log", "log-near-1"],
)
def test_a_compiled_word_is_right_to_its_last_digits(word, x, error):
    torch.testing.assert_close(
        compiled(word, x).double(), word(x.double()), rtol=error, atol=0, equal_nan=True
    )


def test_an_exponential_by_plain_torch_compile_rounds_its_argument():
    x = rows(torch.linspace(-82.9, 88.2, 40_000))
    error = (compiled(vocabulary.exp, x, options=None).double() / x.double().exp() - 1).abs()
    assert (error <= 3.5e-7 + 6e-8 * x.abs()).all()


@pytest.mark.parametrize(
    ("word", "edges"),
    [
        (
            vocabulary.exp,
            {-inf: 0, -1e30: 0, -104: 0, 0: 1, 89: inf, 1e30: inf, inf: inf, nan: nan},
        ),
        (vocabulary.probability, {-inf: 0, -1e30: 0, -104: 0, 0: 1, nan: nan}),
        (vocabulary.log, {0: -inf, 1: 0, inf: inf, nan: nan}),
    ],
    ids=["exp", "probability", "log"],
)
def test_a_compiled_word_keeps_the_edges(word, edges):
    x = torch.tensor([list(edges)] * 2).repeat(1, 3)
    expected = torch.tensor([[float(v) for v in edges.values()]] * 2).repeat(1, 3)
    torch.testing.assert_close(compiled(word, x), expected, rtol=0, atol=0, equal_nan=True)


def test_a_negative_number_has_no_finite_logarithm():
    assert not compiled(vocabulary.log, -torch.logspace(-40, 30, 100)).isfinite().any()


@pytest.mark.parametrize("by_inductor", [True, False], ids=["compiled", "eager"])
def test_phi_of_any_ratio_is_what_its_parts_say(by_inductor):
    def phi(d, ratio):
        rest, u = vocabulary.reduce_phi(d, ratio)
        return rest + phi_near(u), u

    d = rows(torch.logspace(-7, 12, 9000), -torch.logspace(-7, -1e-3, 9000), torch.zeros(18))
    value, u = compiled(phi, d, 1 + d) if by_inductor else phi(d, 1 + d)
    exact = d.double() - d.double().log1p()
    exact = torch.where(d.abs() < 1e-3, d.double() ** 2 * (0.5 - d.double() / 3), exact)
    # 1 + d has lost digits of a d near -1: log(1 + d) is as far off as they are.
    lost = 6e-8 / (1 + d.double())
    assert ((value.double() - exact).abs() <= 1e-6 * exact.abs() + lost * (d.abs() > 0.25)).all()
    assert (u.abs() < 0.5).all()
    assert (value[d == 0] == 0).all()


def test_phi_of_a_bad_ratio_is_not_finite():
    d = torch.tensor([-1.0, -3.0, inf, nan] * 4)
    value = compiled(lambda d: sum(vocabulary.reduce_phi(d, 1 + d)), d)
    assert not value.isfinite().any()
    assert value.isnan().equal(d.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("y", [0.3, torch.linspace(-2, 2, 12).reshape(4, 3)])
@pytest.mark.parametrize("z", [-1.7, torch.linspace(5, 1, 3), torch.tensor(0.25)])
def test_fma_is_a_product_and_a_sum(dtype, y, z):
    x = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3).requires_grad_()
    y, z = (t.to(dtype) if isinstance(t, torch.Tensor) else t for t in (y, z))
    expected, found = x * y + z, vocabulary.fma(x, y, z)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), x)[0] for t in (found, expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", [(0, 1.7), (1.7, 0), (0, 1), (-1.5, 2.5)])
def test_a_choice_between_numbers_and_tensors_is_that_of_torch(dtype, pair):
    x, y = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3), torch.ones(3, dtype=dtype)
    chosen = [(x, y)[t] if isinstance(t, int) else t for t in pair]
    condition = vocabulary.within(x, 0.5)
    assert condition.equal(x.abs() < 0.5)
    found, expected = vocabulary.where(condition, *chosen), torch.where(condition, *chosen)
    assert found.dtype == expected.dtype
    assert found.equal(expected)


def test_the_constants_of_fma_serve_every_mode():
    x = torch.ones(3)
    with torch.inference_mode():
        vocabulary.fma(x, 2.0, 0.123)
    with torch.device("meta"):
        vocabulary.fma(x, 2.0, 0.456)
    for z in (0.123, 0.456):
        leaf = torch.ones(3, requires_grad=True)
        vocabulary.fma(leaf, leaf, z).sum().backward()
        assert vocabulary.fma(leaf, 2.0, z).tolist() == pytest.approx([2 + z] * 3)
        torch.testing.assert_close(leaf.grad, torch.full((3,), 2.0))
    with FakeTensorMode() as mode:
        assert vocabulary.fma(mode.from_tensor(x), 2.0, 0.123).shape == (3,)
    batched = torch.func.vmap(lambda t: vocabulary.fma(t, 2.0, 0.123))(torch.ones(2, 3))
    torch.testing.assert_close(batched, torch.full((2, 3), 2.123))
