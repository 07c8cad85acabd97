"""Acting: actions drawn from the policy, and numbers that aren't finite refused on the way."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from klppo_compile.exit_codes import CannotError
from klppo_compile.training.agent import Agent


def draw(agent: Agent, observation: Tensor, of: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draw an action for each observation `[E, *shape]`; return it and the head it came from.

    NaN has to be found here: torch draws no choice from it, and an environment takes a NaN action.
    `of` says what the step is one of. Call under `torch.no_grad`.
    """
    head = agent.head(observation)
    # One look, for this is asked at every step: NaN that is observed comes through to the head.
    # No look at -inf: that is the logit of a choice that isn't there.
    if not all(part.numpy().max() < np.inf for part in head):
        require_finite(observation.numpy(), f"observation of {of}")
        raise _not_finite(f"policy of {of}")
    return agent.distribution(*head).sample(), head


def require_finite(numbers: NDArray[np.floating], each: str) -> None:
    """Refuse numbers that would destroy the weights or mean nothing as a result."""
    if not np.isfinite(numbers).all():
        raise _not_finite(each)


def _not_finite(each: str) -> CannotError:
    return CannotError(
        f"every {each} must be finite; got NaN or infinity."
        " Look for a division by zero in the environment, or lower the learning rate."
    )
