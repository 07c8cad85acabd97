"""The exported loss: its nodes and its size."""

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from klppo_compile.perf.comparing.rules import BY_TYPE, NODES
from klppo_compile.perf.exact.step import Counts
from klppo_compile.perf.providers import our_loss
from klppo_compile.perf.workloads import Workload, problem


def count_onnx(workload: Workload) -> Counts:
    """Nodes in all and of each type, subgraphs' and functions' among them; bytes of the file."""
    from klppo_compile.export.exporting import export_loss

    case = problem(workload)
    with tempfile.TemporaryDirectory(prefix="klppo-onnx-") as folder:
        path = Path(folder) / "loss.onnx"
        exported = export_loss(our_loss(case), case.data.detach(), path, checked=False)
        model = onnx.load(path)
    types = Counter(node.op_type for graph in graphs_of(model) for node in graph.node)
    found: Counts = {"ONNX file": (exported.size, "B"), NODES: (types.total(), "nodes")}
    return found | {f"{BY_TYPE}{name}": (n, "nodes") for name, n in sorted(types.items())}


def graphs_of(model: onnx.ModelProto) -> list[onnx.GraphProto | onnx.FunctionProto]:
    """The graph, its subgraphs and the functions it calls."""
    left: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    found = []
    while left:
        graph = left.pop()
        found.append(graph)
        left += [x.g for node in graph.node for x in node.attribute if x.HasField("g")]
    return found
