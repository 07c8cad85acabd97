import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from klppo_compile.exit_codes import BadInputError
from klppo_compile.training.agent import build_agent
from klppo_compile.training.environments import make_environments, seeds_for
from klppo_compile.training.normaliser import ObservationNormaliser, RunningMoments
from klppo_compile.training.rollout import Collector, generalised_advantage, next_values, to_rollout
from klppo_compile.training.spaces import (
    describe_actions,
    describe_observations,
    specs_from_json,
    specs_to_json,
)
from tests import mirror_environments
from tests.training_cases import settings_for


@pytest.mark.parametrize("kind", mirror_environments.SPACES)
def test_spaces_survive_json_and_actions_fit_the_environment(kind):
    space = mirror_environments.SPACES[kind]()
    specs = describe_observations(spaces.Box(-1, 1, (3,))), describe_actions(space)
    observation, action = specs_from_json(json.loads(json.dumps(specs_to_json(*specs))))
    assert (observation, action) == specs
    agent = build_agent(observation, action)
    with torch.no_grad():
        distribution = agent.distribution(*agent.head(5 * torch.randn(500, 3)))
        batch = action.to_environment(distribution.sample().numpy())
    assert len(batch) == 500
    assert all(space.contains(one) for one in batch)


@pytest.mark.parametrize("start", [-(2**40), -(2**63), 2**63 - 3])
def test_any_start_of_a_discrete_space_survives_json(start):
    specs = (
        describe_observations(spaces.Box(-1, 1)),
        describe_actions(spaces.Discrete(3, start=start)),
    )
    assert specs_from_json(json.loads(json.dumps(specs_to_json(*specs)))) == specs
    assert specs[1].to_environment(np.arange(3)).tolist() == [start, start + 1, start + 2]


@pytest.mark.parametrize(
    ("describe", "space", "reason"),
    [
        (describe_observations, spaces.Discrete(3), "observations must be a Box"),
        (describe_observations, spaces.Dict({"x": spaces.Box(0, 1)}), "got Dict"),
        (describe_observations, spaces.Box(0, 1, (0,)), "at least one number"),
        (describe_actions, spaces.Tuple([spaces.Discrete(2)]), "actions must be"),
        (describe_actions, spaces.Text(3), "actions must be"),
        (describe_actions, spaces.Box(0, 1, (0,)), "non-empty Box"),
    ],
)
def test_other_spaces_are_refused(describe, space, reason):
    with pytest.raises(BadInputError, match=reason):
        describe(space)


def test_a_box_policy_starts_in_the_middle_of_its_bounds():
    bounded = spaces.Box(np.float32([0, -1]), np.float32([100, np.inf]))
    agent = build_agent(describe_observations(spaces.Box(-1, 1, (3,))), describe_actions(bounded))
    loc, scale = agent.head(torch.zeros(3))
    assert loc.tolist() == [50.0, 0.0]
    assert scale.tolist() == pytest.approx([25.0, 0.5])


def test_running_moments_merge_to_those_of_everything():
    batches = [1e4 + np.random.default_rng(i).normal(i, 1 + i, (50 + i, 3)) for i in range(5)]
    moments = RunningMoments((3,), torch.float64)
    for batch in batches:
        data = torch.from_numpy(batch)
        moments.merge(data.mean(0), data.var(0, correction=0), len(batch))
    everything = np.concatenate(batches)
    assert moments.mean.numpy() == pytest.approx(everything.mean(0), rel=1e-12)
    assert moments.var.numpy() == pytest.approx(everything.var(0), rel=1e-9)
    assert int(moments.count) == len(everything)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_normaliser_flattens_what_one_observation_is(shape, batch):
    normaliser = ObservationNormaliser(shape)
    size = max(1, int(np.prod(shape)))
    normaliser.merge(torch.full((size,), 2.0), torch.full((size,), 9.0), 1000)
    raw = torch.randn((*batch, *shape), dtype=torch.float64)
    expected = ((raw - 2) / 3).reshape(*batch, size)
    assert torch.allclose(normaliser(raw).double(), expected, atol=1e-6)
    assert normaliser(raw + 1e6).max() == 10


def brute_force_advantage(experience, value, final_value, gamma, lmbda):
    """Sum the discounted residuals of each step up to its episode's end, one by one."""
    reward, terminated = experience.reward, experience.terminated
    ended = terminated | experience.truncated
    horizon, count = reward.shape
    finals = dict(zip(zip(*np.nonzero(ended), strict=True), final_value, strict=True))
    advantage = np.zeros_like(reward)
    for env in range(count):
        for start in range(horizon):
            for step in range(start, horizon):
                following = value[step + 1, env]
                if ended[step, env]:
                    following = 0.0 if terminated[step, env] else finals[step, env]
                residual = reward[step, env] + gamma * following - value[step, env]
                advantage[start, env] += (gamma * lmbda) ** (step - start) * residual
                if ended[step, env]:
                    break
    return advantage


@pytest.mark.parametrize("name", ["Discrete", "Terminating"])
def test_advantages_continue_cut_episodes_and_end_finished_ones(name):
    settings = settings_for(name)
    environments = make_environments(settings.env, settings.num_envs)
    action = describe_actions(environments.single_action_space)
    agent = build_agent(describe_observations(environments.single_observation_space), action)
    collector = Collector(environments, agent, action, seeds_for(0, 1, settings.num_envs))
    collector.collect(3)
    experience = collector.collect(settings.horizon)
    assert experience.terminated.any() == (name == "Terminating")
    assert experience.truncated.any() == (name == "Discrete")
    rng = np.random.default_rng(0)
    value = rng.normal(size=(settings.horizon + 1, settings.num_envs))
    final_value = rng.normal(size=len(experience.final_observation))
    advantage = generalised_advantage(
        experience.reward,
        value[:-1],
        next_values(value, experience, final_value),
        experience.terminated | experience.truncated,
        decay=(0.9, 0.8),
    )
    expected = brute_force_advantage(experience, value, final_value, 0.9, 0.8)
    assert advantage == pytest.approx(expected, abs=1e-12)
    assert len(experience.episode_returns) == len(experience.final_observation)
    environments.close()


def test_the_observation_that_ended_an_episode_is_kept():
    # The cart leaves the track only in observations that no episode begins with.
    environments = make_environments("CartPole-v1", 3)
    action = describe_actions(environments.single_action_space)
    agent = build_agent(describe_observations(environments.single_observation_space), action)
    experience = Collector(environments, agent, action, [0, 1, 2]).collect(200)
    assert len(experience.final_observation) == experience.terminated.sum() > 0
    tilted = experience.final_observation[:, 2].abs() > 12 * np.pi / 180
    assert (tilted | (experience.final_observation[:, 0].abs() > 2.4)).all()
    environments.close()


def test_the_observation_that_ended_an_episode_outlives_an_array_written_in_place():
    environments = make_environments("tests/InPlace-v0", 2)
    action = describe_actions(environments.single_action_space)
    agent = build_agent(describe_observations(environments.single_observation_space), action)
    length = mirror_environments.LENGTH
    experience = Collector(environments, agent, action, [0, 1]).collect(2 * length + 1)
    environments.close()
    counts = [step % length for step in range(2 * length + 2)]
    assert experience.observation[:, 0, 0].tolist() == counts
    assert experience.truncated.sum() == 4
    assert (experience.final_observation == length).all()


def test_a_rollout_agrees_with_its_policy():
    settings = settings_for("MultiDiscrete")
    environments = make_environments(settings.env, settings.num_envs)
    action = describe_actions(environments.single_action_space)
    agent = build_agent(describe_observations(environments.single_observation_space), action)
    experience = Collector(environments, agent, action, [0, 1, 2, 3]).collect(settings.horizon)
    rollout = to_rollout(agent, experience, experience.reward, settings)
    environments.close()
    fresh = agent.actor.get_dist(rollout.select("observation"))
    assert torch.allclose(fresh.log_prob(rollout["action"]), rollout["action_log_prob"], atol=1e-6)
    assert torch.equal(agent.critic(rollout.clone())["state_value"], rollout["state_value"])
    assert rollout["advantage"].mean().abs() < 1e-6
    assert rollout["advantage"].std(correction=0) == pytest.approx(1.0)
    # Flattened in time order: row 5 is the second step of the second of 4 environments.
    assert torch.equal(rollout["observation"][5], experience.observation[1, 1])
