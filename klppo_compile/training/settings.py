"""What one training run was asked to do: every choice that changes its result, checked.

Importing this module costs nothing: no torch, no Gymnasium.
"""

import math
from collections.abc import Callable, Mapping
from ctypes import c_float
from dataclasses import asdict, dataclass, fields
from typing import Any

from klppo_compile.exit_codes import BadInputError

MOST_STEPS = 10**15  # thirty years at a million a second
MOST_ROWS = 100_000_000  # a rollout is held in memory, a hundred bytes a row at least


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of a run, as they stand in its `config.json`."""

    env: str
    """Gymnasium id, `module:id` for one that a module registers."""
    seed: int = 0
    steps: int = 150_000
    """Environment steps over all environments, rounded up to whole rollouts."""
    num_envs: int = 16
    horizon: int = 128
    """Steps of each environment in one rollout."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatch_size: int = 512
    """Rows per optimiser step; divides `num_envs * horizon`, so that the graph has one shape."""
    learning_rate: float = 3e-4
    """Adam's rate at the start; it falls linearly to a tenth over `steps`."""
    gamma: float = 0.99
    lmbda: float = 0.95
    dtarg: float = 0.01
    """Target KL(old || new) of an iteration, in nats."""
    entropy_coef: float = 0.0
    compile: bool = True
    """Whether the loss runs as one compiled graph; the results are the same within rounding."""

    def __post_init__(self) -> None:
        """Refuse what can't be trained with, before anything is made."""
        for name in ("steps", "num_envs", "horizon", "epochs", "minibatch_size"):
            if getattr(self, name) < 1:
                raise BadInputError(
                    f"{name} must be at least 1; got {getattr(self, name)}. Give a positive number."
                )
        if self.steps > MOST_STEPS:
            raise BadInputError(
                f"steps must be at most {MOST_STEPS:,}; got {self.steps}. Give fewer."
            )
        if not 0 <= self.seed < 2**32:
            raise BadInputError(
                f"seed must be from 0 to {2**32 - 1}; got {self.seed}. Give a seed in that range."
            )
        for name in ("learning_rate", "dtarg"):
            self._require(name, lambda x: x > 0, "positive and finite")
        for name in ("gamma", "lmbda"):
            self._require(name, lambda x: 0 <= x <= 1, "from 0 to 1")
        self._require("entropy_coef", lambda x: x >= 0, "0 or more, and finite")
        if self.rollout_size > MOST_ROWS:
            raise BadInputError(
                f"num_envs * horizon, the rows of a rollout, must be at most {MOST_ROWS:,}; got"
                f" {self.num_envs} * {self.horizon}. Give shorter rollouts, or fewer environments."
            )
        if self.rollout_size % self.minibatch_size:
            raise BadInputError(
                "minibatch_size must divide num_envs * horizon, so that every minibatch has one"
                f" shape; got {self.minibatch_size} against {self.num_envs} * {self.horizon} ="
                f" {self.rollout_size}."
                f" Use {math.gcd(self.minibatch_size, self.rollout_size)}, for example."
            )

    def _require(self, name: str, holds: Callable[[float], bool], rule: str) -> None:
        value = getattr(self, name)
        try:
            held = c_float(value).value  # what the loss makes of it
        except OverflowError:  # an integer, from a config.json
            held = math.inf
        if not all(holds(x) and math.isfinite(x) for x in (held, value)):
            raise BadInputError(
                f"{name} must be {rule}, in float32 too; got {value}. Give a value in that range."
            )

    @property
    def rollout_size(self) -> int:
        """Rows of one rollout."""
        return self.num_envs * self.horizon

    @property
    def iterations(self) -> int:
        """Rollouts, each followed by an update."""
        return -(-self.steps // self.rollout_size)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """Rebuild settings from `to_json`'s values; any other set of names or types is refused."""
        expected = {field.name: field.type for field in fields(cls)}
        for name in sorted(values.keys() ^ expected.keys()):
            state = "missing" if name in expected else "unknown"
            raise BadInputError(f"the settings of a run have exactly its fields; {name} is {state}")
        for name, kind in expected.items():
            # A float written as 1 is a float; a bool is not a number here, nor a number a bool.
            accepted = (int, float) if kind is float else (kind,)
            if type(values[name]) not in accepted:
                raise BadInputError(f"setting {name} must be {kind}; got {values[name]!r}")
        return cls(**values)
