"""The same graph as a torch.export package (.pt2) or an AOTInductor package.

Both are code: loading one runs it (pytorch/pytorch, torch.export.load: "never load data from an
untrusted source"). The sidecar holds their manifest and their hash.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import ExportedProgram

from klppo_compile.export.capture import Captured, traceable
from klppo_compile.export.manifest import Manifest
from klppo_compile.export.parity import Runner

TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""What a program's nodes remember of the machine that traced them."""
NATIVE = "compiled for the processor it was exported on, whose compiler left its paths in the file"


def write_package(
    form: str, captured: Captured, manifest: Manifest
) -> tuple[bytes, Runner, Manifest]:
    """The package's bytes, a runner of what was loaded from them, and the manifest."""
    program = forget_traces(captured.program)
    with tempfile.TemporaryDirectory() as folder, traceable():
        path = Path(folder) / "graph.pt2"
        if form == "pt2":
            torch.export.save(program, path)
            loaded: Callable[..., Any] = torch.export.load(path).module()
        else:
            manifest = replace(manifest, notes=(*manifest.notes, NATIVE))
            aoti_compile_and_package(program, package_path=str(path))
            loaded = aoti_load_package(str(path))
        content = path.read_bytes()
    return content, _runner(loaded, captured, manifest), manifest


def forget_traces(program: ExportedProgram) -> ExportedProgram:
    """A copy without source lines and paths."""
    program = copy.copy(program)
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in () if graph is None else graph.nodes:
            for name in TRACES:
                node.meta.pop(name, None)
    return program


def _runner(loaded: Callable[..., Any], captured: Captured, manifest: Manifest) -> Runner:
    names = [spec.name for spec in manifest.inputs]

    def run(
        arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, float]
    ) -> dict[str, NDArray[Any]]:
        numbers = {**manifest.scalars, **scalars}
        inputs = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in names]
        inputs += [torch.tensor(numbers[name], dtype=torch.float32) for name in manifest.scalars]
        with torch.no_grad():
            found = loaded(*inputs)
        return {name: x.numpy() for name, x in zip(captured.outputs, found, strict=True)}

    return run
