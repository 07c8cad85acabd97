"""The same values in the shapes that Inductor's loops for a CPU are fast with.

Elsewhere these functions do the plain thing, but for `rough_exp` and `by_action`, which are asked
for here alone.
"""

import operator
from dataclasses import replace

import torch
from torch import Tensor

from klppo_compile.records import Factorised, PolicyHead
from klppo_compile.vocabulary import by_inductor_on_cpu

FEW = 8  # a sum of so many numbers is unrolled (unroll_reductions_threshold)
LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # numbers in a vector


def written(*rows: Tensor) -> tuple[Tensor, ...]:
    """The same values; for Inductor on a CPU of one shape and type, and computed here, once.

    It would compute what a row's elements share anew for every vector of them: an eighth of a
    softmax loss's time.
    """
    if not by_inductor_on_cpu(rows[0]):
        return rows
    return torch.stack(torch.broadcast_tensors(*rows)).unbind(0)


def flat_head(head: PolicyHead) -> PolicyHead:
    """The head with its new parameters one after the other in memory."""
    x = head.new[0]
    if not isinstance(head.family, Factorised) or not by_inductor_on_cpu(x):
        return head
    if all(x.is_contiguous() for x in head.new):
        return head
    # Halves of one network's output: rows of 6 in rows of 12 are computed row by row. Written out
    # once, every loop after it is flat.
    return replace(head, new=written(*head.new))


def chunks(*logits: Tensor) -> list[tuple[Tensor, ...]]:
    """The same logits [*P, K, A]; where few actions are left over by whole vectors, those apart.

    A row's loop takes a vector more for what is left over, be it one number. Apart, `by_action`,
    they are vectors of many rows: 18 actions as 16 and 2 are 1.2 times as fast. The more whole
    vectors there are, the less the one more weighs against the loops that are added.
    """
    if not by_inductor_on_cpu(logits[0]):
        return [logits]
    # A number in the code: Dynamo makes a symbol of what differs between losses of one process, and
    # sums of a symbol are not unrolled.
    actions = operator.index(logits[0].shape[-1])
    whole, left = divmod(actions, LANES)
    if not 0 < whole * left <= 4:
        return [by_action(*logits)]
    head, tail = zip(*(x.split([actions - left, left], -1) for x in logits), strict=True)
    return [head, by_action(*tail)]


def by_action(*logits: Tensor) -> tuple[Tensor, ...]:
    """The same logits [*P, K, A]; where actions are few, one action after the other in memory.

    Sums of few numbers are unrolled. Of neighbours that is row by row, in single numbers; here it
    is many rows at once: a softmax loss is 2.7 times as fast with 6 actions, 8 with 4.
    """
    if logits[0].shape[-1] > FEW:
        return logits
    return torch.stack([x.movedim(-1, 0) for x in logits]).movedim(1, -1).unbind(0)


def row_sums(*elements: Tensor) -> tuple[Tensor, ...]:
    """`[*P, D]` each to `[*P]`."""
    if not by_inductor_on_cpu(elements[0]):
        return tuple(x.sum(-1) for x in elements)
    # Inductor computes what it fuses with the sum of a short row one number at a time. A stack is
    # written first, in vectors: 1.8 times the speed of the whole forward at D = 6, 1.4 at D = 17.
    # The sums too, or those of 2 numbers would be taken in single numbers where they are used.
    return written(*torch.stack(elements).sum(-1).unbind(0))


def hits(taken: Tensor, first: int, last: int) -> Tensor:
    """Whether each of actions first, ..., last - 1 is the one taken: [*P, K, 1] to [*P, K, A]."""
    if not by_inductor_on_cpu(taken):
        return torch.arange(first, last, device=taken.device) == taken
    # An arange is built number by number wherever it is used, a tenth of the backward; of a stack
    # of different ones the numbers are read.
    index = torch.arange(first, last, dtype=taken.dtype, device=taken.device)
    index, _ = written(index, -index)
    return index == taken


def rough_exp(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, in its size only: (1 + x / 32)^32.

    As the weight of a mean it spares a loop its exponential, a tenth of a softmax loss's forward.
    The mean of a bulk that is exp(-8.6) likely each, as of 2^18 actions, still counts for a fifth.
    """
    x = (1.0 + x * (1 / 32)).clamp_min(0.0)
    for _ in range(5):
        x = x * x
    return x
