"""What `klppo bench run` measures: which parts on which workloads, quick or full."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from klppo_compile.compiler import missing as missing_compiler
from klppo_compile.exit_codes import BadInputError, FailedError, MissingRequirementError
from klppo_compile.perf.counted.instructions import measure_counted, missing, valgrind_version
from klppo_compile.perf.exact.kernels import measure_kernels
from klppo_compile.perf.exact.metrics import Progress, measure_exact
from klppo_compile.perf.machine import run_header
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import WORKLOADS, Workload

PARTS = ("exact", "kernels", "counted", "timed", "cold")
COMPILED = {"exact", "counted", "timed", "cold"}
"""Parts that call the C++ compiler; Triton brings its own."""
COUNTED_BATCH = 4096
"""Largest batch that is counted: under valgrind a call takes fifty times as long."""


@dataclass(frozen=True)
class Suite:
    """What to measure.

    Attributes:
        parts: of `PARTS`, those that run unless others are asked for.
        exact, timed, counted, cold: names of workloads.
        exact_parts: what of the exact metrics.
        chips: whose kernels are compiled.
        every_kernel: whether every configuration is, or a few usual ones.
        rounds, seconds: of the timed part, per workload, at most.
        launches: of the cold start.
    """

    parts: tuple[str, ...]
    exact: tuple[str, ...]
    timed: tuple[str, ...]
    counted: tuple[str, ...]
    cold: str
    exact_parts: tuple[str, ...]
    chips: tuple[str, ...]
    every_kernel: bool
    rounds: int
    seconds: float
    launches: int


ALL = tuple(workload.name for workload in WORKLOADS)
SMALL = ("normal/networks/256", "categorical/networks/256")
SUITES = {
    "quick": Suite(
        parts=("exact", "kernels", "timed"),
        exact=SMALL,
        timed=("normal/heads/4096", "categorical/heads/4096"),
        counted=SMALL,
        cold=SMALL[0],
        exact_parts=("compiled", "eager", "onnx"),
        chips=("sm_90",),
        every_kernel=False,
        rounds=100,
        seconds=4,
        launches=2,
    ),
    "full": Suite(
        parts=PARTS,
        exact=ALL,
        timed=ALL,
        counted=tuple(w.name for w in WORKLOADS if w.batch <= COUNTED_BATCH),
        cold=SMALL[0],
        exact_parts=("compiled", "eager", "onnx", "peers"),
        chips=("sm_80", "sm_90", "sm_100", "gfx942"),
        every_kernel=True,
        rounds=200,
        seconds=20,
        launches=5,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a run found: its rows, and what was left out and why."""

    rows: list[Row]
    left_out: list[str]


def run_suite(
    name: str, progress: Progress, asked: Iterable[str] = (), workloads: Iterable[str] = ()
) -> Outcome:
    """Measure a suite.

    Args:
        name: "quick" or "full".
        progress: told what is under way, a line each.
        asked: parts to measure instead of the suite's own; one that this machine lacks something
            for is an error then, and left out otherwise.
        workloads: only these, of those that a part has.

    Raises:
        MissingRequirementError: no torchrl or onnx, or what a part needs that was asked for, or
            what every part needs.
        BadInputError: no part has the workloads.
        FailedError: the loss's answer is wrong: no numbers are given.
        CannotError: a measuring process died.
    """
    for package in ("torchrl", "onnx"):
        if not installed(package):
            raise MissingRequirementError(
                f"the benchmarks need {package}, which is not installed. Run pip install"
                " 'klppo-compile[perf]'."
            )
    suite, wanted = SUITES[name], tuple(asked)
    only = set(workloads)
    lacking = {part: lack for part in wanted or suite.parts if (lack := lacks(part))}
    parts = [part for part in wanted or suite.parts if part not in lacking]
    if lacking and (wanted or not parts):
        raise MissingRequirementError("; ".join(dict.fromkeys(lacking.values())))

    def chosen(names: tuple[str, ...]) -> list[Workload]:
        return [w for w in WORKLOADS if w.name in names and (not only or w.name in only)]

    rows = exact_rows(suite, parts, chosen(suite.exact), progress)
    if "counted" in parts:
        rows += measure_counted(chosen(suite.counted), None, progress)
    if "timed" in parts:
        rows += timed_rows(suite, chosen(suite.timed), progress)
    if "cold" in parts:
        from klppo_compile.perf.timed.cold import measure_cold

        for workload in chosen((suite.cold,)):
            rows += measure_cold(workload, suite.launches, progress)
    if not rows:
        raise BadInputError(
            f"the parts {', '.join(parts)} have none of the workloads that were asked for."
            " Leave --workload out."
        )
    return Outcome(rows, [f"{part} is left out: {lack}" for part, lack in lacking.items()])


def installed(package: str) -> bool:
    """Whether a package is there; it isn't loaded."""
    return sys.modules.get(package, ...) is not None and find_spec(package) is not None


def lacks(part: str) -> str:
    """What this machine lacks for a part, in words; "" where nothing."""
    if part == "counted" and (lack := missing()):
        return lack
    if part in COMPILED:
        return missing_compiler()
    if part == "kernels" and not installed("triton"):
        return "kernels are compiled by Triton: pip install 'klppo-compile[triton]', on Linux"
    return ""


def exact_rows(
    suite: Suite, parts: list[str], workloads: list[Workload], progress: Progress
) -> list[Row]:
    """Count in processes of their own, as many at once as there are cores: it changes no count."""
    tasks: list[Callable[[], list[Row]]] = []
    if "exact" in parts:
        tasks += [
            partial(measure_exact, [workload], None, progress, parts=suite.exact_parts)
            for workload in workloads
        ]
    if "kernels" in parts:
        tasks += [
            partial(measure_kernels, [chip], None, progress, every=suite.every_kernel)
            for chip in suite.chips
        ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return [row for rows in pool.map(lambda task: task(), tasks) for row in rows]


def timed_rows(suite: Suite, workloads: list[Workload], progress: Progress) -> list[Row]:
    """Time the contenders in turn, in this process and with nothing beside it.

    Raises:
        FailedError: a contender's answer is wrong.
    """
    from klppo_compile.perf.timed.cpu import WrongAnswerError, measure_workload

    rows = []
    for workload in workloads:
        progress(f"timing {workload.name}")
        try:
            rows += measure_workload(workload, suite.rounds, suite.seconds)
        except WrongAnswerError as error:
            raise FailedError(f"no speed for a wrong answer: {error}") from error
    return rows


def header_of(command: str, suite: str, outcome: Outcome) -> dict[str, Any]:
    """The head of the document: the machine, and every version that a count depends on."""
    head = run_header(command)
    tools = {"valgrind": valgrind_version()}
    for name in ("triton", "onnx", "onnxscript"):
        try:
            tools[name] = version(name)
        except PackageNotFoundError:
            continue
    found = {name: text for name, text in tools.items() if text}
    return head | {
        "suite": suite,
        "left out": outcome.left_out,
        "machine": head["machine"] | found,
    }


def require_known(suite: str, workloads: Iterable[str]) -> None:
    """Refuse a workload that the suite doesn't have.

    Raises:
        BadInputError: names those there are.
    """
    known = dict.fromkeys((*SUITES[suite].exact, *SUITES[suite].timed))
    unknown = [name for name in workloads if name not in known]
    if unknown:
        raise BadInputError(
            f"--workload must be one of the suite's, {', '.join(known)}; got {unknown[0]!r}."
        )
