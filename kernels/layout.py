"""A minibatch as the kernels see it: rows, columns and strides."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile.records import Family, Softmax


class Static(NamedTuple):
    """What a kernel is specialised to, beside family, layout and which inputs there are."""

    reduction: str
    loss_critic_type: str
    clipped: bool
    entropy_bonus: bool
    explained_variance: bool


@dataclass(frozen=True, eq=False)
class Problem:
    """One action head over N flattened rows.

    Attributes:
        family: whose text the kernels are specialised to.
        shape: [*P] of the rows.
        shapes: of the new parameters.
        N, K, D: rows, softmax heads of a row (1 otherwise), columns: elements or actions.
        bits: of the widest head parameter.
        action, old, new: with unit stride along columns; views wherever a stride reaches all rows.
        extra: log_volume, noise, weights; or None.
        draws: of the noise.
        rows: old_log_prob, advantage, value, target, old_value, proximal_log_prob, mask,
            value_mask; or None.
        SH, SN, S: strides of the head's tensors, the noise, the rows.
    """

    family: Family
    shape: torch.Size
    shapes: tuple[torch.Size, ...]
    N: int
    K: int
    D: int
    bits: int
    action: Tensor
    old: tuple[Tensor, ...]
    new: tuple[Tensor, ...]
    extra: tuple[Tensor | None, ...]
    draws: int
    rows: tuple[Tensor | None, ...]
    SH: tuple[int, ...]
    SN: tuple[int, ...]
    S: tuple[int, ...]

    @property
    def softmax(self) -> bool:
        """Whether a row is closed by a softmax, or a sum of its elements."""
        return isinstance(self.family, Softmax)

    @property
    def heavy(self) -> bool:
        """Whether an element loops over noise."""
        return self.extra[1] is not None

    @property
    def critic(self) -> bool:
        """Whether there is a value."""
        return self.rows[2] is not None


def problem(
    family: Family,
    action: Tensor,
    old: list[Tensor],
    new: list[Tensor],
    extra: tuple[Tensor | None, ...],
    rows: tuple[Tensor | None, ...],
) -> Problem:
    """Flatten the batch dimensions, by views wherever a uniform stride allows."""
    softmax = isinstance(family, Softmax)
    shape = new[0].shape[: -2 if softmax else -1]
    N, D = shape.numel(), new[0].shape[-1]
    K = new[0].shape[-2] if softmax else 1
    size = (N, K, D) if softmax else (N, D)
    flat_action = strided(
        action.reshape(N, K) if softmax else action.expand(*shape, D).reshape(N, D),
        unit=not softmax,
    )
    flat_old = tuple(strided(x.expand(new[0].shape).reshape(size)) for x in old)
    flat_new = tuple(strided(x.reshape(size)) for x in new)
    lead = 2 if softmax else 1
    SH = tuple(s for x in (flat_action, *flat_old, *flat_new) for s in steps(x)[:lead])
    log_volume, noise, weights = extra
    flat_noise = (
        None
        if noise is None
        else noise.expand(noise.shape[0], *shape, D).reshape(noise.shape[0], N, D)
    )
    flat = [None if x is None else x.expand(shape).reshape(N) for x in rows]
    return Problem(
        family=family,
        shape=shape,
        shapes=tuple(x.shape for x in new),
        N=N,
        K=K,
        D=D,
        bits=8 * max(x.element_size() for x in (*old, *new)),
        action=flat_action,
        old=flat_old,
        new=flat_new,
        extra=(log_volume, flat_noise, weights),
        draws=0 if noise is None else noise.shape[0],
        rows=tuple(flat),
        SH=SH,
        SN=(0, 0, 0) if flat_noise is None else flat_noise.stride(),
        S=tuple(0 if x is None else steps(x)[0] for x in flat),
    )


def strided(x: Tensor, unit: bool = True) -> Tensor:
    """`x`, copied where its columns don't lie side by side."""
    return x.contiguous() if unit and x.shape[-1] > 1 and x.stride(-1) != 1 else x


def steps(x: Tensor) -> tuple[int, ...]:
    """Strides; where a dimension of size 1 has an arbitrary one, a contiguous tensor's."""
    plain = torch.empty(x.shape, device="meta").stride()
    return tuple(p if n == 1 else s for n, s, p in zip(x.shape, x.stride(), plain, strict=True))
