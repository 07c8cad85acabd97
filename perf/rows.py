"""The one row type of every measurement, and the document a run's rows are kept in.

A row is one number: what was measured, on whom, how far to trust it. Tables and ratios are made of
rows; nothing else is stored.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA = "klppo-perf-rows/2"


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
            which covers less, of 5 samples 94 %, of 3 75 %.
        samples: how many samples it is the median of.
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


def write_document(path: Path, run: dict[str, Any], rows: list[Row]) -> None:
    """Write a run (when, which commit, which machine, how) and its rows as JSON."""
    document = {"schema": SCHEMA, "run": run, "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_document(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The run and the rows of a document.

    Raises:
        ValueError: the file is cut short, or is of another schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name} must be a JSON document; it breaks off at line {error.lineno}."
            " Measure again."
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{path.name} must have the schema {SCHEMA!r}; got {schema!r}. Measure again with this"
            " version."
        )
    return document["run"], [Row(**row) for row in document["rows"]]
