"""What a graph may be made of, so that every provider runs it. Torch is not needed here."""

from collections.abc import Iterable
from typing import Any

import onnx

from klppo_compile.exit_codes import BadInputError, FailedError
from klppo_compile.export.manifest import DIMENSIONS, Manifest

ELEMENTWISE = (
    "Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mish Mod "
    "Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt "
    "Sub Sum Tanh ThresholdedRelu Where Xor"
)
SHAPES = (
    "Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Pad Range "
    "Reshape Shape Size Slice Split Squeeze Tile Transpose Unsqueeze"
)
REDUCTIONS = (
    "ArgMax ArgMin CumSum LogSoftmax ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK Trilu"
)
LAYERS = (
    "AveragePool BatchNormalization Conv ConvTranspose Einsum GRU Gemm GlobalAveragePool "
    "GlobalMaxPool GroupNormalization InstanceNormalization LSTM LayerNormalization MatMul "
    "MaxPool RNN"
)
ALLOWED = frozenset(f"{ELEMENTWISE} {SHAPES} {REDUCTIONS} {LAYERS}".split())
"""Operators of the standard domain that the CPU, CUDA and TensorRT providers of ONNX Runtime run
without control flow, synchronisation or random numbers."""


def check_structure(proto: onnx.ModelProto) -> None:
    """onnx.checker in full, and strict shape inference."""
    require_own_weights(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FailedError(f"onnx.checker: {str(error).splitlines()[0]}") from error


def require_own_weights(proto: onnx.ModelProto) -> None:
    """Refuse a file that names others."""
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        raise BadInputError(
            "a file must hold its own weights; this one names other files, which are not read."
        )


def lint(proto: onnx.ModelProto) -> list[str]:
    """Operators that not every provider runs, and what else must not be in a file."""
    standard = ("", "ai.onnx")
    faults = [
        f"it uses the domain {entry.domain!r}; only standard operators run everywhere"
        for entry in proto.opset_import
        if entry.domain not in standard
    ]
    faults += [f"it has local functions, such as {f.name!r}" for f in proto.functions[:1]]
    faults += [
        f"the operator {node.op_type} ({node.name}) is not one that the CPU, CUDA and TensorRT"
        " providers all run"
        for node in proto.graph.node
        if node.domain not in standard or node.op_type not in ALLOWED
    ]
    return faults


def lint_shapes(proto: onnx.ModelProto, manifest: Manifest) -> list[str]:
    """Inputs and outputs whose dimensions are not what the manifest says."""
    lead: list[Any] = list(DIMENSIONS[: manifest.batch_dims])
    if manifest.batch:
        lead[0] = manifest.batch
    faults = []
    for spec, value in zip(manifest.inputs, proto.graph.input, strict=False):
        found, wanted = dimensions(value), [*lead, *spec.shape]
        if value.name != spec.name or found != wanted:
            faults.append(f"the input {value.name} has the shape {found}, not {wanted}")
    names = [value.name for value in proto.graph.output]
    if names != list(manifest.output_names()):
        faults.append(f"its outputs are {names}")
    for output, value in zip(manifest.outputs, proto.graph.output, strict=False):
        found = dimensions(value)
        if output.rows and found[: len(lead)] != lead:
            faults.append(f"the output {value.name} has the shape {found}, not {lead} first")
    return faults


def dimensions(value: onnx.ValueInfoProto) -> list[Any]:
    """Names and sizes."""
    shape = value.type.tensor_type.shape
    return [d.dim_param or d.dim_value for d in shape.dim]


def operators(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """How many there are of each type, most frequent first."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
