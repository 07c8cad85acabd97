"""An exported file in ONNX Runtime, on the provider that was asked for. It needs no torch."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError, MissingRequirementError
from klppo_compile.export.manifest import METADATA_KEY, Manifest, read_verified, sha256

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
LIBRARIES = {
    "cuda": "CUDA 13 and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "TensorRT 10, CUDA 13 and cuDNN 9:"
    " pip install tensorrt 'onnxruntime-gpu[cuda,cudnn]'",
}
REPAIR = (
    "onnxruntime and onnxruntime-gpu share one folder and overwrite each other. Run:"
    " pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
)


def runtimes() -> list[str]:
    """The installed distributions that bring the module onnxruntime."""
    return sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", [])))


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
        verified: its bytes are those that the export checked.
        sha256: of the file.
    """

    path: Path
    manifest: Manifest
    session: "onnxruntime.InferenceSession"
    provider: str
    verified: bool
    sha256: str

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run the graph; `outputs` names those that are wanted, all by default."""
        names = list(self.manifest.output_names() if outputs is None else outputs)
        # Not `load_onnxruntime`, which reads the metadata of every installed package.
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        if not inputs.keys().isdisjoint(self.manifest.scalars):
            # An optional input can't be bound.
            return dict(zip(names, self.session.run(names, dict(inputs), options), strict=True))
        binding = self.session.io_binding()
        for name, x in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(x))
        for name in names:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding, options)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))


def open_file(path: Path, provider: str = "auto", threads: int = 0) -> OnnxFile:
    """Open an exported file as data: its own bytes, no other file.

    Args:
        path: of a file that `klppo export` wrote.
        provider: "cpu", "cuda", "tensorrt", or "auto" for the fastest that works.
        threads: of the CPU provider; 0 is all cores.

    Raises:
        BadInputError: not such a file, or not the bytes that were checked.
        MissingRequirementError: no runtime, or the provider is not active.
    """
    content, sidecar = read_verified(path)
    session, active = open_session(content, provider, str(path), threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise BadInputError(f"{path} must be a file that klppo export wrote; it has no manifest.")
    manifest = Manifest.from_json(text, str(path))
    _require_names(path, manifest, session)
    checked = sidecar is not None and sidecar.get("tolerance_met") is not None
    return OnnxFile(path, manifest, session, active, checked, sha256(content))


def _require_names(path: Path, manifest: Manifest, session: Any) -> None:
    inputs = [x.name for x in session.get_inputs()]
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
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        # As bytes, so that weights in other files are refused.
        return runtime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # the runtime's own classes are private
        raise BadInputError(
            f"{origin} must be an ONNX file that ONNX Runtime can load; got"
            f" {str(error).splitlines()[0]}. Export the loss again."
        ) from error
