import re

import gymnasium
import numpy as np
import pytest
import torch

from klppo_compile.exit_codes import CannotError
from klppo_compile.training.agent import build_agent
from klppo_compile.training.environments import make_environments
from klppo_compile.training.evaluation import evaluate
from klppo_compile.training.loading import load_run
from klppo_compile.training.rollout import Collector
from klppo_compile.training.spaces import describe_actions, describe_observations
from klppo_compile.training.train import resume, train
from tests import mirror_environments
from tests.mirror_environments import LENGTH, Mirror
from tests.training_cases import settings_for


@pytest.fixture
def collector_of():
    """Make a collector in two copies of a mirror environment."""
    made = []

    def collector_of(kind):
        environments = make_environments(f"tests/{kind}-v0", 2)
        made.append(environments)
        action = describe_actions(environments.single_action_space)
        agent = build_agent(describe_observations(environments.single_observation_space), action)
        return Collector(environments, agent, action, [0, 1])

    yield collector_of
    for environments in made:
        environments.close()


@pytest.fixture
def broken_at(monkeypatch):
    """Let mirror environments observe NaN, or another value, after so many steps of an episode."""
    observe = Mirror._observe

    def broken_at(count, value=np.nan):
        monkeypatch.setattr(
            Mirror, "_observe", lambda self: observe(self) + (value if self.count == count else 0)
        )

    return broken_at


@pytest.mark.parametrize("kind", mirror_environments.SPACES)
def test_an_observation_that_is_nan_is_refused_before_the_policy_sees_it(
    kind, broken_at, collector_of, tmp_path
):
    broken_at(LENGTH // 2)
    with pytest.raises(CannotError, match="every observation of an evaluation must be finite"):
        train(settings_for(kind), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(CannotError, match="every observation of a rollout must be finite"):
        collector_of(kind).collect(LENGTH)
    # As the last one, which is acted on in the next rollout only.
    with pytest.raises(CannotError, match="every observation of a rollout must be finite"):
        collector_of(kind).collect(LENGTH // 2)


def test_an_infinite_observation_is_refused_though_the_normaliser_clips_it(broken_at, collector_of):
    broken_at(LENGTH // 2, np.inf)
    collector = collector_of("Box")
    with pytest.raises(CannotError, match="every observation of an evaluation must be finite"):
        evaluate(collector.agent, collector.action, "tests/Box-v0", 0, 2)
    with pytest.raises(CannotError, match="every observation of a rollout must be finite"):
        collector.collect(LENGTH)


@pytest.mark.parametrize("value", [1e25, -3e38])
def test_an_observation_whose_variance_overflows_is_refused_with_its_size(
    value, broken_at, collector_of, tmp_path
):
    broken_at(LENGTH // 2, value)
    words = (
        f"must be at most 1e+19 in magnitude, so that variances stay finite; got {abs(value):g}."
    )
    with pytest.raises(CannotError, match=re.escape(f"every observation of an evaluation {words}")):
        train(settings_for("Box"), tmp_path / "run")
    with pytest.raises(CannotError, match=re.escape(f"every observation of a rollout {words}")):
        collector_of("Box").collect(LENGTH)


def test_an_observation_beyond_float32_is_refused_with_its_size(monkeypatch, collector_of):
    make = Mirror.__init__

    def wide(self, *args, **options):
        make(self, *args, **options)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    monkeypatch.setattr(Mirror, "__init__", wide)
    collector = collector_of("Box")
    monkeypatch.setattr(Mirror, "_observe", lambda _: np.full(2, 1e60))
    with pytest.raises(CannotError, match=r"observation of an evaluation must .*got 1e\+60"):
        evaluate(collector.agent, collector.action, "tests/Box-v0", 0, 2)


def test_the_largest_observations_and_rewards_train_and_load(monkeypatch, tmp_path):
    observe, step = Mirror._observe, Mirror.step

    def rich(self, action):
        observation, reward, *rest = step(self, action)
        return observation, reward * 1e100, *rest

    monkeypatch.setattr(Mirror, "step", rich)
    monkeypatch.setattr(Mirror, "_observe", lambda self: observe(self) * np.float32(4.9e18))
    train(settings_for("Box"), tmp_path / "run")
    assert load_run(tmp_path / "run", "last").loss
    assert resume(tmp_path / "run", steps=500).finished


def test_an_observation_that_ends_an_episode_is_refused_where_its_value_counts(
    broken_at, collector_of
):
    broken_at(LENGTH)
    collector = collector_of("Discrete")
    assert evaluate(collector.agent, collector.action, "tests/Discrete-v0", 0, 2).episodes == 2
    with pytest.raises(CannotError, match="every final observation of a rollout must be finite"):
        collector.collect(LENGTH)


def test_a_reward_that_is_nan_is_refused_by_whoever_meets_it(collector_of, tmp_path):
    with pytest.raises(CannotError, match="every reward of an evaluation must be finite"):
        train(settings_for("Broken"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(CannotError, match="every reward of a rollout must be finite"):
        collector_of("Broken").collect(2)


def test_a_reward_whose_variance_overflows_is_refused_with_its_size(
    monkeypatch, collector_of, tmp_path
):
    monkeypatch.setattr(Mirror, "step", lambda self, _: (self._observe(), -1e200, False, False, {}))
    with pytest.raises(CannotError, match=r"reward of an evaluation must .*1e\+100 .*got 1e\+200"):
        train(settings_for("Box"), tmp_path / "run")
    with pytest.raises(CannotError, match=r"reward of a rollout must .*1e\+100 .*got 1e\+200"):
        collector_of("Box").collect(2)


def test_what_comes_after_an_episode_that_counted_is_not_asked_of(monkeypatch, collector_of):
    """The first environment is over after 2 steps, and gives NaN from then on."""
    step, ended = Mirror.step, []

    def broken_later(self, action):
        observation, reward, terminated, truncated, info = step(self, action)
        ended.append(self) if not ended and self.count == 2 else None
        if self not in ended:
            return observation, reward, terminated, truncated, info
        over = self.count == 2
        return (
            (observation, reward, True, False, info)
            if over
            else (observation * np.nan, np.nan, False, False, info)
        )

    collector = collector_of("Discrete")
    monkeypatch.setattr(Mirror, "step", broken_later)
    found = evaluate(collector.agent, collector.action, "tests/Discrete-v0", 0, 2)
    assert np.isfinite([found.mean, found.std, found.lowest, found.highest]).all()
    assert len(ended) == 1


@pytest.mark.parametrize("kind", mirror_environments.SPACES)
def test_a_policy_that_is_nan_is_refused_before_it_acts(kind, collector_of):
    collector = collector_of(kind)
    with torch.no_grad():
        for parameter in collector.agent.policy.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(CannotError, match="every policy of a rollout must be finite"):
        collector.collect(2)
