"""From a graph module to a traced program: named dynamic batch, evaluation mode, nothing mutated.

What would be exported wrong is refused here, by the name of the network that is the reason.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.export import Dim, ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from klppo_compile.exit_codes import BadInputError, CannotError
from klppo_compile.export.graph import Graph
from klppo_compile.export.manifest import DIMENSIONS
from klppo_compile.loss import KLPENPPOLoss

TRACED_ROWS = 4
"""Rows of the example that is traced: 1 would be taken for a constant."""


@dataclass(frozen=True)
class Captured:
    """A traced program, and what belongs to its arguments."""

    program: ExportedProgram
    dynamic_shapes: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


@contextmanager
def traceable() -> Iterator[None]:
    """No gradients, nothing compiled, no checks of distributions, no message of the tracer's."""
    # torch gives no way to ask for it.
    validate = Distribution._validate_args  # noqa: SLF001
    silenced = logging.root.manager.disable
    Distribution.set_default_validate_args(False)
    # The tracer logs the whole graph where it fails; what matters of it is in our error.
    logging.disable(max(silenced, logging.WARNING))
    try:
        with (
            torch.no_grad(),
            # A network that torch.compile wraps is traced as what it wraps.
            torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        Distribution.set_default_validate_args(validate)
        logging.disable(silenced)


def frozen_copy(loss: KLPENPPOLoss) -> tuple[KLPENPPOLoss, list[str]]:
    """A copy of the loss in evaluation mode, and the modules that this changes."""
    copied = copy.deepcopy(loss).cpu()
    changed = []
    for name in ("actor_network", "critic_network"):
        network = getattr(copied, name)
        if network is None:
            continue
        # A functional loss holds its networks apart: its own eval() doesn't reach them.
        for path, module in network.named_modules():
            if module.training and _depends_on_mode(module):
                changed.append(f"{name}.{path} ({type(module).__name__})")
        network.eval()
    copied.actor_head.constants.pop("validate_args", None)
    return copied.eval(), sorted(set(changed))


def _depends_on_mode(module: nn.Module) -> bool:
    return isinstance(module, (_BatchNorm, _DropoutNd, nn.RReLU))


def traced_rows(graph: Graph, example: TensorDictBase, batch: int) -> tuple[Tensor, ...]:
    """The graph's arguments, `batch` (or `TRACED_ROWS`) rows of the example, then the scalars."""
    count = batch or TRACED_ROWS
    rows = example[torch.arange(count) % example.shape[0]]
    if graph.batch_dims == 2 and rows.shape[1] == 1:
        rows = rows.expand(count, 1).contiguous()
        rows = torch.cat([rows, rows], 1)
    entries = [rows.get(entry.key).detach().cpu().contiguous() for entry in graph.entries]
    numbers = [number.detach().cpu().clone() for number in graph.scalars().values()]
    return (*entries, *numbers)


def capture(graph: Graph, example: TensorDictBase, batch: int) -> Captured:
    """Trace the graph over rows of the example; `batch` 0 is dynamic.

    Raises:
        BadInputError: a batch that doesn't fit in memory.
        CannotError: a network that fixes the batch size, branches on data, changes a buffer, or
            can't be traced at all.
    """
    try:
        arguments = traced_rows(graph, example, batch)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise BadInputError(
            f"a batch of {batch:,} rows of the example must fit in memory; it doesn't. Give a"
            " smaller --batch, or leave it dynamic."
        ) from error
    named = DIMENSIONS[: graph.batch_dims]
    dims = {i: Dim(name) for i, name in enumerate(named) if i or not batch}
    rows = [dims for _ in graph.entries]
    shapes = {"tensors": (*rows, *[None] * len(graph.scalars()))}
    before = {name: x.clone() for name, x in graph.named_buffers()}
    with traceable():
        try:
            results = graph(*arguments)
            names = graph.names
            _refuse_changed_buffers(before, graph)
            program = torch.export.export(graph, arguments, dynamic_shapes=shapes, strict=False)
        except CannotError:
            raise
        except Exception as error:  # whatever a foreign network makes the tracer raise
            raise CannotError(explain(graph, example, error)) from error
    _refuse_mutation(program)
    inputs = (*[e.name for e in graph.entries], *graph.scalars())
    _refuse_twice(inputs + names)
    return Captured(program, shapes, inputs, names, arguments, results)


STATEFUL = (
    "a network must not change its buffers in forward; this one changes {}, and a graph would drop"
    " that silently. Move the change out of forward, or freeze it in evaluation mode."
)


def _refuse_changed_buffers(before: Mapping[str, Tensor], graph: Graph) -> None:
    after = dict(graph.named_buffers())
    for name, x in before.items():
        same = name in after and after[name].shape == x.shape
        if not same or not torch.equal(after[name].nan_to_num(), x.nan_to_num()):
            raise CannotError(STATEFUL.format(name.removeprefix("loss.")))


def _refuse_mutation(program: ExportedProgram) -> None:
    """Refuse a graph that writes to a buffer or to an input."""
    signature = program.graph_signature
    buffers = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        changes = schema is not None and schema.is_mutable
        # The one operator that changes its arguments and doesn't say so.
        if node.target is torch.ops.aten.batch_norm.default and node.args[5]:
            raise CannotError(
                "a BatchNorm that takes the batch's own statistics gives a row other numbers in"
                " other batches. Give it running statistics (track_running_stats=True)."
            )
        root = _origin(node.args[0]) if changes and node.args else None
        if root is not None and root.op == "placeholder":
            name = buffers.get(root.name, root.name)
            raise CannotError(STATEFUL.format(name.removeprefix("loss.")))


def _origin(node: Any) -> Any:
    """The node whose memory a node is, through views and earlier changes in place."""
    while isinstance(node, torch.fx.Node):
        schema = getattr(node.target, "_schema", None)
        shares = schema is not None and schema.returns and schema.returns[0].alias_info is not None
        if not shares or not node.args:
            return node
        node = node.args[0]
    return None


def _refuse_twice(names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CannotError(
            f"inputs and outputs of a graph need names of their own; {twice[0]!r} is there twice."
            " Rename the tensordict key."
        )


# ---- which network it was


def explain(graph: Graph, example: TensorDictBase, error: Exception) -> str:
    """Why a program can't be traced, with the name of the innermost module that can't."""
    kind = getattr(graph.loss.actor_head.kind, "__name__", "its class")
    found = _culprit(graph, example)
    if found is None:
        return (
            f"the policy's distribution ({kind}) can't be traced: {_reason(error)}. Use a family of"
            " independent elements: Normal, TanhNormal, Categorical, Bernoulli, Beta."
        )
    where, reason = found
    # The tracer's fix, "batch = 8", or what torch says of shapes that don't go together.
    if any(word in reason for word in ("batch = ", "shape", "size of tensor")):
        return (
            f"{where} fixes the batch size ({reason}), so one graph can't serve other batches."
            " Write it for any batch (x.flatten(1) instead of x.reshape(8, -1); no branch on"
            " x.shape[0]), or export for one size with --batch N."
        )
    return (
        f"{where} can't be traced: {reason}. Write it without branches on values and without"
        " NumPy, or export another network."
    )


def _reason(error: BaseException) -> str:
    """The tracer's own fix if it has one, else the first line of what it says."""
    text = str(error) or repr(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for at, line in enumerate(lines):
        if line.startswith("Suggested fixes"):
            fixes = [fix for fix in lines[at + 1 :] if " = " in fix]
            return ", ".join(fixes) or lines[0]
    return lines[0][:200] if lines else type(error).__name__


def _culprit(graph: Graph, example: TensorDictBase) -> tuple[str, str] | None:
    """The innermost module that can't be traced over batches, and why."""
    for name in ("actor_network", "critic_network"):
        network = getattr(graph.loss, name)
        if network is None:
            continue
        seen = _calls(graph, network, example)
        for path, module in reversed(list(network.named_modules())):
            if path in seen and (reason := _fixes(module, seen[path])) is not None:
                return f"{name}.{path} ({type(module).__name__})", reason
    return None


def _calls(graph: Graph, network: nn.Module, example: TensorDictBase) -> dict[str, tuple[Any, ...]]:
    """What each module of tensors was called with, in one eager run."""
    seen: dict[str, tuple[Any, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, path=path: seen.__setitem__(path, inputs)
        )
        for path, module in network.named_modules()
    ]
    try:
        with traceable(), suppress(Exception):
            # Where it fails, the module that does has been called.
            graph(*traced_rows(graph, example, 0))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        path: inputs
        for path, inputs in seen.items()
        if inputs and all(isinstance(x, Tensor) and x.ndim for x in inputs)
    }


def _fixes(module: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why one module can't be traced with a dynamic batch, or None if it can."""
    module = copy.deepcopy(module)
    dims = {0: Dim("batch")}
    try:
        with traceable():
            torch.export.export(
                module, inputs, dynamic_shapes=tuple(dims for _ in inputs), strict=False
            )
    except Exception as error:  # noqa: BLE001  any reason is the answer
        return _reason(error)
    return None
