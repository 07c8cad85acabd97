"""What an exported file says about itself, and the sidecar that says it was checked.

The manifest is in the file's own metadata; `FILE.json` beside it repeats it, with the SHA-256 of
the file and the errors that its check found. Neither torch nor onnx is needed here.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.validation import require_sense

SCHEMA = 1
METADATA_KEY = "klppo_compile"
DIMENSIONS = ("batch", "time")
"""Names of the dynamic dimensions, in their order."""
UNCHECKED = "unchecked: it was exported with --no-check, never compared with eager PyTorch"
"""What is said of a file whose sidecar has no tolerance that was met."""


@dataclass(frozen=True)
class InputSpec:
    """One array that the graph reads.

    Attributes:
        name: of the graph's input.
        key: of the rollout's entry, nested keys joined with ".".
        role: what it is, one of `validation.ROLES`.
        dtype: numpy's name of it.
        shape: of one row, without the batch dimensions.
    """

    name: str
    key: str
    role: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OutputSpec:
    """One array that the graph writes.

    Attributes:
        name: of the graph's output.
        rows: it has the batch dimensions first; otherwise it is of the whole minibatch.
        shape: of one row, or of the whole.
    """

    name: str
    rows: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader of the file must know.

    Attributes:
        graph: "loss", "policy" or "critic".
        family: the policy's family, or the class of its distribution.
        head: the head's parameters, by the names of their outputs.
        batch_dims: 1, or 2 for a graph over `[batch, time]`.
        batch: the fixed size of the first, or 0 where it is dynamic.
        inputs, outputs: the arrays, in the graph's order.
        scalars: the optional inputs `[]` and their defaults.
        settings: hyper-parameters that are part of the graph.
        dtype: of the networks' matrix products.
        opset: of the ONNX operators; 0 in other formats.
        tolerance: asked for, relative to the larger of 1 and the value.
        parameters_sha256: hash of the loss's parameters and buffers.
        versions: of the packages that wrote the file.
        notes: what a reader may not expect.
    """

    graph: str
    family: str
    head: tuple[str, ...]
    batch_dims: int
    batch: int
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    scalars: dict[str, float]
    settings: dict[str, Any]
    dtype: str
    opset: int
    tolerance: float
    parameters_sha256: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)

    def input_of(self, role: str) -> InputSpec | None:
        """The first input of a role, or None."""
        return next((spec for spec in self.inputs if spec.role == role), None)

    def output_names(self) -> tuple[str, ...]:
        """The outputs' names, in order."""
        return tuple(spec.name for spec in self.outputs)

    def to_json(self) -> str:
        """One line, the same for the same manifest."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, origin: str) -> "Manifest":
        """Read one back; what is not a manifest is refused by the name of its origin."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or values.get("schema") != SCHEMA:
                found = values.get("schema") if isinstance(values, dict) else values
                raise ValueError(f"schema {found!r}, not {SCHEMA}")
            known = {f.name for f in fields(cls)}
            if values.keys() != known:
                raise ValueError(f"fields {sorted(values.keys() ^ known)}")
            values["inputs"] = tuple(map(_input, values["inputs"]))
            values["outputs"] = tuple(map(_output, values["outputs"]))
            for name in ("head", "notes"):
                values[name] = tuple(map(str, values[name]))
            values["scalars"] = {str(k): float(v) for k, v in values["scalars"].items()}
            manifest = cls(**values)
            require_sense(manifest)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInputError(
                f"{origin} must hold the manifest that klppo export writes; got {error}."
                " Export the loss again with this version."
            ) from error
        return manifest


def _input(values: Mapping[str, Any]) -> InputSpec:
    return InputSpec(**{**values, "shape": tuple(int(n) for n in values["shape"])})


def _output(values: Mapping[str, Any]) -> OutputSpec:
    return OutputSpec(**{**values, "shape": tuple(int(n) for n in values["shape"])})


# ---- files


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()


def sidecar_path(path: Path) -> Path:
    """`FILE.json` beside FILE."""
    return path.with_name(path.name + ".json")


def sidecar_text(manifest: Manifest, content: bytes, errors: Mapping[str, float] | None) -> str:
    """What the sidecar says: the manifest, the file's hash, and each output's error, if checked."""
    met = None if errors is None else max(errors.values())
    values = {
        "sha256": sha256(content),
        "bytes": len(content),
        "check": UNCHECKED
        if met is None
        else f"every output within {met:.1e} of eager PyTorch, asked for {manifest.tolerance:g}",
        "tolerance_met": met,
        "errors": None if errors is None else dict(errors),
        "manifest": json.loads(manifest.to_json()),
    }
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """The sidecar of a file, or None where there is none."""
    beside = sidecar_path(path)
    if not beside.is_file():
        return None
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"{type(values).__name__}, not an object")
        lacks = [name for name in ("sha256", "tolerance_met") if name not in values]
        if lacks:
            raise ValueError(f"no {lacks[0]!r}")
        digest, met = values["sha256"], values["tolerance_met"]
        if not isinstance(digest, str):
            raise TypeError(f"sha256 {digest!r}")
        if met is not None and not (isinstance(met, int | float) and 0 <= met < math.inf):
            raise TypeError(f"tolerance_met {met!r}")
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError(
            f"{beside} must be the sidecar that klppo export writes; got {error}."
            " Restore it, or delete it to go on unverified."
        ) from error
    return values


def doubt(path: Path, sidecar: Mapping[str, Any] | None) -> str:
    """What is not known of a file's numbers, in words; empty where its export checked them."""
    if sidecar is None:
        return f"{path} is unverified: no sidecar says that these bytes were checked"
    return "" if sidecar["tolerance_met"] is not None else f"{path} is {UNCHECKED}"


def read_verified(path: Path) -> tuple[bytes, dict[str, Any] | None]:
    """The file's bytes and its sidecar; bytes that don't have the sidecar's hash are refused."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(
            f"an exported file must be readable; got {path}: {error.strerror}."
            " Name a file that klppo export wrote."
        ) from error
    sidecar = read_sidecar(path)
    if sidecar is not None and sidecar["sha256"] != sha256(content):
        raise BadInputError(
            f"{path} must be the file that was checked, SHA-256 {sidecar['sha256'][:16]}…; got"
            f" {sha256(content)[:16]}…: it was truncated or changed. Export or copy it again."
        )
    return content, sidecar


def write_together(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write files under temporary names and rename them when all are complete."""
    pairs = [(p, p.with_name(f".{p.name}.{os.getpid()}.tmp"), data) for p, data in files]
    try:
        for _, temporary, data in pairs:
            temporary.write_bytes(data)
        for path, temporary, _ in pairs:
            temporary.replace(path)
    except OSError as error:
        raise BadInputError(
            f"the output must be writable; got {pairs[0][0]}: {error.strerror}. Give another path."
        ) from error
    finally:
        for _, temporary, _ in pairs:
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Refuse a path that can't be written, before the work and not after it."""
    parent = path.parent
    # What is renamed to a device or a pipe takes its place.
    special = path.exists() and not path.is_file()
    if special or not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = f"no writable folder {parent}"
        if special:
            reason = "it is a folder" if path.is_dir() else "it is no file"
        raise BadInputError(
            f"the output must be writable; got {path}: {reason}. Give another path."
        )
