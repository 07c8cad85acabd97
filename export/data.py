"""A recorded rollout on disk, read with numpy, some rows at a time.

It is a TensorDict memmap folder, `.npz` or `.safetensors`; torch and tensordict are not needed.
Files are read, not mapped: what has been read takes no memory afterwards.
"""

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.manifest import InputSpec, Manifest
from klppo_compile.export.validation import DTYPES

Array = NDArray[Any]


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
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise BadInputError(f"{self.name} can't be read: {error}.") from error
        if len(content) != (stop - start) * row:
            raise BadInputError(f"{self.name} must hold {self.shape}; it was truncated.")
        # A copy, since ONNX Runtime wants memory that may be written.
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:]).copy()


@dataclass
class Rollout:
    """Named arrays of one rollout."""

    path: Path
    columns: dict[str, Column] = field(default_factory=dict)

    def batch_dims(self, advantage: str) -> int:
        """1 or 2, as the advantage `[B, 1]` or `[B, T, 1]` says."""
        column = self.columns.get(advantage)
        return 1 if column is None else max(1, min(2, len(column.shape) - 1))

    def match(self, manifest: Manifest, specs: Iterable[InputSpec] | None = None) -> "Matched":
        """The columns of a graph's inputs, checked: all there, of the right type and shape."""
        wanted = list(manifest.inputs if specs is None else specs)
        missing = [s for s in wanted if self._column(s) is None]
        if missing:
            names = ", ".join(repr(s.key) for s in missing)
            raise BadInputError(
                f"{self.path} must have every array that the graph reads; it lacks {names} and has"
                f" {', '.join(sorted(self.columns)) or 'none'}."
            )
        columns = {s.name: self._column(s) for s in wanted}
        leads = {}
        for spec in wanted:
            column = columns[spec.name]
            assert column is not None
            _require_dtype(self.path, spec, column.dtype)
            leads[spec.name] = _lead(self.path, spec, column.shape, manifest.batch_dims)
        first = next(iter(leads.values()))
        other = next((name for name, lead in leads.items() if lead != first), None)
        if other is not None:
            raise BadInputError(
                f"{self.path}: all arrays must have the same rows; {wanted[0].name} has"
                f" {list(first)} and {other} {list(leads[other])}."
            )
        if not math.prod(first):
            raise BadInputError(f"{self.path} must have rows; its batch is {list(first)}.")
        return Matched(self, wanted, columns, first, manifest)  # type: ignore[arg-type]

    def _column(self, spec: InputSpec) -> Column | None:
        return self.columns.get(spec.key, self.columns.get(spec.name))


@dataclass
class Matched:
    """A rollout as a graph reads it, in units: rows `[B]`, or the B sequences of `[B, T]`.

    A graph over `[batch]` takes data `[B, T]` as B T rows.
    """

    rollout: Rollout
    specs: list[InputSpec]
    columns: dict[str, Column]
    lead: tuple[int, ...]
    manifest: Manifest

    @property
    def inner(self) -> int:
        """Rows of the graph in one unit of the file's first dimension."""
        return math.prod(self.lead[1:])

    @property
    def units(self) -> int:
        """How many units there are."""
        return self.lead[0]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return math.prod(self.lead)

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """Units start to stop, as the graph's inputs."""
        kept = self.lead[1:] if self.manifest.batch_dims == 2 else ()
        count = (stop - start) if kept else (stop - start) * self.inner
        found = {}
        for spec in self.specs:
            x = self.columns[spec.name].read(start, stop)
            found[spec.name] = x.reshape(count, *kept, *spec.shape).astype(spec.dtype, copy=False)
        return found

    def batches(self, start: int, stop: int, rows: int) -> Iterator[tuple[int, int]]:
        """Ranges of units that make about `rows` rows each."""
        step = max(1, rows // self.inner)
        for at in range(start, stop, step):
            yield at, min(at + step, stop)


def _require_dtype(path: Path, spec: InputSpec, dtype: np.dtype[Any]) -> None:
    if not np.can_cast(dtype, np.dtype(spec.dtype), "safe"):
        raise BadInputError(
            f"{path}: {spec.key!r} must be {spec.dtype}; got {dtype}."
            f" Save it as array.astype('{spec.dtype}')."
        )


def _lead(path: Path, spec: InputSpec, shape: tuple[int, ...], dims: int) -> tuple[int, ...]:
    """The batch dimensions of a column, after its rows were found to fit."""
    at = len(shape) - len(spec.shape)
    if at < dims or at < 1 or shape[at:] != spec.shape or (dims == 2 and at != 2):
        batch = "B, T" if dims == 2 else "B"
        row = "".join(f", {n}" for n in spec.shape)
        raise BadInputError(f"{path}: {spec.key!r} must be [{batch}{row}]; got {list(shape)}.")
    return shape[:at]


# ---- the three containers


@contextmanager
def open_rollout(path: Path) -> Iterator[Rollout]:
    """Open a rollout of any of the formats; nothing but headers is read."""
    with ExitStack() as stack:
        try:
            if path.is_dir():
                columns: Mapping[str, Column] = _memmap_columns(path, "")
            elif path.suffix == ".npz":
                columns = _npz_columns(path, stack)
            elif path.suffix == ".safetensors":
                columns = _safetensors_columns(path)
            elif not path.exists():
                raise BadInputError(f"data must be there; got {path}, which is not.")
            else:
                raise BadInputError(
                    f"data is a TensorDict memmap folder, .npz or .safetensors; got {path}."
                )
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, BadInputError):
                raise
            raise BadInputError(
                f"{path} can't be read as a rollout: {str(error) or type(error).__name__}."
            ) from error
        yield Rollout(path, dict(columns))


def _memmap_columns(folder: Path, prefix: str) -> dict[str, Column]:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    columns: dict[str, Column] = {}
    if not isinstance(meta, dict):
        raise ValueError("meta.json must hold an object")  # noqa: TRY004 - a fault of the file
    for name, leaf in meta.items():
        if not isinstance(leaf, dict):
            continue
        if _outside(name):
            raise ValueError(f"meta.json names {name!r}, which is not an entry of the folder")
        if "type" in leaf and "dtype" not in leaf:
            columns |= _memmap_columns(folder / name, f"{prefix}{name}.")
        elif "shape" in leaf:
            dtype = str(leaf["dtype"]).removeprefix("torch.")
            if dtype not in DTYPES:
                continue
            shape = tuple(int(n) for n in leaf["shape"])
            path = folder / f"{name}.memmap"
            column = RawColumn(path, np.dtype(dtype), shape)
            size = math.prod(shape) * column.dtype.itemsize
            if path.stat().st_size < size:
                raise ValueError(f"{path.name} must have {size} bytes; it was truncated")
            columns[prefix + name] = column
    return columns


def _outside(name: str) -> bool:
    return name in {"", ".", ".."} or "/" in name or "\\" in name


def _npz_columns(path: Path, stack: ExitStack) -> dict[str, Column]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    columns: dict[str, Column] = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        # Each array has a handle of its own, so that all are read forwards side by side.
        file = stack.enter_context(archive.open(member))
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if version[0] not in read:
            raise ValueError(f"{member} has the npy version {version}")
        shape, fortran, dtype = read[version[0]](file)
        if dtype.hasobject or (fortran and len(shape) > 1):
            raise ValueError(f"{member} must hold numbers in C order")
        columns[name] = ZipColumn(file, f"{path}: {name!r}", dtype, shape, file.tell())
    return columns


def _safetensors_columns(path: Path) -> dict[str, Column]:
    from safetensors import SafetensorError, safe_open

    kinds = {"F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool", "U8": "uint8"}
    kinds |= {f"I{n}": f"int{n}" for n in (8, 16, 32, 64)}
    columns: dict[str, Column] = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                part = file.get_slice(name)
                if part.get_dtype() in kinds:
                    dtype = np.dtype(kinds[part.get_dtype()])
                    columns[name] = SafetensorsColumn(path, name, dtype, tuple(part.get_shape()))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return columns
