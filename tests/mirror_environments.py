"""Small environments for tests, one per kind of space, that can be learnt in seconds.

An observation holds random signs; an action earns 1 for each component that answers its sign.
Registered under the namespace `tests`, and importable as a module by `klppo train --env`.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 8
COMPONENTS = 2


class Mirror(gymnasium.Env):
    """Ends by truncation after LENGTH steps, or by termination when `terminate` says so."""

    def __init__(self, action_space, *, observation_shape=(COMPONENTS,), terminate=False):
        self.observation_space = spaces.Box(-3.0, 3.0, observation_shape)
        self.action_space = action_space
        self.terminate = terminate

    def reset(self, *, seed=None, options=None):  # noqa: ARG002  Gymnasium's signature
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        reward = float(np.mean(self._answers(np.asarray(action)) == (self.signs > 0)))
        last = self.count >= LENGTH
        return self._observe(), reward, last and self.terminate, last and not self.terminate, {}

    def _observe(self):
        self.signs = self.np_random.choice([-1.0, 1.0], size=COMPONENTS)
        observation = np.zeros(self.observation_space.shape, np.float32)
        observation.flat[:COMPONENTS] = self.signs * 2
        return observation

    def _answers(self, action):
        """Return which components say `positive`, each kind of action in its own way."""
        assert self.action_space.contains(action)
        if isinstance(self.action_space, spaces.Discrete):
            return np.full(COMPONENTS, action != self.action_space.start)
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return (action - self.action_space.start).ravel() > 0
        if isinstance(self.action_space, spaces.MultiBinary):
            return action.ravel() > 0
        middle = (self.action_space.low + self.action_space.high) / 2
        return (action > middle).ravel()


class Broken(Mirror):
    """Gives rewards that are not numbers."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


class InPlace(Mirror):
    """Counts its steps in the one array that it keeps, as simulators in C do."""

    def _observe(self):
        super()._observe()
        if not hasattr(self, "kept"):
            self.kept = np.zeros(COMPONENTS, np.float32)
        self.kept[:] = self.count
        return self.kept


SPACES = {
    "Discrete": lambda: spaces.Discrete(2, start=3),
    "MultiDiscrete": lambda: spaces.MultiDiscrete([2, 4], start=[0, 5]),
    "MultiBinary": lambda: spaces.MultiBinary((1, 2)),
    "Box": lambda: spaces.Box(np.float32([[-2, 5]]), np.float32([[2, 9]])),
    "IntegerBox": lambda: spaces.Box(0, 4, (2,), np.int32),
    "BoolBox": lambda: spaces.Box(0, 1, (2,), np.bool_),
}


def make(kind, cls=Mirror, **options):
    return cls(SPACES[kind](), **options)


NAMES = {
    **{kind: {"kind": kind} for kind in SPACES},
    "Image": {"kind": "Discrete", "observation_shape": (2, 3)},
    "Terminating": {"kind": "Discrete", "terminate": True},
    "Broken": {"kind": "Discrete", "cls": Broken},
    "InPlace": {"kind": "Discrete", "cls": InPlace},
}

for name, options in NAMES.items():
    gymnasium.register(f"tests/{name}-v0", entry_point=make, kwargs=options)
