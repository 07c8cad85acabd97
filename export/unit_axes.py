"""Axes of size 1 taken out of elementwise operators. Torch is not needed here.

ONNX Runtime's CPU provider walks an elementwise operator in spans that end at an axis of size 1:
`[N, 1, A]` in N spans of A numbers, `[N, 1]` in N spans of one. `[N, A]` and `[N]` are one span
each, which took a third off the time of a categorical loss. On other providers it changes nothing.
"""

import onnx

from klppo_compile.export.structure import ELEMENTWISE, dimensions

OPERATORS = frozenset(ELEMENTWISE.split())
Axes = tuple[int, ...]


def take_out(proto: onnx.ModelProto) -> None:
    """Rewrite a model's elementwise operators without the axes that are 1 in all they touch."""
    writer = _Writer(proto)
    for node in proto.graph.node:
        writer.write(node)
    del proto.graph.node[:]
    proto.graph.node.extend(_needed(writer.nodes, {x.name for x in proto.graph.output}))
    proto.graph.initializer.extend(writer.constants.values())
    del proto.graph.value_info[:]


class _Writer:
    """The nodes of the rewritten graph; each value keeps its name, beside one without the axes."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        # A shape of unknown rank looks like a scalar's, unless one asks.
        known = [x for x in values if x.type.tensor_type.HasField("shape")]
        self.shapes = {x.name: dimensions(x) for x in known}
        self.shapes |= {x.name: list(x.dims) for x in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[Axes, onnx.TensorProto] = {}
        self.thin: dict[tuple[str, Axes], str] = {}

    def write(self, node: onnx.NodeProto) -> None:
        """One node of the old graph."""
        axes = self._unit_axes(node)
        if not axes:
            self.nodes.append(node)
            return
        rank, (out,) = len(self.shapes[node.output[0]]), node.output
        inputs = []
        for name in node.input:
            missing = rank - len(self.shapes[name])
            inputs.append(self._without(name, tuple(a - missing for a in axes if a >= missing)))
        thin = self.thin[out, axes] = f"{out}_thin"
        node.output[0] = thin
        node.input[:] = inputs
        self.nodes += [node, self._shaped("Unsqueeze", thin, axes, out)]

    def _unit_axes(self, node: onnx.NodeProto) -> Axes:
        names = (*node.input, *node.output)
        if node.op_type not in OPERATORS or not all(name in self.shapes for name in names):
            return ()
        shape = self.shapes[node.output[0]]
        axes = tuple(i for i, size in enumerate(shape) if size == 1)
        return axes if len(axes) < len(shape) else ()

    def _without(self, name: str, axes: Axes) -> str:
        """The value without some axes; none are in a scalar."""
        if not axes:
            return name
        if (name, axes) not in self.thin:
            out = self.thin[name, axes] = f"{name}_without_{'_'.join(map(str, axes))}"
            self.nodes.append(self._shaped("Squeeze", name, axes, out))
        return self.thin[name, axes]

    def _shaped(self, kind: str, name: str, axes: Axes, out: str) -> onnx.NodeProto:
        if axes not in self.constants:
            label, int64 = f"unit_axes_{'_'.join(map(str, axes))}", onnx.TensorProto.INT64
            self.constants[axes] = onnx.helper.make_tensor(label, int64, [len(axes)], axes)
        inputs = [name, self.constants[axes].name]
        return onnx.helper.make_node(kind, inputs, [out], name=f"{kind}_{out}")


def _needed(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the wanted values come from."""
    kept = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
