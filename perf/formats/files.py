"""Result files in the formats that other tools read, all made from the one row type.

- pytest-benchmark: for its own compare, github-action-benchmark (`pytest`) and Bencher
  (`python_pytest`). `pytest-benchmark compare` 5.3.1 reads it.
- github-action: github-action-benchmark's `customSmallerIsBetter`, after `BenchmarkResult` in its
  src/extract.ts.
- bmf: Bencher's `json` adapter; the schema is the one that
  bencher.dev/docs/reference/bencher-metric-format prints.
- hud-v3: PyTorch's HUD, after oss_ci_benchmark_v3/schema.sql in pytorch/test-infra.
- asv: airspeed velocity. `asv publish` 0.6.6 made its site from it.
- otava-csv: Apache Otava's CSV: `time`, the attribute `commit`, and a column for each series, to be
  named as metrics in otava.yaml. `otava analyze` 0.8.0 reads it.
- openmetrics: OpenMetrics 1.0 for Prometheus, and its older text format at once. Both parsers of
  prometheus_client 0.26.0 read it.

What was run on it is named with its version; tests/test_perf_formats.py holds the others against
schemas written from these sources.

An emitter takes runs and gives a text for each file; the file "" is the only one, named by the
caller. What a format has no place for is left out and said in a note.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.formats.asv import asv
from klppo_compile.perf.formats.names import keep_apart
from klppo_compile.perf.formats.openmetrics import openmetrics
from klppo_compile.perf.formats.pytest import pytest_benchmark, seconds
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.history.series import series_of
from klppo_compile.perf.rows import Row

Documents = dict[str, str]


def converted(runs: list[Run], form: str) -> tuple[Documents, list[str]]:
    """Runs in another tool's format: the files by name, and notes on what was left out.

    Raises:
        BadInputError: the format holds one run and more came, or it has no place for any row.
    """
    if len(runs) != 1 and form not in OF_MANY:
        raise BadInputError(
            f"{form} holds one run in a file; got {len(runs)}. Convert them one by one."
        )
    taken = [row for run in runs for row in run.rows if form not in TAKES or TAKES[form](row)]
    if not taken:
        raise BadInputError(
            f"{form} has no place for any row of {', '.join(run.file for run in runs)}:"
            f" {WHY_NOT.get(form, 'there is none')}."
        )
    left = sum(len(run.rows) for run in runs) - len(taken)
    notes = [f"{left} rows left out: {WHY_NOT[form]}."] if left else []
    return FORMATS[form](runs), notes


def name_of(row: Row) -> str:
    """What other tools call a contender at a workload."""
    return f"{row.workload} {row.provider}"


def bmf(runs: list[Run]) -> Documents:
    """Bencher Metric Format; times go to Bencher's own measure `latency`, in nanoseconds.

    Raises:
        BadInputError: two of its names are one.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    names = []
    for row in runs[0].rows:
        scale = seconds(row)
        is_time = scale is not None and row.metric == "time"
        factor = 1e9 * scale if scale is not None and is_time else 1.0
        # A measure's name has at most 64 letters.
        measure = "latency" if is_time else row.metric[:64]
        written = f"{name_of(row)}: {measure}"
        names.append((written, (row.workload, row.provider, row.metric)))
        found.setdefault(name_of(row), {})[measure] = {
            "value": row.value * factor,
            "lower_value": row.low * factor,
            "upper_value": row.high * factor,
        }
    keep_apart("bmf", names)
    return {"": as_json(found)}


def github_action(runs: list[Run]) -> Documents:
    """github-action-benchmark's `customSmallerIsBetter`: rows of which less is better.

    Raises:
        BadInputError: two of its names are one.
    """
    taken = [row for row in runs[0].rows if row.better == "lower"]
    ours = [(row.workload, row.provider, row.metric) for row in taken]
    entries = [
        {
            "name": f"{name_of(row)}: {row.metric}",
            "unit": row.unit or "count",
            "value": row.value,
            "range": f"{row.low:.6g} to {row.high:.6g}",
            "extra": f"{row.kind}, {row.samples} samples, {row.launches} launches",
        }
        for row in taken
    ]
    keep_apart("github-action", zip([str(entry["name"]) for entry in entries], ours, strict=True))
    return {"": as_json(entries)}


def hud_v3(runs: list[Run]) -> Documents:
    """Records of PyTorch's benchmark database; times and commits are added as it takes them in."""
    run = runs[0]
    machine = {str(name): str(value) for name, value in run.header["machine"].items()}
    records = [
        {
            "benchmark": {
                "name": "klppo-compile",
                "mode": "training",
                "dtype": dtype_of(row.workload),
                "extra_info": {"commit": run.commit, "machine_class": run.machine_class},
            },
            "model": {
                "name": row.workload,
                "type": "micro-benchmark",
                "backend": row.provider,
                "origins": ["klppo-compile"],
            },
            "metric": {
                "name": f"{row.metric} ({row.unit})" if row.unit else row.metric,
                "benchmark_values": [row.value],
                "target_value": 0.0,
                "extra_info": {
                    "kind": row.kind,
                    "better": row.better,
                    "low": repr(row.low),
                    "high": repr(row.high),
                    "samples": str(row.samples),
                    "launches": str(row.launches),
                },
            },
            "runners": [{"name": run.machine_class, "cpu_info": machine.get("cpu", "")}],
            "dependencies": {
                name: {"version": value} for name, value in machine.items() if name in PACKAGES
            },
        }
        for row in run.rows
    ]
    return {"": as_json(records)}


def dtype_of(workload: str) -> str:
    """The dtype of a workload's heads, which its name holds where it isn't the usual one."""
    named = [word for word in re.split("[/-]", workload) if re.fullmatch(r"b?float\d+", word)]
    return named[0] if named else "float32"


PACKAGES = ("torch", "triton", "tensordict", "torchrl", "onnxruntime")


def otava_csv(runs: list[Run]) -> Documents:
    """Otava's CSV: a line for each run, a column for each series; runs of one class of machine.

    Raises:
        BadInputError: the runs are of several, or two series have one column.
    """
    classes = sorted({run.machine_class for run in runs})
    if len(classes) > 1:
        raise BadInputError(
            f"A series is compared within one class of machine; got {', '.join(classes)}. Convert"
            " the files of each apart."
        )
    runs = sorted(runs, key=lambda run: (run.date.timestamp(), run.file))
    series = series_of(runs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # Otava is told the columns by name, and which character quotes: so there is nothing to quote.
    names = [re.sub(r"[^\w/.-]+", "_", f"{name_of(s.latest)} {s.metric}") for s in series]
    ours = [
        (s.latest.workload, s.latest.provider, s.metric, f"from {s.runs[0].file} on")
        for s in series
    ]
    keep_apart(
        "otava-csv",
        zip(names, ours, strict=True),
        "Rename one, or convert the files before a change of unit or versions apart from the rest.",
    )
    writer.writerow(["time", "commit", *names])
    columns = [dict(zip(one.runs, one.values, strict=True)) for one in series]
    for run in runs:
        time = run.date.strftime("%Y-%m-%d %H:%M:%S %z").strip()
        writer.writerow([time, run.commit, *(column.get(run, "") for column in columns)])
    return {"": text.getvalue()}


def as_json(value: Any) -> str:
    """JSON to read and to compare."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[list[Run]], Documents]] = {
    "pytest-benchmark": pytest_benchmark,
    "bmf": bmf,
    "github-action": github_action,
    "hud-v3": hud_v3,
    "asv": asv,
    "otava-csv": otava_csv,
    "openmetrics": openmetrics,
}
OF_MANY = {"asv", "otava-csv"}
# Which rows a format has a place for; all of them where it isn't named.
TAKES: dict[str, Callable[[Row], bool]] = {
    "pytest-benchmark": lambda row: seconds(row) is not None,
    "github-action": lambda row: row.better == "lower",
}
WHY_NOT = {
    "pytest-benchmark": "its numbers are times, so the others are only in extra_info",
    "github-action": "in one file less must always be better",
}
