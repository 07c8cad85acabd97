"""Recomputing a forward inside a backward (activation checkpointing): which beta it must read.

A recomputation has to repeat its forward, and beta has moved since. So each call that may be
repeated remembers the beta it used. Eager only: a compiled graph can't tell where it runs.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


def in_backward() -> bool:
    """Whether autograd is running a backward in this thread."""
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001 - torch has no public name


def checkpoint_of(hook: Any) -> tuple[Any, bool]:
    """The checkpoint that a hook of `torch.utils.checkpoint` serves, and whether it recomputes.

    None where the hook is another's. Read from the hook's closure, for torch tells it nowhere.
    """
    hook = getattr(hook, "_torchdynamo_orig_callable", hook)
    names = getattr(getattr(hook, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(hook, "__closure__", None) or (), strict=True))
    if "target_frame_ref" in cells:
        return cells["target_frame_ref"].cell_contents(), True
    return (cells["frame"].cell_contents, False) if "frame" in cells else (None, False)


@dataclass
class Calls:
    """The betas `[]` that a checkpoint's calls used, in order, and how many each backward saw."""

    betas: list[Tensor] = field(default_factory=list)
    seen: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))

    def again(self) -> Tensor | None:
        """The beta of the next call that this backward repeats; None where there was none."""
        task = torch._C._current_graph_task_id()  # noqa: SLF001
        number, self.seen[task] = self.seen[task], self.seen[task] + 1
        return self.betas[number] if number < len(self.betas) else None


class UsedBetas:
    """The betas `[]` that calls used which may be repeated: a copy costs as much as an operator.

    A recomputation is its checkpoint's and repeats its calls in order. Where another's hooks
    recompute, the tensordict tells the call, or, where that is made anew, it is the last one.
    """

    def __init__(self) -> None:
        self._checkpoints, self._used = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self._last: Tensor | None = None

    def of(self, tensordict: Any, beta: Tensor) -> Tensor:
        """`beta` for a call outside backward, which is remembered; inside, the one remembered."""
        # What keeps the tensors that this forward saves. Activation checkpointing has hooks in its
        # forward and in its recomputation; its reentrant form has none, and no gradients.
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # noqa: SLF001
        if hooks is None or not torch.is_grad_enabled():
            return beta
        checkpoint, recomputes = checkpoint_of(hooks[0])
        calls: Calls = Calls()
        if checkpoint is not None:
            calls = self._checkpoints.setdefault(checkpoint, calls)
        if recomputes and (used := calls.again()) is not None:
            return used
        repeats = in_backward()
        if repeats:
            used = self._used.get(tensordict, beta if self._last is None else self._last)
        else:
            used = self._used[tensordict] = self._last = beta.detach().clone()
        if not recomputes:
            calls.betas.append(used)
        return used if repeats else beta

    def __reduce__(self) -> Any:
        """Copies and pickles start empty: what is remembered belongs to calls in flight."""
        return (UsedBetas, ())
