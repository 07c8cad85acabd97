"""From a traced program to the bytes of one ONNX file, without a trace of the machine."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from klppo_compile.distributions import FAMILIES
from klppo_compile.exit_codes import BadInputError, CannotError, FailedError
from klppo_compile.export.capture import Captured
from klppo_compile.export.gamma import needs_gamma, without_gamma
from klppo_compile.export.manifest import METADATA_KEY, Manifest
from klppo_compile.export.structure import check_structure, lint, lint_shapes
from klppo_compile.export.unit_axes import take_out

OPSETS = (18, 19, 20, 21)
LARGEST = 2**31 - 1
"""Bytes that one protobuf message, and so one file, can hold."""


def check_opset(opset: int) -> None:
    """Refuse an opset that torch's exporter can't write, or that providers lag behind."""
    if opset in OPSETS:
        return
    reason = (
        "torch's exporter writes operators of opset 18 under any lower header"
        if opset < OPSETS[0]
        else "the CUDA provider lacks operators at later ones"
    )
    raise BadInputError(f"the opset must be 18 to 21; got {opset}: {reason}. Use --opset 20.")


def to_proto(captured: Captured, opset: int, family: str) -> onnx.ModelProto:
    """The program as a model, with nothing in it but the graph and the weights."""
    try:
        with quiet():
            traced = captured.program
            program = torch.onnx.export(
                without_gamma(traced) if needs_gamma(traced) else traced,
                dynamic_shapes=captured.dynamic_shapes,
                input_names=list(captured.inputs),
                output_names=list(captured.outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise CannotError(
            f"ONNX can't express this graph of a {family} policy: {_reason(error)}. Use a family of"
            " independent elements (Normal, TanhNormal, Categorical, Bernoulli, Beta), or --format"
            " pt2."
        ) from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    strip(proto)
    write_out(proto)
    take_out(proto)
    return proto


def _reason(error: BaseException) -> str:
    """What the exporter's error is about: the operator it has no translation for, if it is that."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    operator = re.search(r"(aten|prims)[.:]+([a-z_]+)", " ".join(reversed(texts)))
    if operator:
        return f"it has no operator for torch's {operator[2]}"
    return next((t.splitlines()[0] for t in reversed(texts) if t), type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's messages about packages, names and its own steps."""
    silenced = logging.root.manager.disable
    logging.disable(max(silenced, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)


def strip(proto: onnx.ModelProto) -> None:
    """Drop every comment: they hold paths and source lines of the exporting machine."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def write_out(proto: onnx.ModelProto) -> None:
    """Say with other operators what ONNX Runtime lacks, or computes to too few digits.

    It has no Where of truth values. Its Sigmoid is exact to 1e-7 of 1, not of a small value, which
    the KL of a Bernoulli lives on.
    """
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.output)
    }
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        kind = kinds.get(node.output[0])
        if node.op_type == "Where" and kind == onnx.TensorProto.BOOL:
            nodes += _choice(node)
        elif node.op_type == "Sigmoid" and kind == onnx.TensorProto.FLOAT:
            nodes += _sigmoid(node)
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _choice(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """(condition and yes) or (not condition and no)."""
    (condition, yes, no), out = node.input, node.output[0]
    kept, against, other = (f"{out}_{part}" for part in ("kept", "not", "other"))
    return _named(
        node,
        ("And", [condition, yes], kept),
        ("Not", [condition], against),
        ("And", [against, no], other),
        ("Or", [kept, other], out),
    )


def _sigmoid(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """1 / (1 + exp(-x))."""
    (x,), out = node.input, node.output[0]
    minus, power, one, total = (f"{out}_{part}" for part in ("minus", "exp", "one", "total"))
    value = onnx.helper.make_tensor(one, onnx.TensorProto.FLOAT, (), [1.0])
    constant = onnx.helper.make_node("Constant", [], [one], name=one, value=value)
    steps = _named(
        node,
        ("Neg", [x], minus),
        ("Exp", [minus], power),
        ("Add", [power, one], total),
        ("Reciprocal", [total], out),
    )
    return [constant, *steps]


def _named(node: onnx.NodeProto, *steps: tuple[str, list[str], str]) -> list[onnx.NodeProto]:
    """Nodes in the place of one, named after what they make."""
    make = onnx.helper.make_node
    return [make(kind, given, [out], name=f"{node.name}_{out}") for kind, given, out in steps]


def rare_floats(proto: onnx.ModelProto) -> list[str]:
    """The types of floating point in a graph besides float32, such as "bfloat16"."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    kinds = {value.type.tensor_type.elem_type for value in inferred.value_info}
    kinds |= {tensor.data_type for tensor in inferred.initializer}
    names = {onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds}
    return sorted(name for name in names - {"float"} if "float" in name or name == "double")


def add_defaults(proto: onnx.ModelProto, scalars: dict[str, float]) -> None:
    """Give the optional inputs their values: an initializer of an input's name is its default."""
    for name, value in scalars.items():
        default = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, (), [value])
        proto.graph.initializer.append(default)


def seal(proto: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Check the model, write the manifest into it, and return the file's bytes."""
    del proto.metadata_props[:]
    proto.producer_name, proto.producer_version = "klppo-compile", ""
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.to_json()})
    if proto.ByteSize() > LARGEST:
        raise CannotError(
            f"one ONNX file holds at most 2 GB; this has {proto.ByteSize() / 1e9:.1f} GB."
            " Use --dtype float16, or --format pt2."
        )
    content: bytes = proto.SerializeToString(deterministic=True)
    check_structure(proto)
    problems = [*lint(proto), *lint_shapes(proto, manifest)]
    if problems and manifest.graph == "loss" and manifest.family not in FAMILIES:
        raise CannotError(
            f"the loss of a {manifest.family} policy has no graph that runs everywhere:"
            f" {problems[0]}. Use one of {', '.join(FAMILIES)}, or --graph policy."
        )
    if problems:
        raise FailedError(f"the graph must pass the lint; {problems[0]}.")
    return content
