"""Where a box action starts: in the middle of its bounds, or beside the one there is."""

import numpy as np
import pytest
import torch

from klppo_compile.training.agent import build_agent
from klppo_compile.training.loading import load_run
from klppo_compile.training.spaces import ActionSpec, ObservationSpec
from klppo_compile.training.train import resume, train
from tests.training_cases import settings_for

MOST = float(np.finfo(np.float32).max)


def agent_for(low, high):
    action = ActionSpec("box", (1,), "float32", low=(low,), high=(high,))
    return build_agent(ObservationSpec((2,)), action), action


@pytest.mark.parametrize(
    ("low", "high", "centre", "half_range"),
    [
        (10.0, 14.0, 12.0, 2.0),
        (0.0, 4e6, 2e6, 2e6),
        (10.0, None, 11.0, 1.0),
        (None, -10.0, -11.0, 1.0),
        (0.0, MOST, 1.0, 1.0),
        (None, None, 0.0, 1.0),
        (-MOST, MOST, 0.0, 1.0),
        (3.0, 3.0, 3.0, 1.0),
    ],
)
def test_a_box_is_measured_by_the_bounds_that_mean_something(low, high, centre, half_range):
    agent, action = agent_for(low, high)
    loc, scale = agent.head(torch.zeros(4096, 2))
    assert loc[0].item() == pytest.approx(centre, abs=0.1 * half_range)
    assert scale[0].item() == pytest.approx(half_range / 2)
    # So that what the environment gets depends on what is drawn.
    drawn = agent.distribution(loc, scale).sample().numpy()
    if low != high:
        assert len(np.unique(action.to_environment(drawn))) > 1000


def test_the_widest_bounds_have_finite_probabilities_and_gradients():
    agent, _ = agent_for(-1e15, 1e15)
    loc, scale = agent.head(torch.zeros(64, 2))
    distribution = agent.distribution(loc, scale)
    log_prob = distribution.log_prob(distribution.sample())
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert all(x.grad.isfinite().all() for x in agent.policy.parameters() if x.grad is not None)


def test_a_saved_run_keeps_the_centre_that_it_was_trained_with(tmp_path, monkeypatch):
    def zero(low, _):
        return torch.zeros_like(low), torch.ones_like(low)

    with monkeypatch.context() as patched:
        patched.setattr("klppo_compile.training.agent._unit", zero)
        train(settings_for("Box", steps=128), tmp_path / "run")
    resume(tmp_path / "run", steps=256)
    state = load_run(tmp_path / "run", "last").loss.state_dict()
    centres = [value for name, value in state.items() if name.endswith(".centre")]
    assert centres
    assert all((centre == 0).all() for centre in centres)
