"""Inductor's code for a CPU, whatever the size of the batch.

Inductor adds sums of more than 4,096 numbers in parts, which is more precise, and others at once.
Of a batch's size it asks which it is, and a guard keeps the answer: a minibatch of the other kind
is compiled anew, be it for the gradients of the user's own networks.
"""

from typing import Any
from unittest.mock import patch

import torch
from torch._inductor import compile as compile_graph
from torch._inductor import list_mode_options
from torch.compiler import config as cache


def inductor(
    graph: torch.fx.GraphModule,
    inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """A backend of `torch.compile`: Inductor, which adds in parts whatever has a size to be told.

    That takes a hundredth of the time of a small training step. A torch that asked in another way
    would compile as it does by itself.
    """
    from torch._inductor.codegen.cpp import CppKernel  # takes a second to load

    question = "need_use_acc_helper"
    asked = getattr(CppKernel, question, None)

    def answered(kernel: Any, reduction_type: str, dtype: torch.dtype, *rest: Any) -> bool:
        sizes = kernel.call_ranges[kernel.reduction_depth :]
        if (reduction_type, dtype) == ("sum", torch.float) and any(x.free_symbols for x in sizes):
            return True
        assert asked is not None  # torch asks
        return bool(asked(kernel, reduction_type, dtype, *rest))

    of_mode = list_mode_options(mode) if mode else {}
    tag = f"{cache.cache_key_tag}any_size"  # what is in the cache without it holds guards
    tagged = cache.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    with patch.object(CppKernel, question, answered, create=True), tagged:
        return compile_graph(graph, inputs, options=of_mode | (options or {}))


def preferred(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments of `torch.compile`, with this backend where Inductor would serve a CPU."""
    if device.type != "cpu" or arguments.get("backend") not in (None, "inductor"):
        return arguments
    # What Inductor does not know, torch refuses at once for its own name only.
    torch.compile(abs, **arguments | {"options": dict(arguments.get("options") or {}) or None})
    return arguments | {"backend": inductor}
