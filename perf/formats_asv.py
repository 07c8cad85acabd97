"""Result files of airspeed velocity: `asv publish` makes its site from them without `asv run`.

Put the folder's files where `results_dir` of asv.conf.json points. asv knows a commit by its whole
hash: one that git can tell here is written in full. Every series is a benchmark of its own, so that
each gets its own chart and axis.
"""

import json
import re
import subprocess
from typing import Any

from klppo_compile.perf.history import Run
from klppo_compile.perf.rows import Row

ENVIRONMENT = "klppo"
COLUMNS = ("result", "params", "version", "stats_ci_99_a", "stats_ci_99_b", "stats_n")


def asv(runs: list[Run]) -> dict[str, str]:
    """The list of benchmarks, a file for each class of machine and one for each run."""
    benchmarks: dict[str, Any] = {"version": 2}
    files: dict[str, Any] = {}
    for run in runs:
        machine = run.machine_class
        benchmarks |= {name_of(row): described(row) for row in run.rows}
        files[f"{machine}/machine.json"] = {
            "machine": machine,
            "cpu": str(run.header["machine"].get("cpu", "")),
            "num_cpu": str(run.header["machine"].get("cores", "")),
            "arch": "",
            "os": "",
            "ram": "",
            "version": 1,
        }
        commit = whole_hash(run.commit)
        files[f"{machine}/{commit[:8]}-{ENVIRONMENT}.json"] = results(run, commit)
    files["benchmarks.json"] = benchmarks
    return {name: json.dumps(value, indent=1) + "\n" for name, value in files.items()}


def results(run: Run, commit: str) -> dict[str, Any]:
    """One run."""
    milliseconds = int(run.date.timestamp() * 1000)
    machine = run.header["machine"]
    return {
        "commit_hash": commit,
        "date": milliseconds,
        "durations": {},
        "env_name": ENVIRONMENT,
        "env_vars": {},
        "params": {"machine": run.machine_class, "python": "", "cpu": str(machine.get("cpu", ""))},
        "python": "",
        "requirements": {},
        "result_columns": list(COLUMNS),
        "results": {
            name_of(row): [[row.value], [], "1", [row.low], [row.high], [row.samples]]
            for row in run.rows
        },
        "version": 2,
    }


def described(row: Row) -> dict[str, Any]:
    """A series as a benchmark that tracks a number."""
    return {
        "code": "",
        "name": name_of(row),
        "pretty_name": f"{row.workload} · {row.provider} · {row.metric}",
        "param_names": [],
        "params": [],
        "timeout": 0,
        "type": "track",
        "unit": row.unit,
        "version": "1",
    }


def name_of(row: Row) -> str:
    """`normal_heads_256.ours_compiled.time`: asv groups by what stands between the points."""
    parts = (row.workload, row.provider, row.metric)
    return ".".join(re.sub(r"\W+", "_", part).strip("_") for part in parts)


def whole_hash(commit: str) -> str:
    """A commit's hash in full where git knows it here, without -dirty."""
    name = commit.removesuffix("-dirty")
    if not re.fullmatch(r"[0-9a-fA-F]{4,40}", name):
        return name
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    try:
        done = subprocess.run(  # noqa: S603  git, on a name of hexadecimal digits
            command, capture_output=True, text=True, check=False
        )
    except OSError:
        return name
    return done.stdout.strip() or name
