"""A recorded rollout as a graph reads it: matched with its inputs, some rows at a time.

Neither torch nor tensordict is needed.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.containers import Column, read_headers
from klppo_compile.export.manifest import InputSpec, Manifest

Array = NDArray[Any]


@dataclass
class Rollout:
    """Named arrays of one rollout, and why others of its entries can't be read."""

    path: Path
    columns: dict[str, Column] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def batch_dims(self, advantage: str) -> int:
        """How many there are, as the advantage `[B, 1]` or `[B, T, 1]` says."""
        column = self.columns.get(advantage)
        return 1 if column is None else max(1, len(column.shape) - 1)

    def match(self, manifest: Manifest, specs: Iterable[InputSpec] | None = None) -> "Matched":
        """The columns of a graph's inputs, checked: all there, of the right type and shape."""
        wanted = list(manifest.inputs if specs is None else specs)
        missing = [s for s in wanted if self._column(s) is None]
        for spec in missing:
            self.require_readable(spec.key, spec.name)
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

    def require_readable(self, *names: str) -> None:
        """Refuse an entry that is there and can't be read, by the first of its names."""
        for name in names:
            if name in self.faults:
                raise BadInputError(
                    f"{self.path} must have arrays of numbers; its {name!r} {self.faults[name]}."
                )

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


@contextmanager
def open_rollout(path: Path) -> Iterator[Rollout]:
    """Open a rollout of any of the formats; nothing but headers is read."""
    with ExitStack() as stack:
        found = read_headers(path, stack)
        yield Rollout(path, found.columns, found.faults)
