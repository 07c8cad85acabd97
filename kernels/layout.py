"""A minibatch as the kernels see it: rows, columns and strides."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile.records import Family, Minibatch, PolicyHead, Softmax


class Static(NamedTuple):
    """What a kernel is specialised to, beside family, layout and which inputs there are."""

    reduction: str
    loss_critic_type: str
    clipped: bool
    entropy_bonus: bool
    explained_variance: bool


@dataclass(frozen=True, eq=False)
class Head:
    """One action head over N flattened rows.

    Attributes:
        family: whose text the kernels are specialised to.
        shapes: of the new parameters.
        K, D: softmax heads of a row (1 otherwise), columns: elements or actions.
        bits: of the widest parameter.
        action, old, new: with unit stride along columns; views wherever a stride reaches all rows.
        extra: log_volume, noise, weights; or None.
        draws: of the noise.
        SH, SN: strides of the head's tensors; of the noise and log_volume.
    """

    family: Family
    shapes: tuple[torch.Size, ...]
    K: int
    D: int
    bits: int
    action: Tensor
    old: tuple[Tensor, ...]
    new: tuple[Tensor, ...]
    extra: tuple[Tensor | None, ...]
    draws: int
    SH: tuple[int, ...]
    SN: tuple[int, ...]

    @property
    def softmax(self) -> bool:
        """Whether a row is closed by a softmax, or a sum of its elements."""
        return isinstance(self.family, Softmax)

    @property
    def heavy(self) -> bool:
        """Whether an element loops over noise."""
        return self.extra[1] is not None


@dataclass(frozen=True, eq=False)
class Rows:
    """What a row has beside its heads.

    Attributes:
        shape, N: [*P] of the rows, and how many they are.
        tensors: old_log_prob, advantage, value, target, old_value, proximal_log_prob, mask,
            value_mask, each [N]; or None.
        S: their strides.
    """

    shape: torch.Size
    N: int
    tensors: tuple[Tensor | None, ...]
    S: tuple[int, ...]

    @property
    def critic(self) -> bool:
        """Whether there is a value."""
        return self.tensors[2] is not None


@dataclass(frozen=True, eq=False)
class Problem:
    """A minibatch; `values` are the critic's rows where they are not the policy's."""

    heads: tuple[Head, ...]
    rows: Rows
    values: Rows | None

    @property
    def value(self) -> Tensor | None:
        """The critic's estimates, flat."""
        return (self.values or self.rows).tensors[2]


def problem(batch: Minibatch) -> Problem:
    """Flatten the batch dimensions, by views wherever a uniform stride allows."""
    first, value = batch.policy[0], batch.value
    shape = rows_of(first.new[0], first.family)
    policy = (batch.old_log_prob, batch.advantage)
    critic = (value, batch.value_target, batch.old_value)
    tail = (batch.proximal_log_prob, batch.mask)
    heads = tuple(head(h, shape) for h in batch.policy)
    if value is None or value.shape == shape:
        return Problem(heads, rows(shape, (*policy, *critic, *tail, batch.value_mask)), None)
    policy_rows = rows(shape, (*policy, None, None, None, *tail, None))
    values = rows(value.shape, (None, None, *critic, None, None, batch.value_mask))
    return Problem(heads, policy_rows, values)


def rows_of(parameter: Tensor, family: Family) -> torch.Size:
    """[*P], from a parameter."""
    return parameter.shape[: -2 if isinstance(family, Softmax) else -1]


def head(policy: PolicyHead, shape: torch.Size) -> Head:
    """One head over rows [*P]."""
    family, new, action = policy.family, policy.new, policy.action
    assert action is not None
    softmax = isinstance(family, Softmax)
    N, D = shape.numel(), new[0].shape[-1]
    K = new[0].shape[-2] if softmax else 1
    size = (N, K, D) if softmax else (N, D)
    flat_action = strided(
        action.reshape(N, K) if softmax else action.expand(*shape, D).reshape(N, D),
        unit=not softmax,
    )
    flat_old = tuple(strided(x.expand(new[0].shape).reshape(size)) for x in policy.old)
    flat_new = tuple(strided(x.reshape(size)) for x in new)
    lead = 2 if softmax else 1
    noise = policy.noise
    if noise is not None:
        noise = noise.expand(noise.shape[0], *shape, D).reshape(noise.shape[0], N, D)
    volume = policy.log_volume
    if volume is not None:
        volume = volume.expand(shape).reshape(N)
    weights = None if policy.weights is None else policy.weights.contiguous()
    return Head(
        family=family,
        shapes=tuple(x.shape for x in new),
        K=K,
        D=D,
        bits=8 * max(x.element_size() for x in (*policy.old, *new)),
        action=flat_action,
        old=flat_old,
        new=flat_new,
        extra=(volume, noise, weights),
        draws=0 if noise is None else noise.shape[0],
        SH=tuple(s for x in (flat_action, *flat_old, *flat_new) for s in steps(x)[:lead]),
        SN=(
            *((0, 0, 0) if noise is None else noise.stride()),
            0 if volume is None else steps(volume)[0],
        ),
    )


def rows(shape: torch.Size, tensors: tuple[Tensor | None, ...]) -> Rows:
    """Rows [*P], flat."""
    N = shape.numel()
    flat = tuple(None if x is None else x.expand(shape).reshape(N) for x in tensors)
    return Rows(shape, N, flat, tuple(0 if x is None else steps(x)[0] for x in flat))


def strided(x: Tensor, unit: bool = True) -> Tensor:
    """`x`, copied where its columns don't lie side by side."""
    return x.contiguous() if unit and x.shape[-1] > 1 and x.stride(-1) != 1 else x


def steps(x: Tensor) -> tuple[int, ...]:
    """Strides; where a dimension of size 1 has an arbitrary one, a contiguous tensor's."""
    out, plain = [], 1
    for n, s in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        out.append(plain if n == 1 else s)
        plain *= max(1, n)
    return tuple(reversed(out))
