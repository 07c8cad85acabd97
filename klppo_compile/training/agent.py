"""Actor and critic for one pair of spaces: raw observations in, a distribution or a value out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from klppo_compile.training.normaliser import ObservationNormaliser
from klppo_compile.training.spaces import ActionKind, ActionSpec, ObservationSpec

HIDDEN = 64
INITIAL_SCALE = 0.5
"""Standard deviation of a box action at the start, in half ranges of its bounds."""
LARGEST_BOUND = 1e15
"""A bound beyond says nothing, such as float32's largest number; squares of others stay finite."""


def categorical(logits: Tensor) -> Distribution:
    """One choice per row; logits `[*batch, A]`."""
    return Categorical(logits=logits, validate_args=False)


def multi_categorical(logits: Tensor) -> Distribution:
    """K independent choices per row; logits `[*batch, K, A]`, -inf beyond a component's own."""
    return Independent(Categorical(logits=logits, validate_args=False), 1, validate_args=False)


def multi_bernoulli(logits: Tensor) -> Distribution:
    """K independent bits per row; logits `[*batch, K]`."""
    return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)


def independent_normal(loc: Tensor, scale: Tensor) -> Distribution:
    """A diagonal Gaussian per row; loc and scale `[*batch, D]`."""
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


FAMILIES: dict[ActionKind, tuple[Callable[..., Distribution], tuple[str, ...]]] = {
    "discrete": (categorical, ("logits",)),
    "multi_discrete": (multi_categorical, ("logits",)),
    "multi_binary": (multi_bernoulli, ("logits",)),
    "box": (independent_normal, ("loc", "scale")),
}
"""The distribution of each kind of action, and the names of its parameters."""


class NormalHead(nn.Module):
    """Location from the features, scale from a parameter of its own, in the action's units."""

    centre: Tensor
    half_range: Tensor

    def __init__(self, features: int, action: ActionSpec) -> None:
        super().__init__()
        self.loc = _linear(features, action.size, gain=0.01)
        self.log_scale = nn.Parameter(torch.full((action.size,), math.log(INITIAL_SCALE)))
        centre, half_range = _unit(*(torch.from_numpy(bound) for bound in action.bounds()))
        self.register_buffer("centre", centre.float())
        self.register_buffer("half_range", half_range.float())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc and scale, `[*batch, D]` each."""
        loc = self.centre + self.half_range * self.loc(features)
        return loc, (self.half_range * self.log_scale.exp()).expand_as(loc)


def _unit(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centre and half range in which a box action is measured at the start.

    Next to the only bound there is, for elsewhere every action may be clipped to one and the same.
    Saved runs hold their own, and keep them.
    """
    bounded_below, bounded_above = low >= -LARGEST_BOUND, high <= LARGEST_BOUND
    both = bounded_below & bounded_above
    beside = torch.where(bounded_below, low + 1, torch.where(bounded_above, high - 1, 0.0))
    centre = torch.where(both, (low + high) / 2, beside)
    return centre, torch.where(both & (high > low), (high - low) / 2, 1.0)


class MultiCategoricalHead(nn.Module):
    """Logits `[*batch, K, A]` for K choices of unequal size, padded with -inf."""

    padding: Tensor

    def __init__(self, features: int, action: ActionSpec) -> None:
        super().__init__()
        counts = torch.tensor(action.counts)
        widest = max(action.counts)
        self.register_buffer("padding", torch.arange(widest) >= counts.unsqueeze(-1))
        self.logits = _linear(features, len(action.counts) * widest, gain=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Return the padded logits."""
        logits: Tensor = self.logits(features)
        logits = logits.reshape(*logits.shape[:-1], *self.padding.shape)
        return logits.masked_fill(self.padding, -torch.inf)


@dataclass(frozen=True)
class Agent:
    """The networks of a run. Actor and critic share the normaliser, and nothing else."""

    normaliser: ObservationNormaliser
    actor: ProbabilisticTensorDictSequential
    critic: TensorDictModule
    policy: nn.Module
    """The actor's network: observation to head parameters, without the TensorDict around it."""
    value: nn.Module
    """The critic's network: observation to value `[*batch, 1]`."""
    head_keys: tuple[str, ...]
    distribution: Callable[..., Distribution]

    def head(self, observation: Tensor) -> tuple[Tensor, ...]:
        """Return the policy's parameters, in the order of `head_keys`."""
        parameters = self.policy(observation)
        return parameters if isinstance(parameters, tuple) else (parameters,)


def build_agent(observation: ObservationSpec, action: ActionSpec) -> Agent:
    """Make fresh networks: two hidden layers of 64 tanh units, orthogonal, a small policy head."""
    distribution, head_keys = FAMILIES[action.kind]
    normaliser = ObservationNormaliser(observation.shape)
    policy = nn.Sequential(normaliser, *_trunk(observation.size), _policy_head(action))
    value = nn.Sequential(normaliser, *_trunk(observation.size), _linear(HIDDEN, 1, gain=1.0))
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(policy, in_keys=["observation"], out_keys=list(head_keys)),
        ProbabilisticTensorDictModule(
            in_keys=list(head_keys),
            out_keys=["action"],
            distribution_class=distribution,
            return_log_prob=True,
            default_interaction_type=InteractionType.RANDOM,
        ),
    )
    critic = TensorDictModule(value, in_keys=["observation"], out_keys=["state_value"])
    return Agent(normaliser, actor, critic, policy, value, head_keys, distribution)


def _policy_head(action: ActionSpec) -> nn.Module:
    if action.kind == "box":
        return NormalHead(HIDDEN, action)
    if action.kind == "multi_discrete":
        return MultiCategoricalHead(HIDDEN, action)
    width = action.counts[0] if action.kind == "discrete" else action.size
    return _linear(HIDDEN, width, gain=0.01)


def _trunk(inputs: int) -> list[nn.Module]:
    root_two = math.sqrt(2.0)
    return [
        _linear(inputs, HIDDEN, gain=root_two),
        nn.Tanh(),
        _linear(HIDDEN, HIDDEN, gain=root_two),
        nn.Tanh(),
    ]


def _linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
