"""What an agent must know of an environment's spaces, as plain values that JSON can hold.

A run can be rebuilt from these without Gymnasium and without the environment. How values of the
policy become actions of the environment lives here too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError

if TYPE_CHECKING:
    import gymnasium

ActionKind = Literal["discrete", "multi_discrete", "multi_binary", "box"]
LARGEST_SPACE = 10**7
"""Numbers of an observation, or of a policy's head: a network's first layer takes 2.5 GB there."""
ACTION_KINDS: tuple[ActionKind, ...] = ("discrete", "multi_discrete", "multi_binary", "box")


@dataclass(frozen=True)
class ObservationSpec:
    """A Box observation: only its shape matters, every value is read as float32."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in one observation."""
        return prod(self.shape)


@dataclass(frozen=True)
class ActionSpec:
    """An action space; the fields that its kind does not use are empty."""

    kind: ActionKind
    shape: tuple[int, ...]
    """Shape of one action in the environment; the policy's own actions are flat."""
    dtype: str
    """NumPy dtype of the environment's actions."""
    counts: tuple[int, ...] = ()
    """Choices of each component, for discrete and multi_discrete."""
    start: tuple[int, ...] = ()
    """First valid value of each component, for discrete and multi_discrete."""
    low: tuple[float | None, ...] = ()
    """Lower bound of each component of a box, None where there is none."""
    high: tuple[float | None, ...] = ()

    @property
    def size(self) -> int:
        """Components of one action."""
        return prod(self.shape)

    def to_environment(self, action: NDArray[Any]) -> NDArray[Any]:
        """Turn the policy's actions `[E]` or `[E, size]` into a batch of the environment's.

        Boxes are clipped to their bounds here, and only here: the policy keeps the action it drew.
        """
        batch = (action.shape[0], *self.shape)
        if self.kind in ("discrete", "multi_discrete"):
            offset = np.asarray(self.start, dtype=np.int64)
            return (action.reshape(len(action), -1) + offset).reshape(batch).astype(self.dtype)
        if self.kind == "box":
            low, high = self.bounds()
            action = np.clip(action, low, high)
            # To the nearest: a cast would cut off, and make any bool but 0 true.
            if not np.issubdtype(np.dtype(self.dtype), np.floating):
                action = np.rint(action)
        return action.reshape(batch).astype(self.dtype)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a box's bounds, flat, infinite where there are none."""
        low = [-np.inf if bound is None else bound for bound in self.low]
        high = [np.inf if bound is None else bound for bound in self.high]
        return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def describe_observations(space: "gymnasium.Space[Any]") -> ObservationSpec:
    """Describe an environment's observation space, which must be a Box."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Box):
        raise BadInputError(
            f"observations must be a Box space; got {type(space).__name__}."
            " Wrap the environment with gymnasium.wrappers.FlattenObservation."
        )
    if 0 in space.shape:
        raise BadInputError(
            f"observations must hold at least one number; got shape {space.shape}."
            " Give the environment an observation."
        )
    return ObservationSpec(tuple(space.shape))


def describe_actions(space: "gymnasium.Space[Any]") -> ActionSpec:
    """Describe an environment's action space: Discrete, MultiDiscrete, MultiBinary or Box."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return ActionSpec(
            "discrete", (), str(space.dtype), counts=(int(space.n),), start=(int(space.start),)
        )
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(
            "multi_discrete",
            tuple(space.nvec.shape),
            str(space.dtype),
            counts=tuple(int(n) for n in space.nvec.ravel()),
            start=tuple(int(n) for n in space.start.ravel()),
        )
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec("multi_binary", tuple(space.shape), str(space.dtype))
    if isinstance(space, spaces.Box) and 0 not in space.shape:
        return ActionSpec(
            "box",
            tuple(space.shape),
            str(space.dtype),
            low=tuple(float(bound) if np.isfinite(bound) else None for bound in space.low.ravel()),
            high=tuple(
                float(bound) if np.isfinite(bound) else None for bound in space.high.ravel()
            ),
        )
    raise BadInputError(
        "actions must be a Discrete, MultiDiscrete, MultiBinary or non-empty Box space;"
        f" got {space}. Wrap the environment so that it takes one of those."
    )


def require_moderate_sizes(observation: ObservationSpec, action: ActionSpec) -> None:
    """Refuse spaces whose networks no machine holds."""
    # A choice has a logit for each of its values, a bit or a number one or two.
    components = len(action.counts) or action.size
    for of, size in (
        ("observations", observation.size),
        ("actions", components * max(action.counts, default=1)),
    ):
        if size > LARGEST_SPACE:
            raise BadInputError(
                f"the networks of a run have at most {LARGEST_SPACE:,} inputs and outputs; the"
                f" {of} need {size:,}. Wrap the environment so that they are fewer."
            )


def specs_to_json(observation: ObservationSpec, action: ActionSpec) -> dict[str, Any]:
    """Return both descriptions as JSON values."""
    return {"observation": asdict(observation), "action": asdict(action)}


def specs_from_json(values: Mapping[str, Any]) -> tuple[ObservationSpec, ActionSpec]:
    """Rebuild both descriptions from `specs_to_json`'s values."""
    try:
        observation = ObservationSpec(_integers(values["observation"]["shape"]))
        action = values["action"]
        spec = ActionSpec(
            kind=action["kind"],
            shape=_integers(action["shape"]),
            dtype=str(np.dtype(action["dtype"])),
            counts=_integers(action["counts"]),
            start=_integers(action["start"]),
            low=_bounds(action["low"]),
            high=_bounds(action["high"]),
        )
        if spec.kind not in ACTION_KINDS or min((*observation.shape, *spec.shape), default=1) < 1:
            raise ValueError(f"kind {spec.kind!r}, shapes {observation.shape}, {spec.shape}")
        if np.dtype(spec.dtype).kind not in "biuf":
            raise ValueError(f"actions of type {spec.dtype}")
        expected = {"discrete": (1, 0), "multi_discrete": (spec.size, 0), "box": (0, spec.size)}
        counts, bounds = expected.get(spec.kind, (0, 0))
        lengths = (len(spec.counts), len(spec.start), len(spec.low), len(spec.high))
        if lengths != (counts, counts, bounds, bounds) or min(spec.counts, default=1) < 1:
            raise ValueError(f"components of a {spec.kind} action disagree: {lengths}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"its spaces must be those it was trained on: {error}") from error
    require_moderate_sizes(observation, spec)
    return observation, spec


def _integers(values: Any) -> tuple[int, ...]:
    if any(type(value) is not int or not -(2**63) <= value < 2**63 for value in values):
        raise TypeError(f"integers expected, got {values!r}")
    return tuple(values)


def _bounds(values: Any) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)
