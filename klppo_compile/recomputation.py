"""Recomputing a forward inside a backward (activation checkpointing): which beta it must read.

A recomputation has to repeat its forward, and beta has moved since. So each call remembers, for the
tensordict it was given, the beta it used. Eager only: a compiled graph can't tell where it runs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


def in_backward() -> bool:
    """Whether autograd is running a backward in this thread."""
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001 - torch has no public name


def by_hooks() -> bool:
    """Whether hooks keep what this forward saves, as those of activation checkpointing do.

    Its reentrant form has none, and runs the forward without gradients.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # noqa: SLF001


class UsedBetas:
    """The beta `[]` that the last call on a tensordict used, while the tensordict lives.

    Only calls that may be repeated are remembered: a copy of beta costs as much as an operator.
    """

    def __init__(self) -> None:
        self._used = WeakIdKeyDictionary()
        self._last: Tensor | None = None  # for a recomputation that makes its tensordict anew

    def of(self, tensordict: Any, beta: Tensor) -> Tensor:
        """`beta` for a call outside backward, which is remembered; inside, the one remembered."""
        if in_backward():
            used: Tensor = self._used.get(tensordict, beta if self._last is None else self._last)
            return used
        if by_hooks() and torch.is_grad_enabled():
            self._used[tensordict] = self._last = beta.detach().clone()
        return beta

    def __reduce__(self) -> Any:
        """Copies and pickles start empty: what is remembered belongs to calls in flight."""
        return (UsedBetas, ())
