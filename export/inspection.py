"""What an exported file is, without running it and without torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from klppo_compile.exit_codes import BadInputError, MissingRequirementError
from klppo_compile.export.manifest import METADATA_KEY, Manifest, doubt, read_verified, sha256
from klppo_compile.export.runtime import PACKAGES


@dataclass(frozen=True)
class Inspection:
    """A file's manifest, and what is not in it.

    Attributes:
        operators: how many there are of each type; empty in formats that are not ONNX.
        verified: a sidecar has the hash of these bytes.
        tolerance_met: the largest error that its check found; None where it had none.
        doubt: what is not known of its numbers, in words; empty where they were checked.
    """

    manifest: Manifest
    sha256: str
    size: int
    operators: dict[str, int]
    verified: bool
    tolerance_met: float | None
    doubt: str


def inspect_file(path: Path) -> Inspection:
    """Read a file as data."""
    content, sidecar = read_verified(path)
    if path.suffix in PACKAGES:
        # Such a package is code; what it is, its sidecar says.
        if sidecar is None:
            raise BadInputError(
                f"{path} is a package of torch, which is code; what it is, only {path}.json says,"
                " which is not there. Copy that too."
            )
        manifest = Manifest.from_json(json.dumps(sidecar.get("manifest")), str(path))
        operators: dict[str, int] = {}
    else:
        manifest, operators = _read_onnx(path, content)
    met = None if sidecar is None else sidecar["tolerance_met"]
    size, verified, said = len(content), sidecar is not None, doubt(path, sidecar)
    return Inspection(manifest, sha256(content), size, operators, verified, met, said)


def _read_onnx(path: Path, content: bytes) -> tuple[Manifest, dict[str, int]]:
    try:
        import onnx

        from klppo_compile.export.structure import operators, require_own_weights
    except ImportError as error:
        raise MissingRequirementError(
            "inspecting a file needs onnx. Run pip install onnx, or 'klppo-compile[export]'."
        ) from error
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's class is not onnx's to name
        raise BadInputError(f"{path} must be an ONNX file; got {error}.") from error
    require_own_weights(proto)
    text = next((p.value for p in proto.metadata_props if p.key == METADATA_KEY), None)
    if text is None:
        raise BadInputError(f"{path} must be a file that klppo export wrote; it has no manifest.")
    return Manifest.from_json(text, str(path)), operators(proto.graph.node)
