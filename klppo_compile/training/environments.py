"""Gymnasium environments: made, stepped side by side, and refused in words when they don't fit."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import extract_tb
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from klppo_compile.exit_codes import (
    BadInputError,
    CannotError,
    MissingRequirementError,
    RefusalError,
)


class Guarded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment, what it gives checked and copied, its faults told as its own.

    Gymnasium keeps the observation that ended an episode by reference while it restarts the
    environment: one that writes its only array in place would overwrite it there. Infos are left
    out: nobody here reads them, and Gymnasium can't batch every one. An exit is a fault like any
    other: it would end the run without a word.
    """

    def __init__(self, env: "gymnasium.Env[Any, Any]", name: str) -> None:
        super().__init__(env)
        self.name = name
        # Looked up once: through the wrappers that Gymnasium adds it takes as long as the copy.
        self.shape, self.dtype = env.observation_space.shape, env.observation_space.dtype

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        try:
            observation, _ = self.env.reset(seed=seed, options=options)
            return self._copy(observation), {}
        except (Exception, SystemExit) as error:
            raise self._fault("reset", error) from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; a reward may be an array of one number."""
        try:
            observation, reward, terminated, truncated, _ = self.env.step(action)
            number = np.asarray(reward, np.float64).item()
            return self._copy(observation), number, bool(terminated), bool(truncated), {}
        except (Exception, SystemExit) as error:
            raise self._fault("step", error) from error

    def close(self) -> None:
        """Free what the environment holds."""
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            raise self._fault("close", error) from error

    def _copy(self, observation: Any) -> NDArray[Any]:
        array = np.asarray(observation)
        if array.shape != self.shape:
            raise ValueError(f"an observation of shape {array.shape} in a space of {self.shape}")
        return array.astype(self.dtype, casting="same_kind")

    def _fault(self, method: str, error: BaseException) -> CannotError:
        """Say what went wrong, and where, for the user has to find it without a traceback."""
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename != __file__]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        return CannotError(
            f"environment {self.name} must keep to Gymnasium's interface; its {method} gave"
            f" {_said(error, where)} Mend the environment."
        )


def make_environments(env: str, count: int) -> "SyncVectorEnv[NDArray[Any], NDArray[Any]]":
    """Make `count` copies of an environment that restart in the step that ends an episode.

    With SAME_STEP no step is spent on a restart, and the observation that ended an episode comes
    in `infos["final_obs"]`: the one whose value a truncated episode is continued with.
    """

    def make() -> Guarded:
        # Gymnasium's checker looks at every step of every copy; ours looks at whole rollouts.
        return Guarded(gymnasium.make(env, disable_env_checker=True), env)

    try:
        return SyncVectorEnv([make] * count, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except (Exception, SystemExit) as error:
        raise _refusal(env, error) from error


@contextmanager
def opened(env: str, count: int) -> Iterator["SyncVectorEnv[NDArray[Any], NDArray[Any]]"]:
    """Make environments to be stepped; a close that fails takes nothing back of what they gave."""
    environments = make_environments(env, count)
    try:
        yield environments
    finally:
        for one in environments.envs:
            with suppress(CannotError):
                one.close()
        environments.closed = True  # or Gymnasium 1.0 closes it again when it is collected


def final_observations(infos: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the last observations `[K, *shape]` of the K episodes that ended in this step."""
    if "final_obs" not in infos:
        return np.empty((0, *shape), np.float32)
    ended = infos["final_obs"][infos["_final_obs"]]
    return np.stack([np.asarray(observation, np.float32) for observation in ended])


def seeds_for(seed: int, purpose: int, count: int) -> list[int]:
    """Return one seed per environment, unrelated between purposes (iteration, evaluation)."""
    return [int(word) for word in np.random.SeedSequence([seed, purpose]).generate_state(count)]


def _refusal(env: str, error: BaseException) -> RefusalError:
    """Tell apart why an environment could not be made: its packages, its id, or its own code."""
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        mujoco = " MuJoCo comes with pip install 'klppo-compile[train]'."
        return MissingRequirementError(
            f"environment {env} needs a package that is not installed: {_line(error)}"
            + (mujoco if "mujoco" in str(error).lower() else "")
        )
    # Gymnasium splits an id at its colon, and raises the failed import of the module once more.
    module, *rest = env.split(":")
    absent = getattr(error.__cause__, "name", None)
    unknown = len(rest) > 1 or (absent is not None and f"{module}.".startswith(f"{absent}."))
    if unknown or isinstance(error, gymnasium.error.Error):
        return BadInputError(
            f"env must be an id that Gymnasium knows; got {env!r}: {_line(error)}"
            " See gymnasium.pprint_registry(), or give module:id for your own."
        )
    if isinstance(error, ImportError):
        return MissingRequirementError(
            f"environment {env} needs what can't be imported here: {_line(error)}"
            " Install what it names, or give another environment."
        )
    return BadInputError(
        f"environment {env} must be one that gymnasium.make can make; got {_said(error)}"
        " Register it with all that its constructor asks for, or mend it."
    )


def _said(error: BaseException, where: str = "") -> str:
    """Return an error's type, place and text as one line that ends in a full stop."""
    return f"{type(error).__name__}{where}" + (f": {_line(error)}" if str(error) else ".")


def _line(error: BaseException) -> str:
    """Return an error's text as one line that ends in a full stop."""
    return " ".join(str(error).split()).rstrip(".") + "."
