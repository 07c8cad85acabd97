"""An exported file in ONNX Runtime, on the provider that was asked for. It needs no torch."""

import contextlib
import importlib.metadata
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError, MissingRequirementError
from klppo_compile.export.manifest import (
    DIMENSIONS,
    METADATA_KEY,
    Manifest,
    doubt,
    read_verified,
    sha256,
)
from klppo_compile.export.runtime_errors import of_loading, of_running

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
TYPES = {"float32": "float", "float64": "double"}
"""ONNX Runtime's names, where they aren't numpy's."""
PACKAGES = {".pt2", ".pt", ".so"}
"""Endings of what torch writes, which nothing here loads."""
LIBRARIES = {
    "cuda": "CUDA 13 and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "TensorRT 10, CUDA 13 and cuDNN 9:"
    " pip install tensorrt 'onnxruntime-gpu[cuda,cudnn]'",
}
REPAIR = (
    "onnxruntime and onnxruntime-gpu share one folder and overwrite each other. Run:"
    " pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
)


VARIANTS = ("gpu", "directml", "openvino", "qnn", "rocm", "migraphx", "silicon", "training")
DISTRIBUTIONS = ("onnxruntime", *(f"onnxruntime-{name}" for name in VARIANTS), "ort-nightly")
"""What brings the module onnxruntime. Asking which installed package does would read them all."""


def runtimes() -> list[str]:
    """The installed distributions that bring the module onnxruntime."""
    found = []
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(importlib.metadata.distribution(name).metadata["Name"])
    return sorted(found)


def load_onnxruntime() -> Any:
    """The module, if one runtime and only one is installed, whole."""
    found = runtimes()
    if len(found) > 1:
        raise MissingRequirementError(
            f"one ONNX Runtime must be installed; found {' and '.join(found)}. {REPAIR}"
        )
    try:
        import onnxruntime
    except ImportError as error:
        fix = REPAIR if found else "Run pip install 'klppo-compile[export]', or onnxruntime alone."
        raise MissingRequirementError(f"this needs ONNX Runtime; got: {error}. {fix}") from error
    return onnxruntime


def available_providers() -> list[str]:
    """The installed runtime's providers by our names; whether one works, only a session tells."""
    names = load_onnxruntime().get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in names]


@dataclass(frozen=True)
class OnnxFile:
    """A file ready to run.

    Attributes:
        manifest: what the file says about itself.
        provider: that runs it, one of `PROVIDERS`.
        verified: its bytes are those that were exported: its sidecar has their hash.
        tolerance_met: the largest error that its export's check found; None where it had none.
        doubt: what is not known of its numbers, in words; empty where they were checked.
        sha256: of the file.
    """

    path: Path
    manifest: Manifest
    session: "onnxruntime.InferenceSession"
    provider: str
    verified: bool
    tolerance_met: float | None
    doubt: str
    sha256: str

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run the graph; `outputs` names those that are wanted, all by default.

        Raises:
            BadInputError: values that the graph has no answer to, such as an index out of range.
            CannotError: too many rows for the memory.
        """
        names = list(self.manifest.output_names() if outputs is None else outputs)
        # Not `load_onnxruntime`, which reads the metadata of every installed package.
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        # What a node fails for is told in our error.
        options.log_severity_level = 4
        # Not an I/O binding: arrays are read where they lie either way, and making one, or binding
        # new outputs, takes longer than it saves (perf/timed/evaluating.py measures both).
        try:
            found = self.session.run(names, dict(inputs), options)
        except Exception as error:  # the runtime's own classes are private
            refusal = of_running(error, str(self.path))
            if refusal is None:
                raise
            raise refusal from error
        return dict(zip(names, found, strict=True))


def open_file(path: Path, provider: str = "auto", threads: int = 0) -> OnnxFile:
    """Open an exported file as data: its own bytes, no other file.

    Args:
        path: of a file that `klppo export` wrote.
        provider: "cpu", "cuda", "tensorrt", or "auto" for the fastest that works.
        threads: of the CPU provider; 0 is all cores.

    Raises:
        BadInputError: not such a file, or not the bytes that were checked.
        CannotError: it needs an operator that the runtime lacks.
        MissingRequirementError: no runtime, or the provider is not active.
    """
    if path.suffix in PACKAGES:
        raise BadInputError(
            f"ONNX Runtime runs .onnx files; got {path}, a package of torch, which is code. Export"
            " with --format onnx."
        )
    content, sidecar = read_verified(path)
    session, active = open_session(content, provider, str(path), threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise BadInputError(f"{path} must be a file that klppo export wrote; it has no manifest.")
    manifest = Manifest.from_json(text, str(path))
    _require_names(path, manifest, session)
    return OnnxFile(
        path,
        manifest,
        session,
        active,
        verified=sidecar is not None,
        tolerance_met=None if sidecar is None else sidecar["tolerance_met"],
        doubt=doubt(path, sidecar),
        sha256=sha256(content),
    )


def _require_names(path: Path, manifest: Manifest, session: Any) -> None:
    inputs = [x.name for x in session.get_inputs()]
    given = {x.name: (x.type, x.shape) for x in session.get_inputs()}
    optional = {x.name for x in session.get_overridable_initializers()}
    outputs = [x.name for x in session.get_outputs()]
    if (
        inputs != [spec.name for spec in manifest.inputs]
        or optional != set(manifest.scalars)
        or outputs != list(manifest.output_names())
    ):
        raise BadInputError(
            f"{path} must have the inputs and outputs that its manifest names; it has"
            f" {inputs} and {outputs}. Export the loss again."
        )
    lead: list[str | int] = list(DIMENSIONS[: manifest.batch_dims])
    if manifest.batch:
        lead[0] = manifest.batch
    for spec in manifest.inputs:
        kind = f"tensor({TYPES.get(spec.dtype, spec.dtype)})"
        found, wanted = given[spec.name], (kind, [*lead, *spec.shape])
        if found != wanted:
            raise BadInputError(
                f"{path} must have the inputs that its manifest names; its {spec.name} is"
                f" {found[0]} {found[1]}, not {wanted[0]} {wanted[1]}. Export the loss again."
            )


def open_session(content: bytes, provider: str, origin: str, threads: int = 0) -> tuple[Any, str]:
    """A session on exactly the provider that was asked for, and its name."""
    runtime = load_onnxruntime()
    if provider == "auto":
        return _open_best(runtime, content, origin, threads)
    if provider not in PROVIDERS:
        raise BadInputError(f"a provider is one of auto, {', '.join(PROVIDERS)}; got {provider!r}.")
    if PROVIDERS[provider] not in runtime.get_available_providers():
        raise MissingRequirementError(
            f"the provider {provider} was asked for; this ONNX Runtime has"
            f" {', '.join(available_providers())}. It needs onnxruntime-gpu and"
            f" {LIBRARIES.get(provider, 'a build with it')}."
        )
    session = _session(runtime, content, PROVIDERS[provider], origin, threads)
    # ONNX Runtime goes on without a provider whose libraries don't load, and says nothing.
    active = session.get_providers()
    if active[0] != PROVIDERS[provider]:
        raise MissingRequirementError(
            f"the provider {provider} was asked for, and ONNX Runtime fell back to {active[0]}:"
            f" its libraries or a driver are missing. It needs {LIBRARIES[provider]}."
        )
    return session, provider


def _open_best(runtime: Any, content: bytes, origin: str, threads: int) -> tuple[Any, str]:
    for name in ("cuda", "cpu"):
        full = PROVIDERS[name]
        if full not in runtime.get_available_providers() or (name == "cuda" and not has_driver()):
            continue
        session = _session(runtime, content, full, origin, threads)
        if session.get_providers()[0] == full:
            return session, name
    raise MissingRequirementError(f"no provider of ONNX Runtime works here. {REPAIR}")


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver: without one, loading CUDA only prints errors."""
    import ctypes.util

    return (
        ctypes.util.find_library("cuda") is not None
        or ctypes.util.find_library("nvcuda") is not None
    )


def _session(runtime: Any, content: bytes, provider: str, origin: str, threads: int) -> Any:
    try:
        return start_session(runtime, content, provider, threads)
    except Exception as error:  # the runtime's own classes are private
        raise of_loading(error, origin) from error


def start_session(runtime: Any, content: bytes, provider: str, threads: int = 0) -> Any:
    """A session on a provider, or a later one of the runtime; its errors are the runtime's own."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Weights in other files are refused: bytes have no folder, and this one can't exist.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", f"{os.devnull}/none"
    )
    # A provider whose libraries don't load is told of in our error, not in pages of its own.
    runtime.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return runtime.InferenceSession(content, options, providers=[provider])
    finally:
        runtime.set_default_logger_severity(2)
