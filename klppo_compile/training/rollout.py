"""Collection: a rollout of every environment side by side, and what the loss needs of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from klppo_compile.exit_codes import CannotError
from klppo_compile.training.acting import LARGEST_REWARD, draw, require_moderate
from klppo_compile.training.agent import Agent
from klppo_compile.training.environments import final_observations
from klppo_compile.training.normaliser import RunningMoments
from klppo_compile.training.settings import TrainSettings
from klppo_compile.training.spaces import ActionSpec


@dataclass(frozen=True)
class Experience:
    """What T steps of E environments gave, as they gave it."""

    observation: Tensor
    """`[T + 1, E, *shape]` raw observations, the last ones not yet acted on."""
    action: Tensor
    """`[T, E]` or `[T, E, D]`, as the policy drew them."""
    head: tuple[Tensor, ...]
    """`[T, E, ...]` parameters of the policy that drew them."""
    reward: NDArray[np.float64]
    """`[T, E]`."""
    terminated: NDArray[np.bool_]
    """`[T, E]`, the episode ended in a state without a future."""
    truncated: NDArray[np.bool_]
    """`[T, E]`, the episode was cut off in a state that has one."""
    final_observation: Tensor
    """`[K, *shape]`, where the K ended episodes ended, in the order of the [T, E] masks."""
    episode_returns: list[float]
    """Undiscounted return of each of the K episodes."""


class Collector:
    """Steps environments with the current policy, episodes running on from rollout to rollout."""

    def __init__(
        self,
        environments: "SyncVectorEnv[NDArray[Any], NDArray[Any]]",
        agent: Agent,
        action: ActionSpec,
        seeds: list[int],
    ) -> None:
        self.environments = environments
        self.agent = agent
        self.action = action
        self.observation, _ = environments.reset(seed=list(seeds))
        self.running_return = np.zeros(environments.num_envs)

    @torch.no_grad()
    def collect(self, horizon: int) -> Experience:
        """Step every environment `horizon` times."""
        count = self.environments.num_envs
        shape = self.environments.single_observation_space.shape or ()
        try:
            observation = torch.empty(horizon + 1, count, *shape)
            reward = np.empty((horizon, count))
            terminated, truncated = np.empty((2, horizon, count), np.bool_)
        except (MemoryError, RuntimeError) as error:
            raise CannotError(
                f"a rollout must fit in memory; {horizon:,} steps of {count:,} environments do"
                " not. Give shorter rollouts, or fewer environments."
            ) from error
        actions, heads, finals, returns = [], [], [], []
        for step in range(horizon):
            observation[step].numpy()[...] = self.observation
            action, head = draw(self.agent, observation[step], "a rollout")
            self.observation, reward[step], terminated[step], truncated[step], infos = (
                self.environments.step(self.action.to_environment(action.numpy()))
            )
            actions.append(action)
            heads.append(head)
            self.running_return += reward[step]
            ended = terminated[step] | truncated[step]
            if ended.any():
                finals.append(final_observations(infos, shape))
                returns.extend(self.running_return[ended].tolist())
                self.running_return[ended] = 0.0
        observation[horizon].numpy()[...] = self.observation
        final = np.concatenate(finals) if finals else np.empty((0, *shape), np.float32)
        experience = Experience(
            observation=observation,
            action=torch.stack(actions),
            head=tuple(torch.stack(parts) for parts in zip(*heads, strict=True)),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=torch.from_numpy(final),
            episode_returns=returns,
        )
        require_moderate(reward, "reward of a rollout", LARGEST_REWARD)
        require_moderate(observation.numpy(), "observation of a rollout")
        require_moderate(final, "final observation of a rollout")
        return experience


class RewardScaler:
    """Divides rewards by the standard deviation of the running discounted return.

    Engstrom et al. 2020, "Implementation Matters in Deep RL", §2 (arXiv:2005.12729).
    """

    def __init__(self, count: int, gamma: float) -> None:
        self.gamma = gamma
        self.moments = RunningMoments((), torch.float64)
        self.running = np.zeros(count)

    def scale(self, experience: Experience) -> NDArray[np.float64]:
        """Take in a rollout, then return its rewards `[T, E]` scaled, within ±10."""
        ended = experience.terminated | experience.truncated
        returns = np.empty_like(experience.reward)
        for step, reward in enumerate(experience.reward):
            self.running = returns[step] = self.running * self.gamma + reward
            self.running = np.where(ended[step], 0.0, self.running)
        batch = torch.from_numpy(returns)
        self.moments.merge(batch.mean(), batch.var(correction=0), batch.numel())
        deviation = float(torch.sqrt(self.moments.var + 1e-8))
        return np.clip(experience.reward / deviation, -10.0, 10.0)


@torch.no_grad()
def to_rollout(
    agent: Agent, experience: Experience, reward: NDArray[np.float64], settings: TrainSettings
) -> TensorDict:
    """Return the rows `[T * E]` that the loss reads, advantages standardised over all of them."""
    observation = experience.observation
    value = agent.value(observation).squeeze(-1).double().numpy()
    final_value = agent.value(experience.final_observation).squeeze(-1).double().numpy()
    advantage = generalised_advantage(
        reward,
        value[:-1],
        next_values(value, experience, final_value),
        experience.terminated | experience.truncated,
        decay=(settings.gamma, settings.lmbda),
    )
    target = advantage + value[:-1]
    standard = (advantage - advantage.mean()) / max(advantage.std(), 1e-6)
    log_prob = agent.distribution(*experience.head).log_prob(experience.action)
    rows = {
        "observation": observation[:-1],
        "action": experience.action,
        "action_log_prob": log_prob,
        **dict(zip(agent.head_keys, experience.head, strict=True)),
        "advantage": torch.from_numpy(standard).float().unsqueeze(-1),
        "value_target": torch.from_numpy(target).float().unsqueeze(-1),
        "state_value": torch.from_numpy(value[:-1]).float().unsqueeze(-1),
    }
    size = settings.rollout_size
    return TensorDict({key: rows[key].flatten(0, 1) for key in rows}, batch_size=[size])


def next_values(
    value: NDArray[np.float64], experience: Experience, final_value: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the value `[T, E]` of what followed each step.

    After a truncation that is the state in which the episode was cut off, not the next episode's
    first; after a termination it is nothing.
    """
    following = value[1:].copy()
    following[experience.terminated | experience.truncated] = final_value
    following[experience.terminated] = 0.0
    return following


def generalised_advantage(
    reward: NDArray[np.float64],
    value: NDArray[np.float64],
    next_value: NDArray[np.float64],
    ended: NDArray[np.bool_],
    *,
    decay: tuple[float, float],
) -> NDArray[np.float64]:
    """Return the advantages `[T, E]` for decay (gamma, lambda).

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", eq. 16 (arXiv:1506.02438).
    """
    gamma, lmbda = decay
    residual = reward + gamma * next_value - value
    advantage = np.empty_like(residual)
    running = np.zeros(residual.shape[1])
    for step in reversed(range(len(residual))):
        running = residual[step] + gamma * lmbda * np.where(ended[step], 0.0, running)
        advantage[step] = running
    return advantage
