"""Acting: actions drawn from the policy; numbers that would spoil it refused on the way."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from klppo_compile.exit_codes import CannotError
from klppo_compile.training.agent import Agent

LARGEST_OBSERVATION = 1e19
"""Its square, as large as a variance can be, is finite in float32."""
LARGEST_REWARD = 1e100
"""Summed over a rollout, its square is finite in float64."""


def draw(agent: Agent, observation: Tensor, of: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draw an action for each observation `[E, *shape]`; return it and the head it came from.

    NaN has to be found here: torch draws no choice from it, and an environment takes a NaN action.
    `of` says what the step is one of. Call under `torch.no_grad`.
    """
    head = agent.head(observation)
    # One look, for this is asked at every step: NaN that is observed comes through to the head.
    # No look at -inf: that is the logit of a choice that isn't there.
    if not all(part.numpy().max() < np.inf for part in head):
        require_moderate(observation.numpy(), f"observation of {of}")
        raise _not_finite(f"policy of {of}")
    return agent.distribution(*head).sample(), head


def require_moderate(numbers: NDArray[Any], each: str, limit: float = LARGEST_OBSERVATION) -> None:
    """Refuse numbers that would destroy the weights or mean nothing as a result."""
    largest = max(float(numbers.max(initial=0)), -float(numbers.min(initial=0)))
    if not np.isfinite(largest):
        raise _not_finite(each)
    if largest > limit:
        raise CannotError(
            f"every {each} must be at most {limit:g} in magnitude, so that variances stay finite;"
            f" got {largest:.2g}. Scale it or clip it in the environment."
        )


def _not_finite(each: str) -> CannotError:
    return CannotError(
        f"every {each} must be finite; got NaN or infinity."
        " Look for a division by zero in the environment, or lower the learning rate."
    )
