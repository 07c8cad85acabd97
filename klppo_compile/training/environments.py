"""Gymnasium environments: made, stepped side by side, and refused in words when they don't fit."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError, MissingRequirementError


class OwnObservations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives copies of the observations of one environment, and no infos, which nobody here reads.

    Gymnasium keeps the observation that ended an episode by reference while it restarts the
    environment: one that writes its only array in place would overwrite it there.
    """

    def __init__(self, env: "gymnasium.Env[Any, Any]") -> None:
        super().__init__(env)
        # Looked up once: through the wrappers that Gymnasium adds it takes as long as the copy.
        self.dtype = env.observation_space.dtype

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, _ = self.env.reset(seed=seed, options=options)
        return self._copy(observation), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return self._copy(observation), reward, terminated, truncated, {}

    def _copy(self, observation: Any) -> NDArray[Any]:
        return np.asarray(observation).astype(self.dtype, casting="same_kind")


def make_environments(env: str, count: int) -> "SyncVectorEnv[NDArray[Any], NDArray[Any]]":
    """Make `count` copies of an environment that restart in the step that ends an episode.

    With SAME_STEP no step is spent on a restart, and the observation that ended an episode comes
    in `infos["final_obs"]`: the one whose value a truncated episode is continued with.
    """

    def make() -> OwnObservations:
        # Gymnasium's checker looks at every step of every copy; ours looks at whole rollouts.
        return OwnObservations(gymnasium.make(env, disable_env_checker=True))

    try:
        return SyncVectorEnv([make] * count, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingRequirementError(
            f"environment {env} needs a package that is not installed: {_line(error)}"
            " MuJoCo comes with pip install 'klppo-compile[train]'."
        ) from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise BadInputError(
            f"env must be an id that Gymnasium knows; got {env!r}: {_line(error)}"
            " See gymnasium.pprint_registry(), or give module:id for your own."
        ) from error


def final_observations(infos: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the last observations `[K, *shape]` of the K episodes that ended in this step."""
    if "final_obs" not in infos:
        return np.empty((0, *shape), np.float32)
    ended = infos["final_obs"][infos["_final_obs"]]
    return np.stack([np.asarray(observation, np.float32) for observation in ended])


def seeds_for(seed: int, purpose: int, count: int) -> list[int]:
    """Return one seed per environment, unrelated between purposes (iteration, evaluation)."""
    return [int(word) for word in np.random.SeedSequence([seed, purpose]).generate_state(count)]


def _line(error: Exception) -> str:
    """Return an error's text as one line that ends in a full stop."""
    return " ".join(str(error).split()).rstrip(".") + "."
