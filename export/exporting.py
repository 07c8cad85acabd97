"""From a loss to a checked file: the order of the steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase

from klppo_compile.exit_codes import BadInputError, MissingRequirementError
from klppo_compile.export import manifest as manifests
from klppo_compile.export.capture import Captured, capture
from klppo_compile.export.description import describe
from klppo_compile.export.gamma import NOTE, needs_gamma
from klppo_compile.export.manifest import Manifest
from klppo_compile.export.parity import TOLERANCE, Parity, Runner, check
from klppo_compile.export.preparation import prepare
from klppo_compile.export.runtime import PACKAGES, PROVIDERS, load_onnxruntime, start_session
from klppo_compile.export.runtime_errors import of_a_fresh_graph
from klppo_compile.loss import KLPENPPOLoss

FORMATS = ("onnx", "pt2", "aoti")
MOST_ROWS = 2**24
"""Of a fixed batch: float32, in which a graph takes means, counts no further."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file; `FILE.json` is beside it.
        manifest: what it says about itself.
        parity: what its check found; None where none was asked for.
        size, sha256: of the file.
        notes: what a reader may not expect.
    """

    path: Path
    manifest: Manifest
    parity: Parity | None
    size: int
    sha256: str
    notes: tuple[str, ...]


def export_loss(
    loss: KLPENPPOLoss,
    example: TensorDictBase,
    path: str | Path,
    *,
    graph: str = "loss",
    format: str = "onnx",  # noqa: A002  the command's word
    opset: int = 20,
    dtype: str = "float32",
    batch: int = 0,
    tolerance: float | None = None,
    checked: bool = True,
) -> Exported:
    """Write the loss's forward, its policy or its critic as one file, after checking it.

    Nothing is written unless the file computes what the loss computes: ONNX Runtime (or the
    package's own runtime) against eager float32, on the example and on batches made to differ.

    Args:
        loss: the module; it is not changed.
        example: a rollout `[B]` or `[B, T]` with every key that the loss reads; its batch
            dimensions are those of the graph.
        path: of the file; the sidecar `FILE.json` goes beside it.
        graph: "loss", "policy" or "critic".
        format: "onnx", or "pt2" and "aoti", which are code and must be trusted by who loads them.
        opset: of ONNX, 18 to 21.
        dtype: of the networks' matrix products, "float32" or "float16"; the loss is in float32.
        batch: 0 is dynamic; a number fixes it.
        tolerance: of an output relative to the larger of 1 and its value; default 1e-5, and 2e-2
            with float16 networks.
        checked: whether the file is checked; without, its sidecar says so.

    Raises:
        BadInputError: an argument or an example that doesn't fit, a path that can't be written.
        CannotError: a model that has no such graph: the message names what and why.
        FailedError: the graph failed its lint or its check.
    """
    path = Path(path)
    require_ready(format, opset, path, batch)
    prepared = prepare(loss, example, graph, dtype)
    captured = capture(prepared.graph, prepared.example, batch)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    manifest = describe(prepared, captured, loss, batch, dtype, tolerance)
    content, runner, manifest = _write(format, captured, manifest, opset)
    parity = None
    if checked:
        parity = check(prepared.reference, prepared.example, runner, tolerance, batch).require()
    sidecar = manifests.sidecar_text(manifest, content, parity.errors() if parity else None)
    beside = manifests.sidecar_path(path)
    manifests.write_together([(path, content), (beside, sidecar.encode())])
    digest = manifests.sha256(content)
    return Exported(path, manifest, parity, len(content), digest, manifest.notes)


def require_ready(form: str, opset: int, path: Path, batch: int = 0) -> None:
    """Refuse what would fail later, before any work.

    Raises:
        BadInputError: a format, an opset, an ending, a path or a batch.
        MissingRequirementError: a package that is not installed.
    """
    if not 0 <= batch <= MOST_ROWS:
        raise BadInputError(
            f"a fixed batch has 1 to {MOST_ROWS:,} rows, and 0 is dynamic; got {batch:,}. Give"
            " fewer, or leave it dynamic."
        )
    if form not in FORMATS:
        raise BadInputError(f"the format is one of {', '.join(FORMATS)}; got {form!r}.")
    if form == "onnx":
        from klppo_compile.export.onnx_file import check_opset

        check_opset(opset)
        load_onnxruntime()
        if find_spec("onnxscript") is None:
            raise MissingRequirementError(
                "torch writes ONNX with onnxscript, which is not installed. Run pip install"
                " 'klppo-compile[export]'."
            )
    manifests.require_writable(path)
    # By the ending, `check`, `evaluate` and `inspect` tell data from code; and a checkpoint has
    # another.
    if (path.suffix.lower() != ".onnx") if form == "onnx" else (path.suffix not in PACKAGES):
        ending = ".onnx" if form == "onnx" else ".pt2"
        raise BadInputError(f"a file of the format {form} ends in {ending}; got {path.name}.")


def _write(
    form: str, captured: Captured, manifest: Manifest, opset: int
) -> tuple[bytes, Runner, Manifest]:
    """The file's bytes, a runner of them, and the manifest that is in them."""
    if form != "onnx":
        from klppo_compile.export.packages import write_package

        return write_package(form, captured, manifest)
    from klppo_compile.export import onnx_file

    notes = (*manifest.notes, NOTE) if needs_gamma(captured.program) else manifest.notes
    found = {**manifest.versions, "onnx": version("onnx")}
    manifest = replace(manifest, opset=opset, versions=found, notes=notes)
    proto = onnx_file.to_proto(captured, opset, manifest.family)
    onnx_file.add_defaults(proto, manifest.scalars)
    content = onnx_file.seal(proto, manifest)
    runtime = load_onnxruntime()
    try:
        session = start_session(runtime, content, PROVIDERS["cpu"])
    except Exception as error:  # the runtime's own classes are private
        raise of_a_fresh_graph(error, onnx_file.rare_floats(proto)) from error
    return content, session_runner(session, manifest), manifest


def session_runner(session: Any, manifest: Manifest) -> Runner:
    """Runs arrays and scalars through an ONNX Runtime session."""
    names = list(manifest.output_names())

    def run(
        arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, float]
    ) -> dict[str, NDArray[Any]]:
        numbers = {name: np.asarray(value, np.float32) for name, value in scalars.items()}
        return dict(zip(names, session.run(names, {**arrays, **numbers}), strict=True))

    return run
