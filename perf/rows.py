"""The one row type of every measurement, and the document a run's rows are kept in.

A row is one number: what was measured, on whom, how far to trust it. Tables and ratios are made of
rows; nothing else is stored.
"""

import json
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.machine import result_name
from klppo_compile.perf.measure import ENOUGH

SCHEMA = "klppo-perf-rows/2"
KINDS = ("exact", "counted", "timed")
BETTER = ("lower", "higher")
LARGEST = 1e300
"""Of a number; a median or a ratio of larger ones is none."""


@dataclass(frozen=True)
class Row:
    """One measured number. The fields are the columns.

    Attributes:
        workload: name of the `Workload`.
        provider: who did the work.
        metric: what was measured: "time", "memory rate", "speed over torchrl eager", ...
        unit: of `value`, `low` and `high`.
        value: median over the samples.
        low, high: 99 % confidence interval of the median; the value itself where it is exact. Of
            fewer than 8 samples of a process no such interval can be made: then it is their range,
            which covers less, of 5 samples 94 %, of 3 75 %. Of several launches of `cpu` or
            `bench ab` the three are the geometric mean of the launches' values and its Student
            interval.
        samples: how many samples it is the median of; of all launches together.
        better: "lower" or "higher".
        kind: "exact" (the same in every run), "counted" (instructions) or "timed". Each has a rule
            of its own for what a regression is.
        launches: processes that the samples come from: the unit of replication of what is timed.
    """

    workload: str
    provider: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    samples: int
    better: str
    kind: str = "timed"
    launches: int = 1


def metric_of(row: Row) -> str:
    """A row's metric, and whether it is of several launches, which one launch can't stand for."""
    return f"{row.metric} (launches)" if of_launches(row) else row.metric


def of_launches(row: Row) -> bool:
    """Whether a time is of several launches: one launch's differs from it by more than noise."""
    return row.kind == "timed" and row.launches > 1


def span_of(row: Row) -> str:
    """What lies between a row's low and high, in words."""
    if row.kind == "timed" and row.samples < ENOUGH:
        return f"range of {row.samples} samples"
    return "99 % interval"


def require_place(out: Path | None) -> None:
    """See that a result can be written before it is measured; the folder is made.

    Raises:
        BadInputError: a file is where a folder must be or the other way round, or the folder can't
            be made or written.
    """
    if out is None:
        return
    folder = out.parent if out.suffix == ".json" else out
    try:
        if out.suffix == ".json" and out.is_dir():
            raise IsADirectoryError(f"{out} is a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInputError(
            f"--out must be a .json file or a folder that can be made and written; {out} is"
            f" neither: {error}."
        ) from error


def write_result(out: Path, run: dict[str, Any], rows: list[Row], ending: str = "") -> Path:
    """Write a document and return where: to a .json file, or to a named one of its own in a folder.

    `ending` is that of the name.

    Raises:
        BadInputError: it can't be written.
    """
    if out.suffix == ".json":
        write_document(out, run, rows)
        return out
    require_place(out)
    path = claimed(out, result_name(run).removesuffix(".json") + ending)
    try:
        write_document(path, run, rows)
    except BaseException:
        path.unlink()
        raise
    return path


def claimed(folder: Path, stem: str, number: int = 1) -> Path:
    """An empty file under a name that no other run has, nor one that ends just now."""
    path = folder / f"{stem}{f'-{number}' * (number > 1)}.json"
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return claimed(folder, stem, number + 1)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def unwritable(path: Path, error: OSError) -> BadInputError:
    """What to say where a file can't be written."""
    return BadInputError(
        f"a result needs a file to be written; {path} can't be: {error}. Name another."
    )


def write_document(path: Path, run: dict[str, Any], rows: list[Row]) -> None:
    """Write a run (when, which commit, which machine, how) and its rows as JSON: all or nothing.

    Raises:
        BadInputError: it can't be written; what was there is as it was.
    """
    document = {"schema": SCHEMA, "run": run, "rows": [asdict(row) for row in rows]}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = path.resolve()  # behind a link, which stays
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def read_document(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The run and the rows of a document.

    Raises:
        BadInputError: the file is cut short, is of another schema, or a row can't be compared.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
        if r"\ud" in text.lower():  # half a character can be read, but never be written
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise BadInputError(
            f"{path.name} must be a JSON document; it breaks off at line {error.lineno}."
            " Measure again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(
            f"{path.name} must be a JSON document; it can't be read: {error}. Measure again."
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise BadInputError(
            f"{path.name} must have the schema {SCHEMA!r}; got {schema!r}. Measure again with this"
            " version."
        )
    rows = [Row(**row) for row in document["rows"]]
    try:
        check_rows(rows)
    except ValueError as error:
        raise BadInputError(f"{path.name}: {error} Measure again.") from error
    try:
        json.dumps(document["run"], allow_nan=False)
    except ValueError as error:
        raise BadInputError(
            f"{path.name}: what it says of the run must be JSON, which has neither NaN nor"
            f" Infinity; got one: {error}. Measure again."
        ) from error
    return document["run"], rows


def check_rows(rows: Iterable[Row]) -> None:
    """Names, kinds and numbers of rows.

    Raises:
        ValueError: a row can't be compared, or be part of a series.
    """
    seen = set()
    for row in rows:
        key = (row.workload, row.provider, row.metric)
        name = " · ".join(map(str, key))
        if not all(isinstance(text, str) for text in (*key, row.unit)):
            raise ValueError(f"workload, provider, metric and unit must be text; got {name}.")
        if row.kind not in KINDS or row.better not in BETTER:
            raise ValueError(
                f"kind must be one of {KINDS} and better one of {BETTER}; {name} has"
                f" {row.kind!r} and {row.better!r}."
            )
        check_numbers(row, name)
        if key in seen:
            raise ValueError(f"a run measures a metric once; {name} is there twice.")
        seen.add(key)


def check_numbers(row: Row, name: str) -> None:
    """The numbers of a row of that name.

    Raises:
        ValueError: they are no measurement.
    """
    numbers = (row.value, row.low, row.high)
    if not all(is_finite(x) for x in numbers):
        raise ValueError(
            f"value, low and high must be finite numbers; {name} has {shown(numbers)}."
        )
    if max(map(abs, numbers)) > LARGEST:
        raise ValueError(
            f"value, low and high must be at most {LARGEST:g} in size; {name} has {shown(numbers)}."
        )
    if not row.low <= row.value <= row.high:
        raise ValueError(f"value must lie between low and high; {name} has {numbers}.")
    if row.kind == "timed" and row.low <= 0:
        raise ValueError(f"what is timed must be above 0; {name} has {numbers}.")
    if row.kind != "timed" and row.low < 0:
        raise ValueError(f"what is counted must be 0 or more; {name} has {numbers}.")
    counts = (row.samples, row.launches)
    if not all(type(n) is int and n >= 1 for n in counts):
        raise ValueError(
            f"samples and launches must be whole numbers above 0; {name} has {shown(counts)}."
        )


def is_finite(x: object) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    except OverflowError:
        return False


def shown(values: tuple[object, ...]) -> str:
    """Values as text, each cut before it fills a line."""
    return ", ".join(f"{x!r:.20}" for x in values)
