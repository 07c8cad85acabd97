"""What a policy is worth: whole episodes, actions drawn from it as in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from klppo_compile.training.acting import LARGEST_REWARD, draw, require_moderate
from klppo_compile.training.agent import Agent
from klppo_compile.training.environments import opened, seeds_for
from klppo_compile.training.spaces import ActionSpec

EPISODES = 20
MAX_STEPS = 10_000
"""Where an episode is cut that its environment never ends."""


ShouldStop = Callable[[], bool]


def never() -> bool:
    """Never stop early."""
    return False


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of whole episodes."""

    mean: float
    std: float
    lowest: float
    highest: float
    episodes: int


NOTHING = Evaluation(math.nan, math.nan, math.nan, math.nan, 0)
"""An evaluation that was stopped before an episode ended."""


@torch.no_grad()
def evaluate(
    agent: Agent,
    action: ActionSpec,
    env: str,
    seed: int,
    episodes: int = EPISODES,
    should_stop: ShouldStop = never,
) -> Evaluation:
    """Run `episodes` first episodes side by side; only those that ended count where it must stop.

    Actions are drawn, not the most likely ones: those of an untrained policy are a fixed function
    that may be a good one by luck. Seeds and random state belong to evaluation alone.
    """
    with (
        torch.random.fork_rng(devices=[]),
        opened(env, episodes) as environments,
    ):
        torch.manual_seed(seed)
        observation, _ = environments.reset(seed=list(seeds_for(seed, 0, episodes)))
        returns = np.zeros(episodes)
        running = np.ones(episodes, np.bool_)
        for _ in range(MAX_STEPS):
            if should_stop():
                returns = returns[~running]
                break
            seen = np.array(observation)
            seen[~running] = 0  # of what is over nothing is asked
            require_moderate(seen, "observation of an evaluation")
            chosen, _ = draw(agent, torch.from_numpy(seen.astype(np.float32)), "an evaluation")
            observation, reward, terminated, truncated, _ = environments.step(
                action.to_environment(chosen.numpy())
            )
            require_moderate(reward[running], "reward of an evaluation", LARGEST_REWARD)
            returns += np.where(running, reward, 0.0)
            running &= ~(terminated | truncated)
            if not running.any():
                break
    if not len(returns):
        return NOTHING
    return Evaluation(
        mean=float(returns.mean()),
        std=float(returns.std()),
        lowest=float(returns.min()),
        highest=float(returns.max()),
        episodes=len(returns),
    )
