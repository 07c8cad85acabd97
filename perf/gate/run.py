"""`klppo bench ab` and `calibrate` from names of revisions to a result."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klppo_compile.exit_codes import BadInputError, CannotError, FailedError, RefusalError
from klppo_compile.perf.comparing.accepting import read_accepted
from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.comparing.rules import compare_rows
from klppo_compile.perf.exact.cache import counted
from klppo_compile.perf.exact.metrics import RaisedError
from klppo_compile.perf.gate.calibrating import (
    LaunchedHere,
    Noise,
    chosen_workloads,
    jobs,
    noise_of,
)
from klppo_compile.perf.gate.pairing import RULE, Launch, Pair, install_pair, probe
from klppo_compile.perf.gate.verdict import (
    METRIC,
    PROVIDER,
    Limits,
    compare_times,
    same_code,
    timed_findings,
)
from klppo_compile.perf.processes import workers
from klppo_compile.perf.revisions import WORKING_TREE, Source, install, read_revision
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import WORKLOADS, Workload

EXACT = ("normal/networks/256", "categorical/networks/256")
"""What is counted: one of each family, networks and all; the size moves no count but the bytes'."""
EXACT_PARTS = ("compiled", "eager")
Progress = Callable[[str], None]


@dataclass
class Result:
    """What a comparison of revisions found.

    Attributes:
        base, new: names of the revisions.
        findings: exact ones, then timed ones.
        rows: what was measured of the new side.
        notes: what to know beside them.
        launches: of the timed part.
        measured: whose rows they are, as in the head of a result file: commit, version, and base.
    """

    base: str
    new: str
    findings: list[Finding]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    measured: dict[str, str] = field(default_factory=dict)


def compare_revisions(
    rev_a: str,
    rev_b: str,
    pattern: str | None,
    minutes: float,
    launches: int | None,
    folder: Path,
    progress: Progress,
) -> Result:
    """Compare two revisions: what is exact, then, where that is no worse, times.

    Args:
        rev_a, rev_b: base and new, as git knows them; "." is the working tree.
        pattern: of the workloads to time; None for the gate's.
        minutes: for all of it.
        launches: of a stage; None for as many as decide.
        folder: an empty one to work in.
        progress: told what is under way, a line each.

    Raises:
        BadInputError: a revision or a workload that isn't there, a revision that doesn't run.
        MissingRequirementError: no git.
        CannotError: a process died; the base's own answer is wrong.
    """
    deadline = time.monotonic() + 60 * minutes
    workloads = chosen_workloads(pattern)
    base, new = read_revision(rev_a), read_revision(rev_b)
    return compare_sources(base, new, workloads, deadline, launches, folder, progress)


def compare_sources(
    base: Source,
    new: Source,
    workloads: Sequence[str],
    deadline: float,
    launches: int | None,
    folder: Path,
    progress: Progress,
    exact: Sequence[str] = EXACT,
) -> Result:
    """`compare_revisions`, of texts; `exact` names the workloads to count.

    Raises:
        BadInputError: one doesn't import or run.
        CannotError: a process died; the base's own answer is wrong.
    """
    progress(f"installing {base.name} and {new.name}")
    pair = install_pair(base, new, folder / "pair")
    probe(pair, list(dict.fromkeys((*workloads, *exact))))
    measured = {"commit": new.commit, "version": new.version, "base": base.commit}
    result = Result(base.name, new.name, [], measured=measured)
    progress(f"counting on {', '.join(exact)}")
    count_both(base, new, [w for w in WORKLOADS if w.name in exact], folder, result)
    if any(f.verdict is Verdict.REGRESSION for f in result.findings):
        result.notes.append("Nothing was timed: what is exact is worse.")
        return result
    limits = Limits() if launches is None else Limits(launches, launches)
    found = compare_times(LaunchedHere(pair, workloads, deadline, progress), workloads, limits)
    timed = timed_findings(found, workloads, limits)
    result.findings += timed
    result.launches = found.launches
    result.rows += [row for f in timed if (row := ratio_row(f, found.launches))]
    if same_code(found.launches):
        result.notes.append("Inductor made the same code of both, so that only Python can differ.")
    return result


def count_both(
    base: Source,
    new: Source,
    workloads: Sequence[Workload],
    folder: Path,
    result: Result,
) -> None:
    """Count what is exact, of both sides, and add what came of it to the result.

    Of each workload the base first: what its code shares with the new side's is then compiled.

    Raises:
        BadInputError: one doesn't compile or run.
        CannotError: a process died; the base's own answer is wrong.
    """
    base_rows: dict[str, list[Row]] = {}
    before_at, after_at = (install(s, folder / f"exact-{n}") for n, s in enumerate((base, new)))

    def count(workload: Workload) -> list[Row] | FailedError:
        try:
            base_rows[workload.name] = counted(workload, before_at, EXACT_PARTS)
        except RaisedError as error:
            raise BadInputError(f"{RULE} {base.name} does not: {error}") from error
        except RefusalError as error:
            raise CannotError(
                f"{base.name} gives nothing to compare {new.name} with: {error}"
            ) from error
        try:
            return counted(workload, after_at, EXACT_PARTS)
        except FailedError as error:
            return error
        except RaisedError as error:
            raise BadInputError(f"{RULE} {new.name} does not: {error}") from error
        except CannotError as error:
            raise CannotError(f"{new.name}: {error}") from error

    with workers(jobs()) as pool:
        new_rows = list(pool.map(count, workloads))
    decisions = read_accepted()
    for workload, after in zip(workloads, new_rows, strict=True):
        if isinstance(after, FailedError):
            result.findings.append(wrong_answer(workload.name, str(after)))
        else:
            result.findings += compare_rows(base_rows[workload.name], after, decisions)
            result.rows += after


def wrong_answer(workload: str, said: str) -> Finding:
    """The new side's losses or gradients are wrong."""
    nothing = float("nan")
    return Finding(
        workload,
        PROVIDER,
        "answer",
        "exact",
        "",
        None,
        None,
        nothing,
        nothing,
        nothing,
        Verdict.REGRESSION,
        said,
    )


def ratio_row(found: Finding, launches: Sequence[Launch]) -> Row | None:
    """A timed finding as a row: the ratio of the new side to the base."""
    if found.new is None:
        return None
    values = (1 + found.change, 1 + found.low, 1 + found.high)
    metric = f"{METRIC} over the base's"
    calls = sum(launched[found.workload].rounds for launched in launches)
    return Row(
        found.workload, PROVIDER, metric, "x", *values, calls, "lower", "timed", len(launches)
    )


def calibrate(
    pattern: str | None, minutes: float, folder: Path, progress: Progress
) -> tuple[list[Noise], list[Launch]]:
    """The working tree against itself until the time is over: what this machine can see.

    Raises:
        BadInputError: no such workload, no checkout, or one that doesn't run.
        CannotError: a process died, or the time did not do for launches enough.
    """
    deadline = time.monotonic() + 60 * minutes
    workloads = chosen_workloads(pattern)
    source = read_revision(WORKING_TREE)
    pair: Pair = install_pair(source, source, folder)
    here, launches = LaunchedHere(pair, workloads, deadline, progress), list[Launch]()
    while wave := here.wave():
        launches += wave
    found = [noise for name in workloads if (noise := noise_of(launches, name))]
    if not found:
        raise CannotError(
            f"a noise floor needs 3 launches; there was time for {len(launches)}. Give it more"
            " --minutes."
        )
    return found, launches
