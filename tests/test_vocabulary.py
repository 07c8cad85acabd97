"""What the words become when compiled for a CPU, against float64: value, edges and row ends."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from klppo_compile import passes, vocabulary
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


EDGES = (0.0, -0.0, 0.5, -0.5, 1.3, -1.3, 1e-39, -1e-39, 1e-310, -1e-310, nan, inf, -inf, 80.0)
INSIDE = {
    "within": (lambda x: vocabulary.within(x, 0.5), lambda x: x.abs() < 0.5),
    "within what no binary number is": (
        lambda x: vocabulary.within(x, 1.3),
        lambda x: x.abs() < 1.3,
    ),
    "within, of each row": (
        lambda x: vocabulary.within(x, 0.5 * (x[:, :1] > 0)),
        lambda x: x.abs() < 0.5 * (x[:, :1] > 0),
    ),
    "above 0": (lambda x: vocabulary.above(x, 0.0), lambda x: x > 0.0),
    "above": (lambda x: vocabulary.above(x, -1.3), lambda x: x > -1.3),
    "far above": (lambda x: vocabulary.above(x, 80.0), lambda x: x > 80.0),
}
PAIRS = [(0, 1), (0, 0.0), (0.0, 1), (0, 1e10), (0.5, 0.0), (1.0, 2.0), (0.0, 0.0)]


def many_numbers(dtype):
    """Random ones, and rows that begin with each edge and hold all of them and their neighbours."""
    x = torch.randn(passes.MANY // 8, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor(EDGES, dtype=torch.float64).to(dtype)
    around = [edges, *(edges.nextafter(torch.full_like(edges, end)) for end in (inf, -inf))]
    x[: len(edges), 1 : 1 + 3 * len(edges)] = torch.cat(around)
    x[: len(edges), 0] = edges
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("name", INSIDE)
def test_a_choice_of_many_numbers_needs_no_booleans(name, flushed, pair, dtype):
    condition, expected = INSIDE[name]
    x = many_numbers(dtype)
    torch.set_flush_denormal(flushed)
    try:
        held = expected(x)
        # What isn't chosen may be anything.
        tensors = (torch.where(held, 2.0, nan).to(dtype), torch.where(held, nan, -3.0).to(dtype))
        chosen = [tensors[t] if isinstance(t, int) else t for t in pair]
        assert isinstance(condition(x), passes.Inside)
        assert isinstance(condition(x[:8]), torch.Tensor)
        found = vocabulary.where(condition(x), *chosen)
        few = torch.cat(
            [
                vocabulary.where(
                    condition(rows),
                    *(t[i : i + 8] if isinstance(t, torch.Tensor) else t for t in chosen),
                )
                for i, rows in zip(range(0, len(x), 8), x.split(8), strict=True)
            ]
        )
    finally:
        torch.set_flush_denormal(False)
    # Of two numbers torch makes float32, whatever is compared.
    torch.testing.assert_close(
        found, few, equal_nan=True, rtol=0, atol=0, check_dtype=isinstance(pair[1], int)
    )
    numbers = [torch.as_tensor(t, dtype=dtype) for t in chosen]
    torch.testing.assert_close(found, torch.where(held, *numbers), equal_nan=True, rtol=0, atol=0)


def test_a_choice_of_many_numbers_between_other_types_is_that_of_torch():
    x = many_numbers(torch.float32)
    held, wide = x.abs() < 0.5, torch.randn(2, *x.shape, dtype=torch.float64)
    found = vocabulary.where(vocabulary.within(x, 0.5), *wide)
    torch.testing.assert_close(found, torch.where(held, *wide), rtol=0, atol=0)
    counted = vocabulary.where(vocabulary.within(x, 0.5), 1, 0)
    torch.testing.assert_close(counted, held.float(), rtol=0, atol=0)
    half = x.to(torch.bfloat16)
    assert vocabulary.within(half, 1e-3).equal(half.abs() < 1e-3)
    rows = 0.5 * (x[:, :1] > 0).double()
    assert vocabulary.within(x, rows).x.dtype == torch.float32


def test_a_choice_of_many_numbers_is_differentiated_and_mapped():
    x, y = torch.randn(2, 4, passes.MANY).unbind(0)
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    vocabulary.where(vocabulary.within(x, 0.5), *leaves).sum().backward()
    torch.testing.assert_close(leaves[0].grad, (x.abs() < 0.5).float())
    torch.testing.assert_close(leaves[1].grad, (x.abs() >= 0.5).float())
    mapped = torch.func.vmap(lambda t: vocabulary.where(vocabulary.above(t, 0.5), t, 0.0))(x)
    torch.testing.assert_close(mapped, torch.where(x > 0.5, x, 0.0))


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
    with FakeTensorMode(allow_non_fake_inputs=True):
        vocabulary.fma(x, 2.0, 0.789)
    assert vocabulary.fma(x, 2.0, 0.789).tolist() == pytest.approx([2.789] * 3)
    for number, transform in enumerate(
        (torch.func.functionalize, torch.func.vmap, torch.func.grad)
    ):
        transform(lambda t, z=number + 0.25: vocabulary.fma(t, 2.0, z).sum())(x)
        plain = vocabulary.fma(x, 2.0, number + 0.25)
        assert str(plain) == str(torch.full((3,), number + 2.25))
    batched = torch.func.vmap(lambda t: vocabulary.fma(t, 2.0, 0.123))(torch.ones(2, 3))
    torch.testing.assert_close(batched, torch.full((2, 3), 2.123))
