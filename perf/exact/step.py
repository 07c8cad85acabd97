"""What one forward and backward takes beside time: memory, host reads, operators, calls."""

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from klppo_compile.perf.providers import Loss, step_of
from klppo_compile.perf.workloads import Problem

Counts = dict[str, tuple[float, str]]
"""Of each metric its value and its unit; less is better."""

SYNCS = {"aten::_local_scalar_dense", "aten::equal", "aten::masked_select", "aten::nonzero"}
"""Operators that make the host wait for a device: they read a value, or a size that data decide."""
READ_ON_CPUS_ALONE = {"aten::std", "aten::var"}
"""Operators whose CPU kernels read values that their device kernels don't."""
WARM_UP = 2


def count_eager(loss: Loss, case: Problem) -> Counts:
    """Everything of a loss that runs eagerly; how often it calls its networks, by their hooks."""
    networks = {"actor": case.actor[0].module, "critic": case.critic.module}
    calls = dict.fromkeys(networks, 0)

    def counting(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    handles = [x.register_forward_hook(counting(name)) for name, x in networks.items()]
    loss(case.data)
    for handle in handles:
        handle.remove()
    found: Counts = {f"{name} calls": (n, "calls") for name, n in calls.items()}
    return found | count_step(loss, case)


def count_step(loss: Loss, case: Problem) -> Counts:
    """Host reads, operators, peak and kept memory of one step, once it is warm.

    Peak memory is what PyTorch's allocator hands out above what is held before the step; what
    generated C++ keeps on its own stack is not in it.
    """
    step = step_of(loss, case)
    for _ in range(WARM_UP):
        step()
    gc.collect()
    gc.disable()
    try:
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as found:
            kept = step()
    finally:
        gc.enable()
    del kept
    events = found.events()
    given = (*case.data.values(), *case.leaves, *buffers_of(loss))
    return {
        "host syncs": (sum(map(is_sync, events)), "syncs"),
        "operators": (sum(e.name.startswith("aten::") for e in events), "calls"),
        "peak memory": (peak_of(found), "B"),
        "saved for backward": (saved_bytes(sum_of_losses(loss(case.data)), given), "B"),
    }


def is_sync(event: Any) -> bool:
    """Whether a profiler's event would make the host wait for a device."""
    if event.name not in SYNCS:
        return False
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.name in READ_ON_CPUS_ALONE:
            return False
    return True


def sum_of_losses(out: Any) -> Tensor:
    """What is differentiated."""
    total: Tensor = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
    return total


def buffers_of(loss: Loss) -> Iterable[Tensor]:
    """Beta and the coefficients: they are there anyway."""
    return loss.buffers() if isinstance(loss, nn.Module) else ()


def peak_of(found: Any) -> int:
    """The most bytes held at once during a profile, above those at its begin."""
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def saved_bytes(total: Tensor, given: Iterable[Tensor]) -> int:
    """Bytes that the graph behind `total` keeps for its backward, beyond the tensors given."""
    known = {x.untyped_storage().data_ptr() for x in given}
    sizes: dict[int, int] = {}
    seen, left = set(), [total.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [following for following, _ in node.next_functions]
        for tensor in saved_tensors(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def saved_tensors(node: Any) -> Iterator[Tensor]:
    """The tensors a node of the autograd graph holds, PyTorch's own and hand-written ones alike."""
    several = [getattr(node, "saved_tensors", ())]
    several += [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    for value in several:
        yield from (x for x in _flat(value) if isinstance(x, torch.Tensor))


def _flat(value: object) -> Iterable[object]:
    return value if isinstance(value, (tuple, list)) else (value,)
