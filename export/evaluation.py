"""How far a policy is from the one that recorded a rollout: its exported loss, streaming.

Only per-row outputs are read; every statistic of the whole is made from sums that merge, so parts
evaluated elsewhere add up. ONNX Runtime and numpy do it all; torch is never imported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.data import Matched, Rollout
from klppo_compile.export.manifest import Manifest, sha256
from klppo_compile.export.row_reader import ROW_OUTPUTS, RowReader
from klppo_compile.export.runtime import OnnxFile
from klppo_compile.export.totals import Evaluation, Totals

Array = NDArray[Any]
BATCH_ROWS = 16384
WHOLE_ROWS = 64
"""A batch is a multiple of these rows."""
Progress = Callable[[int], None]


def evaluate(
    file: OnnxFile,
    rollout: Rollout,
    *,
    scalars: Mapping[str, float] | None = None,
    rows: tuple[int, int | None] = (0, None),
    batch_rows: int = BATCH_ROWS,
    progress: Progress = lambda rows: None,  # noqa: ARG005
) -> Evaluation:
    """Run an exported loss over a rollout, or a range of its rows, in batches.

    Args:
        file: a loss graph.
        rollout: from `data.open_rollout`.
        scalars: beta and coefficients other than the file's.
        rows: of the file's first dimension, start and stop.
        batch_rows: about how many go through at once.
        progress: told how many rows each batch had.
    """
    require_loss(file)
    matched = rollout.match(file.manifest)
    return stream(file, matched, scalars or {}, rows, batch_rows, progress)


def require_loss(file: OnnxFile) -> None:
    """Refuse a file that holds no loss."""
    if file.manifest.graph != "loss":
        raise BadInputError(
            f"{file.path} must hold a loss graph; it holds a {file.manifest.graph}."
            " Export with --graph loss."
        )


def read_scalars(manifest: Manifest, settings: Iterable[str]) -> dict[str, float]:
    """`NAME=X` as numbers of the file's optional inputs."""
    found = {}
    for text in settings:
        name, _, value = text.partition("=")
        if name in found:
            raise BadInputError(f"--set takes each name once; got {name} twice.")
        if name not in manifest.scalars:
            raise BadInputError(
                f"--set takes {', '.join(manifest.scalars)}; got {name!r}, which the file hasn't."
            )
        try:
            found[name] = float(value)
        except ValueError as error:
            raise BadInputError(f"--set {name}=X takes a number; got {value!r}.") from error
        if not 0 <= found[name] <= float(np.finfo(np.float32).max):
            raise BadInputError(
                f"--set {name}=X takes a finite number of at least 0; got {value!r}."
            )
    return found


def stream(
    file: OnnxFile,
    matched: Matched,
    scalars: Mapping[str, float],
    rows: tuple[int, int | None],
    batch_rows: int,
    progress: Progress,
    feed: Callable[[dict[str, Array]], dict[str, Array]] = dict,
    old_sha256: str = "",
) -> Evaluation:
    """Run a file over batches of a rollout; `feed` makes the graph's inputs of what was read.

    `old_sha256` is of the file that `feed` takes the old policy from, if it does.
    """
    start, stop = _range(matched, rows)
    manifest = file.manifest
    used = {**manifest.scalars, **scalars}
    numbers = {name: np.asarray(value, np.float32) for name, value in scalars.items()}
    names = [name for name in ROW_OUTPUTS if name in manifest.output_names()]
    totals = Totals(masked=int("valid" in names))
    reader = RowReader(manifest, totals, used)
    sequences = manifest.batch_dims == 2
    # A graph's own size counts sequences, or rows.
    size = manifest.batch * (matched.inner if sequences else 1) or batch_rows
    for first, last in matched.batches(start, stop, size):
        row = first if sequences else first * matched.inner
        for part in parts(manifest, matched.read(first, last)):
            arrays, real = padded(manifest, part, row)
            inputs = feed(arrays)
            outputs = file.run({**inputs, **numbers}, names)
            kept = {name: x[real] for name, x in outputs.items()}
            reader.take({k: x[real] for k, x in inputs.items()}, kept, row)
            row += real.stop - real.start
        progress((last - first) * matched.inner)
    ranges = [(start * matched.inner, stop * matched.inner)]
    ends = rollout_ends(matched)
    return Evaluation(
        file.sha256, old_sha256, reader.settings, used, matched.rows, ends, ranges, totals
    )


def parts(manifest: Manifest, arrays: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """The arrays in pieces that a graph of a fixed batch takes: a `[B, T]` unit may be longer."""
    count = next(iter(arrays.values())).shape[0]
    size = manifest.batch or count
    for at in range(0, count, size):
        yield {name: x[at : at + size] for name, x in arrays.items()}


def rollout_ends(matched: Matched) -> str:
    """SHA-256 of the first and the last row of a rollout, whichever part of it is evaluated."""
    ends = [matched.read(0, 1), matched.read(matched.units - 1, matched.units)]
    return sha256(b"".join(x.tobytes() for end in ends for _, x in sorted(end.items())))


def _range(matched: Matched, rows: tuple[int, int | None]) -> tuple[int, int]:
    start, stop = rows[0], matched.units if rows[1] is None else rows[1]
    if not 0 <= start < stop <= matched.units:
        raise BadInputError(
            f"--rows A:B must be a range of the {matched.units:,} rows; got {start}:{stop}."
        )
    return start, stop


def padded(
    manifest: Manifest, arrays: dict[str, Array], first: int = 0
) -> tuple[dict[str, Array], slice]:
    """Arrays filled up with copies of their rows to a size that suits, and where the rows are.

    That is the graph's own size, if it has one. Otherwise row n of the rollout stands at n modulo
    `WHOLE_ROWS`, for the order in which ONNX Runtime adds up a row depends on where it stands, and
    parts of a rollout would not add up to the whole.
    """
    count = next(iter(arrays.values())).shape[0]
    before, size = 0, manifest.batch or count
    if not manifest.batch and manifest.batch_dims == 1:
        before = first % WHOLE_ROWS
        size = -(-(before + count) // WHOLE_ROWS) * WHOLE_ROWS
    assert count <= size, "see `parts`"
    rows = slice(before, before + count)
    if count == size:
        return arrays, rows
    index = np.clip(np.arange(size) - before, 0, count - 1)
    return {name: x[index] for name, x in arrays.items()}, rows
