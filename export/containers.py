"""The files of a recorded rollout: a TensorDict memmap folder, `.npz` or `.safetensors`.

Torch and tensordict are not needed. Files are read, not mapped: what has been read takes no memory
afterwards. An entry that numpy can't read spoils the rollout only where a graph needs it.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.validation import DTYPES

Array = NDArray[Any]
BROKEN = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a broken file raises; the third is of encrypted archives, and of nests too deep."""
SAFETENSORS = {"F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool", "U8": "uint8"}
SAFETENSORS |= {f"I{n}": f"int{n}" for n in (8, 16, 32, 64)}
"""Its names of the types that a graph may read."""


class Column(Protocol):
    """One array on disk."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Array:
        """Rows start to stop of the first dimension."""
        ...


@dataclass
class RawColumn:
    """An array as plain bytes from the start of a file."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Array:
        """Rows start to stop of the first dimension."""
        row = math.prod(self.shape[1:])
        offset = start * row * self.dtype.itemsize
        count = (stop - start) * row
        if not count:  # an empty array has no file
            return np.zeros((stop - start, *self.shape[1:]), self.dtype)
        found = np.fromfile(self.path, self.dtype, count, offset=offset)
        if found.size != count:
            raise BadInputError(f"{self.path} must hold {self.shape}; it was truncated.")
        return found.reshape(stop - start, *self.shape[1:])


@dataclass
class SafetensorsColumn:
    """An array of a safetensors file, opened anew for every read: a mapping would stay."""

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Array:
        """Rows start to stop of the first dimension."""
        from safetensors import safe_open

        with safe_open(self.path, framework="np") as file:
            found: Array = file.get_slice(self.name)[start:stop]
        return found


@dataclass
class ZipColumn:
    """An array of an npz archive, read forwards; going back starts it again."""

    file: zipfile.ZipExtFile | Any
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    origin: int

    def read(self, start: int, stop: int) -> Array:
        """Rows start to stop of the first dimension."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        at = self.origin + start * row
        try:
            if self.file.tell() != at:
                self.file.seek(at)
            content = self.file.read((stop - start) * row)
        except BROKEN as error:
            raise BadInputError(
                f"{self.name} must be an array that can be read; got: {error}. Save it again."
            ) from error
        if len(content) != (stop - start) * row:
            raise BadInputError(f"{self.name} must hold {self.shape}; it was truncated.")
        # A copy, since ONNX Runtime wants memory that may be written.
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:]).copy()


@dataclass
class Entries:
    """What a file holds: columns by name, and why others can't be read."""

    columns: dict[str, Column] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def read_headers(path: Path, stack: ExitStack) -> Entries:
    """The entries of a rollout of any of the formats; nothing but headers is read.

    Raises:
        BadInputError: it is none.
    """
    found = Entries()
    try:
        if path.is_dir():
            _read_memmap(path, "", found)
        elif path.suffix == ".npz":
            _read_npz(path, stack, found)
        elif path.suffix == ".safetensors":
            _read_safetensors(path, found)
        elif not path.exists():
            raise BadInputError(f"data must be there; got {path}, which is not.")
        else:
            raise BadInputError(
                f"data is a TensorDict memmap folder, .npz or .safetensors; got {path}."
            )
    except (*BROKEN, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInputError(
            f"data must be a rollout that can be read; got {path}: {text}. Save it again."
        ) from error
    return found


# ---- TensorDict memmap folders


def _read_memmap(folder: Path, prefix: str, found: Entries) -> None:
    for name, leaf in _metadata(folder).items():
        if not isinstance(leaf, dict):
            continue
        if name in {"", ".", ".."} or "/" in name or "\\" in name:
            raise ValueError(f"meta.json names {name!r}, which is not an entry of the folder")
        if "type" in leaf and "dtype" not in leaf:
            _read_memmap(folder / name, f"{prefix}{name}.", found)
            continue
        try:
            found.columns[prefix + name] = _memmap_column(folder / f"{name}.memmap", leaf)
        except ValueError as error:
            found.faults[prefix + name] = str(error)


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no meta.json, so it is not what TensorDict.memmap writes")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path} holds no object")  # noqa: TRY004 - a fault of the file
    if "stack_dim" in meta:
        raise ValueError("it is a lazy stack; save rollout.contiguous()")
    return meta


def _memmap_column(path: Path, leaf: Mapping[str, Any]) -> RawColumn:
    dtype, shape = leaf.get("dtype"), leaf.get("shape")
    kind = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    if kind not in DTYPES:
        raise ValueError(f"is of the dtype {dtype}, none of {', '.join(DTYPES)}. Save it as one")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(
            f"has the shape {shape!r} in meta.json, which is no list of sizes. Save it again"
        )
    column = RawColumn(path, np.dtype(kind), tuple(shape))
    size = math.prod(shape) * column.dtype.itemsize
    # An empty array has no file.
    if size and not path.is_file():
        raise ValueError(f"is in meta.json, and its file {path.name} is not there. Copy that too")
    if size and path.stat().st_size != size:
        raise ValueError(
            f"must have {size} bytes for {kind} {shape}; {path.name} has {path.stat().st_size}."
            " Save or copy it again"
        )
    return column


# ---- archives


def _read_npz(path: Path, stack: ExitStack, found: Entries) -> None:
    archive = stack.enter_context(zipfile.ZipFile(path))
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if name == member:
            continue
        # Each array has a handle of its own, so that all are read forwards side by side.
        file = stack.enter_context(archive.open(member))
        try:
            shape, fortran, dtype = _npy_header(file)
        except ValueError as error:
            found.faults[name] = f"has a broken header ({error}). Save it again"
            continue
        if dtype.hasobject:
            found.faults[name] = "holds Python objects. Save an array of numbers"
        elif fortran and len(shape) > 1:
            found.faults[name] = "is in Fortran order. Save np.ascontiguousarray(array)"
        else:
            found.columns[name] = ZipColumn(file, f"{path}: {name!r}", dtype, shape, file.tell())


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in read:
        raise ValueError(f"npy version {version}")
    return read[version[0]](file)


def _read_safetensors(path: Path, found: Entries) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind in SAFETENSORS:
                    dtype, shape = np.dtype(SAFETENSORS[kind]), tuple(part.get_shape())
                    found.columns[name] = SafetensorsColumn(path, name, dtype, shape)
                else:
                    kinds = ", ".join(SAFETENSORS)
                    found.faults[name] = f"is of the dtype {kind}, none of {kinds}. Save it as one"
    except SafetensorError as error:
        raise ValueError(str(error)) from error
