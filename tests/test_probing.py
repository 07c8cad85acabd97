"""Which callables are read as passing their parameters on, and which are called every time."""

import math
from functools import partial

import pytest
import torch
import torchrl.modules.distributions as rl
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Bernoulli, Categorical, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from klppo_compile.probing import untouched
from klppo_compile.reading import direct_reading

TEMPERATURE = 1.0
LOC, LOGITS = ("loc", "scale"), ("logits",)


class EventNormal(Independent):
    def __init__(self, loc, scale):
        super().__init__(Normal(loc, scale), 1)


def by_width(logits):
    if logits.shape[-1] == 1:
        return Bernoulli(logits=logits.squeeze(-1))
    return Categorical(logits=logits)


class Annealed(Categorical):
    temperature = 1.0

    def __init__(self, logits):
        super().__init__(logits=logits / self.temperature)


class Namesake(Categorical):
    pass


Namesake.__name__ = "Categorical"


class Detached(Normal):
    def __init__(self, loc, scale):
        super().__init__(loc, scale.detach())


def written_without_gradient(loc, scale):
    return Normal(loc, torch.no_grad()(torch.Tensor.clamp_)(scale, max=0.5))


class Annealer:
    temperature = 1.0

    def __call__(self, logits):
        return Categorical(logits=logits / self.temperature)

    def build(self, logits):
        return Categorical(logits=logits / self.temperature)


def squashed(loc, scale):
    return TransformedDistribution(Normal(loc, scale), [TanhTransform(), AffineTransform(1.0, 2.0)])


def imports_inside(logits):
    import torch

    return Categorical(logits=logits / torch.ones(()))


def calls_an_inner_function(logits):
    def heated(x):
        return x / TEMPERATURE

    return Categorical(logits=heated(logits))


def with_a_default(logits, temperature=[1.0]):  # noqa: B006 - what is tested
    return Categorical(logits=logits / temperature[0])


def with_a_cell(temperature):
    return lambda logits: Categorical(logits=logits / temperature)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (lambda loc, scale: Independent(Normal(loc, scale), 1), LOC),
        (lambda scale, loc: Normal(loc, scale), LOC),
        (lambda loc, scale: torch.distributions.Normal(scale=scale, loc=loc), LOC),
        (EventNormal, LOC),
        (squashed, LOC),
        (lambda logits: Independent(Categorical(logits=logits), 1), LOGITS),
        (lambda logits: Categorical(None, logits), LOGITS),
        (lambda logits: Bernoulli(logits=logits), LOGITS),
        (partial(Normal, validate_args=False), LOC),
        (lambda loc, scale: Independent(Normal(loc, scale), 3), LOC),
        (lambda logits: Independent(Categorical(logits=logits), 2), LOGITS),
        (lambda logits: rl.OneHotCategorical(logits=logits), LOGITS),
    ],
)
def test_what_passes_its_parameters_on_is_not_called_again(kind, names):
    reading = untouched(kind, names)
    assert reading is not None
    given = {name: torch.rand(5, 2, 3) + 0.5 for name in names}
    found = reading(given)
    for a, b in zip(found.parameters, (given[name] for name in names), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (lambda loc, scale: Normal(loc, scale.clamp(0.05, 5.0)), LOC),
        (lambda loc, scale: Normal(loc, scale.exp()), LOC),
        (lambda loc, scale: Normal(loc.tanh(), scale), LOC),
        (lambda loc, scale: Normal(loc, scale[..., :1].expand_as(loc)), LOC),
        (lambda loc, scale: Normal(loc[..., :2], scale[..., :2]), LOC),
        (lambda logits: Categorical(logits=logits.clamp(-20, 20)), LOGITS),
        (lambda logits: Categorical(logits=logits.clamp_min(-1e8)), LOGITS),
        (lambda logits: Categorical(logits=logits / 2), LOGITS),
        (lambda logits: Categorical(logits=logits * 1.000001), LOGITS),
        (lambda logits: Categorical(probs=0.99 * logits.softmax(-1) + 0.002), LOGITS),
        (lambda logits: Categorical(probs=logits), LOGITS),
        (lambda logits: Bernoulli(logits=logits.clamp(-30, 30)), LOGITS),
        (lambda logits: Categorical(logits=logits[..., :6]), LOGITS),
        (lambda logits: Categorical(logits=logits[:, :6]), LOGITS),
        (lambda logits: Categorical(logits=logits.squeeze(-2)), LOGITS),
        (by_width, LOGITS),
        (lambda loc, scale: Normal(loc.squeeze(-1), scale.squeeze(-1)), LOC),
        (lambda loc, scale: Independent(Normal(loc, scale), loc.ndim - 1), LOC),
        (lambda logits: Categorical(logits=logits.clamp_(-0.2, 0.2)), LOGITS),
        (lambda loc, scale: Normal(loc, scale.data.clamp_(max=0.5)), LOC),
        (lambda loc, scale: Normal(loc, scale.detach()), LOC),
        (lambda logits: Categorical(logits=logits.detach()), LOGITS),
        (lambda loc, scale: Normal(loc, scale if (scale < 1).all() else scale.clamp(max=1)), LOC),
        (lambda loc, scale: Normal(loc if torch.is_grad_enabled() else loc.tanh(), scale), LOC),
        (written_without_gradient, LOC),
        (Detached, LOC),
    ],
)
def test_what_changes_its_parameters_is_built_every_time(kind, names):
    assert untouched(kind, names) is None


@pytest.mark.parametrize(
    "kind",
    [
        lambda logits: Categorical(logits=logits / TEMPERATURE),
        with_a_cell(1.0),
        with_a_cell(torch.ones(())),
        with_a_default,
        calls_an_inner_function,
        Annealed,
        Annealer(),
        Annealer().build,
        imports_inside,
        partial(lambda logits, t: Categorical(logits=logits / t), t=torch.ones(())),
    ],
    ids=[
        "global",
        "cell",
        "tensor",
        "default",
        "inner",
        "class",
        "object",
        "bound",
        "import",
        "partial",
    ],
)
def test_what_may_change_its_mind_is_built_every_time(kind):
    """Each passes its logits on today, and is one assignment away from doing otherwise."""
    logits = torch.randn(2, 3)
    torch.testing.assert_close(kind(logits=logits).logits, Categorical(logits=logits).logits)
    assert untouched(kind, LOGITS) is None


def test_whatever_the_default_device_parameters_are_told_apart():
    def diagonal(loc, scale):
        return Independent(Normal(loc, scale), 1)

    with torch.device("meta"):
        found = untouched(diagonal, LOC)
    assert found is not None
    assert found.sources == LOC
    with FakeTensorMode():
        assert untouched(diagonal, LOC) is None


def test_a_callable_that_raises_is_built_every_time():
    def fails(logits):
        raise RuntimeError("no")

    assert untouched(fails, LOGITS) is None


def test_a_shape_that_a_callable_does_not_take_is_refused():
    reading = untouched(lambda loc, scale: Independent(Normal(loc, scale), 3), LOC)
    with pytest.raises(ValueError, match="parameters of 3 dimensions or more"):
        reading({name: torch.ones(16, 3) for name in LOC})


def test_one_shape_alone_tells_nothing():
    def pairs(loc, scale):
        return Independent(Normal(loc.reshape(7, 4099), scale), 1)

    assert untouched(pairs, LOC) is None


def test_a_partial_of_a_class_is_as_good_as_the_class_and_its_constants():
    bounds = {"low": -2.0, "high": 3.0}
    given = {"loc": torch.randn(5, 3), "scale": torch.rand(5, 3) + 0.1}
    readings = [
        direct_reading(partial(rl.TanhNormal, **bounds), {}, LOC),
        direct_reading(rl.TanhNormal, bounds, LOC),
    ]
    one, other = (reading(given) for reading in readings)
    assert (one.centre, one.half_width) == (other.centre, other.half_width) == (0.5, 2.5)
    assert direct_reading(partial(rl.TanhNormal, low=torch.zeros(())), {}, LOC) is None
    assert direct_reading(partial(Namesake, validate_args=False), {}, LOGITS) is not None


def test_the_volume_of_an_action_of_sixteen_bits_is_computed_in_float32():
    reading = direct_reading(rl.TanhNormal, {"low": -2.0, "high": 3.0}, LOC)
    head = reading({name: torch.ones(5, 3, dtype=torch.bfloat16) for name in LOC})
    torch.testing.assert_close(head.log_volume(), torch.full((5,), 3 * math.log(2.5)))


def test_a_scale_that_is_a_number_has_the_locations_dtype():
    reading = direct_reading(Normal, {"scale": 0.1}, ("loc",))
    head = reading({"loc": torch.zeros(5, dtype=torch.float64)})
    assert head.parameters[1].tolist() == [0.1] * 5
