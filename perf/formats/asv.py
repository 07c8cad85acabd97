"""Result files of airspeed velocity: `asv publish` makes its site from them without `asv run`.

Put the folder's files where `results_dir` of asv.conf.json points. asv knows a commit by its whole
hash: one that git can tell here is written in full. It keeps one file of a commit and machine, so
runs of one commit are put together, with changes that were not committed or without. Every series
is a benchmark of its own, so that each gets its own chart and axis.
"""

import json
import re
import subprocess
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.formats.names import keep_apart
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.rows import Row, metric_of

ENVIRONMENT = "klppo"
COLUMNS = ("result", "params", "version", "stats_ci_99_a", "stats_ci_99_b", "stats_n")


def asv(runs: list[Run]) -> dict[str, str]:
    """The list of benchmarks, a file for each class of machine and one for each commit.

    Raises:
        BadInputError: two runs of a commit contradict each other, or two names are one.
    """
    rows = [row for run in runs for row in run.rows]
    keep_apart("asv", ((name_of(r), (r.workload, r.provider, r.metric, r.unit)) for r in rows))
    benchmarks: dict[str, Any] = {"version": 2}
    benchmarks |= {name_of(row): described(row) for row in rows}
    files: dict[str, Any] = {}
    of_commit: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        machine = run.machine_class
        files[f"{machine}/machine.json"] = {
            "machine": machine,
            "cpu": str(run.header["machine"].get("cpu", "")),
            "num_cpu": str(run.header["machine"].get("cores", "")),
            "arch": "",
            "os": "",
            "ram": "",
            "version": 1,
        }
        of_commit.setdefault((machine, whole_hash(run.commit)), []).append(run)
    places = {key: f"{key[0]}/{key[1][:8]}-{ENVIRONMENT}.json" for key in of_commit}
    keep_apart("asv", ((place, key) for key, place in places.items()), "Convert them apart.")
    files |= {places[key]: results(its, key[1]) for key, its in of_commit.items()}
    files["benchmarks.json"] = benchmarks
    return {name: json.dumps(value, indent=1) + "\n" for name, value in files.items()}


def results(runs: list[Run], commit: str) -> dict[str, Any]:
    """The runs of one commit on one class of machine, dated by the first."""
    run = runs[0]
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
        "results": numbers(runs),
        "version": 2,
    }


def numbers(runs: list[Run]) -> dict[str, Any]:
    """What the runs of one commit measured: of times that were taken again the newest.

    Raises:
        BadInputError: two of them counted the same, and not the same number.
    """
    found: dict[str, tuple[Run, list[Any]]] = {}
    for run in sorted(runs, key=lambda run: run.date.timestamp()):
        for row in run.rows:
            its = [[row.value], [], "1", [row.low], [row.high], [row.samples]]
            first, known = found.setdefault(name_of(row), (run, its))
            if row.kind == "timed":
                found[name_of(row)] = (run, its)
            elif known != its:
                raise BadInputError(
                    f"asv keeps one number of a commit and machine; {first.file} and {run.file} are"
                    f" both of {run.commit.removesuffix('-dirty')} and differ in"
                    f" {row.workload} · {row.provider} · {row.metric}. Convert one of them."
                )
    return {name: its for name, (_, its) in found.items()}


def described(row: Row) -> dict[str, Any]:
    """A series as a benchmark that tracks a number."""
    return {
        "code": "",
        "name": name_of(row),
        "pretty_name": f"{row.workload} · {row.provider} · {metric_of(row)}",
        "param_names": [],
        "params": [],
        "timeout": 0,
        "type": "track",
        "unit": row.unit,
        "version": "1",
    }


def name_of(row: Row) -> str:
    """`normal_heads_256.ours_compiled.time`: asv groups by what stands between the points."""
    parts = (row.workload, row.provider, metric_of(row))
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
