"""pytest-benchmark's JSON: read by its compare, github-action-benchmark, Bencher and others.

They all ignore `extra_info`; what is no time is kept there. A row has a median and its interval, no
samples, so the statistics that need them are taken from these: the mean is the median, minimum,
maximum and quartiles are the ends of the 99 % interval, the standard deviation is that interval's
standard error. Of fewer than 8 samples it is their range instead, and no standard error.
`extra_info` says so in every benchmark.
"""

import json
from typing import Any

from klppo_compile.perf.history.files import Run
from klppo_compile.perf.rows import Row, span_of

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Half of a 99 % interval in standard errors.
HALF_99 = 2.576


def seconds(row: Row) -> float | None:
    """How many seconds a row's unit has; None where it is no time."""
    return SECONDS.get(row.unit)


def pytest_benchmark(runs: list[Run]) -> dict[str, str]:
    """One run as pytest-benchmark would have stored it."""
    run = runs[0]
    machine = run.header["machine"]
    hash_, _, dirty = run.commit.partition("-")
    document = {
        "machine_info": {
            "node": run.machine_class,
            "processor": machine.get("cpu"),
            "machine": run.machine_class,
            "cpu": {"brand_raw": machine.get("cpu"), "count": machine.get("cores")},
            "klppo": machine,
        },
        "commit_info": {
            "id": hash_,
            "time": run.date.isoformat(),
            "dirty": dirty == "dirty",
            "project": "klppo-compile",
            "branch": "(unknown)",
        },
        "benchmarks": [benchmark(run, row) for row in run.rows if seconds(row) is not None],
        "datetime": run.date.isoformat(),
        "version": "5.3.1",
    }
    return {"": json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"}


def note_of(row: Row) -> str:
    """What a row's statistics are."""
    span = span_of(row)
    width = "its standard error" if span.startswith("99") else f"that range over {2 * HALF_99:.2f}"
    return f"mean is the median; min, max, q1 and q3 are the ends of its {span}; stddev is {width}"


def benchmark(run: Run, row: Row) -> dict[str, Any]:
    """A row of time as a benchmark, with all other rows of its contender beside it."""
    name = f"{row.workload}[{row.provider}]"
    name = name if row.metric == "time" else f"{name} {row.metric}"
    others = {
        other.metric: {
            "value": other.value,
            "low": other.low,
            "high": other.high,
            "unit": other.unit,
            "kind": other.kind,
            "better": other.better,
        }
        for other in run.rows
        if (other.workload, other.provider) == (row.workload, row.provider) and other is not row
    }
    return {
        "group": row.workload,
        "name": name,
        "fullname": f"klppo_compile/perf::{name}",
        "params": {"workload": row.workload, "provider": row.provider},
        "param": row.provider,
        "extra_info": {"note": note_of(row), "launches": row.launches, "metrics": others},
        "options": {
            "disable_gc": False,
            "timer": "thread_time",
            "min_rounds": row.samples,
            "max_time": 0.0,
            "min_time": 0.0,
            "warmup": True,
        },
        "stats": stats(row),
    }


def stats(row: Row) -> dict[str, float | str]:
    """The statistics of a row, in seconds."""
    scale = SECONDS[row.unit]
    low, value, high = row.low * scale, row.value * scale, row.high * scale
    return {
        "min": low,
        "max": high,
        "mean": value,
        "stddev": (high - low) / (2 * HALF_99),
        "median": value,
        "q1": low,
        "q3": high,
        "iqr": high - low,
        "ld15iqr": low,
        "hd15iqr": high,
        "outliers": "0;0",
        "iqr_outliers": 0,
        "stddev_outliers": 0,
        "ops": 1 / value if value else 0.0,
        "total": value * row.samples,
        "rounds": row.samples,
        "iterations": 1,
    }
