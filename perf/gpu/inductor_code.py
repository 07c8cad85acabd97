"""The CUDA code that Inductor writes for the torch text, on a machine without a GPU.

The text is traced on tensors without data, its two graphs (forward and backward, as training has
them) are moved to a device that is only described (`inductor_device`), and Inductor lowers them.
That takes private functions of torch, so the tool is for the one torch it was written with.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from klppo_compile.exit_codes import CannotError
from klppo_compile.functional import klpen_ppo_loss
from klppo_compile.perf.gpu.inductor_device import described_device
from klppo_compile.records import LossConfig

TORCH = "2.13.0"


@dataclass(frozen=True)
class Kernel:
    """One kernel of a module: its name, its Triton source with Inductor's decorator, its sizes."""

    name: str
    source: str
    rows: int
    reduced: int  # elements that one of its rows sums over; 1 where it sums nothing


@dataclass(frozen=True)
class Module:
    """What Inductor wrote for one graph.

    Attributes:
        kernels: by name.
        launches: their names in the order of launching.
        bytes: that the launches read and write, by Inductor's own count.
    """

    kernels: dict[str, Kernel]
    launches: list[str]
    bytes: int


def require_torch() -> None:
    """Refuse a torch whose private functions may be others.

    Raises:
        CannotError: it is not the one this was written with.
    """
    found = torch.__version__.split("+")[0]
    if found != TORCH:
        raise CannotError(
            f"Reading Inductor's code without a GPU needs torch {TORCH}, whose private functions it"
            f" calls; this is {found}. Install that one in an environment of its own."
        )


def modules(batch: Any, leaves: list[Tensor], chip: str) -> dict[str, Module]:
    """Inductor's forward and backward for a minibatch of tensors without data.

    Args:
        batch: a `Minibatch` on the device "meta".
        leaves: what is differentiated to.
        chip: a CUDA chip, as sm_90.
    """
    graphs = trace(batch, leaves)
    with described_device(chip):
        return {name: parse(*lower(graph, inputs)) for name, (graph, inputs) in graphs.items()}


def trace(batch: Any, leaves: list[Tensor]) -> dict[str, tuple[fx.GraphModule, list[Tensor]]]:
    """The graphs that AOTAutograd hands to Inductor, partitioned and decomposed for it."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    graphs: dict[str, tuple[fx.GraphModule, list[Tensor]]] = {}

    def keep(name: str) -> Callable[[fx.GraphModule, list[Tensor]], Callable[..., Any]]:
        def compiler(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            graphs[name] = graph, inputs
            return _boxed(graph)

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )

    # What `kernels.compiled_cost` compiles.
    config = LossConfig(clip_value=0.2)

    def losses(beta: Tensor) -> tuple[Tensor, ...]:
        out = klpen_ppo_loss(batch, beta, config, "torch")
        results = tuple(getattr(out, field.name) for field in fields(out))
        return tuple(x for x in results if x is not None)

    torch.compiler.reset()
    compiled = torch.compile(losses, fullgraph=True, backend=backend, dynamic=False)
    objective, entropy, critic, *_ = compiled(torch.empty((), device="meta"))
    torch.autograd.grad(objective + entropy + critic, leaves)
    return graphs


def _boxed(graph: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """A graph as AOTAutograd calls it."""
    from torch._functorch._aot_autograd.utils import make_boxed_func

    boxed: Callable[[list[Any]], Any] = make_boxed_func(graph.forward)
    return boxed


def lower(graph: fx.GraphModule, inputs: list[Tensor]) -> tuple[str, int]:
    """Inductor's text for a graph, moved to the described device, and the bytes it moves."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering
    from torch._subclasses import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    device, mode = torch.device("cuda", 0), FakeTensorMode()
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
    graph.recompile()
    with mode:
        moved = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in inputs
        ]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*moved)
    found: list[tuple[str, int]] = []

    def stop(lowering: Any) -> None:
        code = lowering.codegen()[0].value
        found.append((code, lowering.count_bytes()[0]))
        raise _WrittenError

    uncached = config.patch({"fx_graph_cache": False})
    with (
        mock.patch.object(GraphLowering, "_compile_to_module", stop),
        tracing(TracingContext(mode)),
        torch.no_grad(),
        uncached,
    ):
        try:
            compile_fx_inner(graph, moved)
        except Exception:  # Inductor wraps what stops it
            if not found:
                raise
    return found[0]


class _WrittenError(Exception):
    """The code is written; it would be loaded next, which takes a device."""


def parse(code: str, moved: int) -> Module:
    """Kernels and launches of a module's text."""
    sources = re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL)

    def size(source: str, name: str) -> int:
        found = re.search(rf"^\s+{name}numel = (\d+)$", source, re.MULTILINE)
        return int(found[1]) if found else 1

    kernels = {
        name: Kernel(name, source, size(source, "x"), size(source, "r0_"))
        for name, source in sources
    }
    launches = re.findall(r"^\s+(\w+)\.run\(", code, re.MULTILINE)
    return Module(kernels, launches, moved)
