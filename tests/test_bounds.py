"""Bounds of a squashed policy as users have them: NumPy's arrays, and tensors anywhere."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Distribution
from torchrl.modules import TanhNormal
from torchrl.objectives import KLPENPPOLoss as Theirs

from klppo_compile import KLPENPPOLoss, compile_loss
from klppo_compile.reading import direct_reading
from tests.builders import CASES, NUMPY_BOUNDS, TENSOR_BOUNDS, actor_of, problem

OPTIONS = {"entropy_bonus": False, "increment": 1.0, "decrement": 1.0}


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """As torchrl leaves it: its own distributions don't stand torch's checks."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


def objective(loss, actor, data):
    value = loss(data)["loss_objective"]
    return value, torch.autograd.grad(value, list(actor.parameters()))


@pytest.mark.parametrize("bare", [False, True], ids=["compile_loss", "torch.compile"])
def test_arrays_compile_into_one_graph_with_torchrls_numbers(bare):
    actor, critic, data = problem("TanhNormal NumPy bounds", dtype=torch.float64)
    expected = objective(Theirs(actor, critic, **OPTIONS), actor, data)
    loss = KLPENPPOLoss(actor, critic, **OPTIONS)
    compiled = (
        torch.compile(loss, backend="aot_eager", fullgraph=True)
        if bare
        else compile_loss(loss, backend="aot_eager")
    )
    torch.testing.assert_close(objective(compiled, actor, data), expected, rtol=1e-7, atol=1e-8)


def test_arrays_are_to_single_precision_what_tensors_are():
    actor, critic, data = problem("TanhNormal NumPy bounds")
    bounds = {name: bound.double() for name, bound in TENSOR_BOUNDS.items()}
    same = actor_of(replace(CASES["TanhNormal"], kwargs=bounds))
    same.load_state_dict(actor.state_dict())
    data["action"][0] = bounds["high"]  # how near the bound counts is the bounds' dtype's matter
    a, b = (KLPENPPOLoss(x, critic, **OPTIONS)(data) for x in (actor, same))
    assert torch.equal(a["loss_objective"], b["loss_objective"])


@pytest.mark.parametrize("bounds", [NUMPY_BOUNDS, TENSOR_BOUNDS], ids=["arrays", "tensors"])
def test_bounds_go_where_the_location_is(bounds):
    reading = direct_reading(TanhNormal, bounds, ("loc", "scale"))
    on_meta = torch.ones(2, 3, device="meta")
    found = reading({"loc": on_meta, "scale": on_meta})
    assert found.centre.device == found.half_width.device == on_meta.device
