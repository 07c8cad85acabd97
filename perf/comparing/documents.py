"""Two result files: what of them can be compared at all, and what is only told."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.comparing.accepting import Accepted
from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.comparing.rules import (
    CHIPS,
    RATIOS,
    comparable,
    compare_rows,
    compared,
    key_of,
    most_hidden,
    told_of_peers,
)
from klppo_compile.perf.machine import machine_class
from klppo_compile.perf.rows import Row, read_document
from klppo_compile.perf.statistics import GOAL

SAID_SINCE = ("python", "arch")
"""What older files don't say: there it is as in the other."""


class Need(NamedTuple):
    """Rows, and what must be the same on both sides for their numbers to mean the same."""

    rows: str
    are: Callable[[Row], bool]
    same: tuple[str, ...]


NEEDS = (
    Need(
        "exact and counted rows",
        lambda row: row.kind != "timed",
        ("torch", "tensordict", *SAID_SINCE),
    ),
    Need("kernels' rows", lambda row: row.provider in CHIPS, ("triton",)),
    Need("ONNX rows", lambda row: row.metric.startswith("ONNX"), ("onnx", "onnxscript")),
    Need("counted rows", lambda row: row.kind == "counted", ("compiler", "valgrind")),
    Need(
        "timed rows",
        lambda row: row.kind == "timed",
        ("machine class", "torchrl", "tensordict", "compiler", *SAID_SINCE),
    ),
)


@dataclass(frozen=True)
class Document:
    """A result file: its name, its head and its rows."""

    name: str
    run: dict[str, Any]
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """What two documents say of each other.

    Attributes:
        findings: one per metric that was compared.
        notes: what was not, and why, a sentence each.
    """

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)


def open_document(path: Path) -> Document:
    """Read a result file.

    Raises:
        BadInputError: there is none, it is cut short, of another schema, or doesn't say where it
            was measured; a row can't be compared.
    """
    try:
        run, rows = read_document(path)
        machine_class(run["machine"])
    except OSError as error:
        raise BadInputError(f"{path} must be a result file; it can't be read: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{path.name} must hold a run with its machine, and rows; something is missing or has"
            f" another shape: {error}. Measure again."
        ) from error
    return Document(path.name, run, rows)


def compare_documents(
    base: Document, new: Document, accepted: Iterable[Accepted] = (), across_machines: bool = False
) -> Comparison:
    """Compare what the machines and versions of two runs allow.

    A workload that only one run has is named; where both say that they ran the same suite, one that
    is gone can't be told. `across_machines` compares what depends on no machine, of two machines.

    Raises:
        BadInputError: the runs are of two machines, or nothing is left to compare.
    """
    if not across_machines:
        require_one_machine(base, new)
    sides = comparable(base.rows, new.rows)
    refused = [
        (need, differences)
        for need in NEEDS
        if any(has := [any(map(need.are, rows)) for rows in sides])
        and (differences := differing(need.same, base, new, missing_differs=all(has)))
    ]
    notes = [f"{need.rows} are not compared: {'; '.join(told)}." for need, told in refused]
    before, after = (
        [r for r in rows if not any(need.are(r) for need, _ in refused)] for rows in sides
    )
    suites = base.run.get("suite"), new.run.get("suite")
    gone, added = only_first(before, after), only_first(after, before)
    findings = compare_rows(before, after, accepted)
    if all(suites):  # told once: as lost, or as another suite's, and not metric by metric
        findings = [f for f in findings if f.new is not None or of(f) not in gone]
    if not any(f.base is not None and f.new is not None for f in findings):
        why = " ".join(notes) or "they have no metric of a workload and provider in common."
        raise BadInputError(f"{base.name} and {new.name} can't be compared: {why}")
    if all(suites) and suites[0] == suites[1]:
        findings += [lost(*key) for key in gone]
        gone = []
    for name, keys in ((base.name, gone), (new.name, added)):
        if keys:
            notes.append(f"only in {name}: {', '.join(f'{w} ({p}, {k})' for w, p, k in keys)}.")
    return Comparison(findings, notes + times_not_judged(base, new, before, after))


def times_not_judged(
    base: Document, new: Document, before: list[Row], after: list[Row]
) -> list[str]:
    """How little of what is timed was judged, in words: a pass must not seem to say more.

    `before` and `after` are the rows that were compared.
    """
    notes = []
    hidden = most_hidden(before, after)
    if hidden is not None:
        notes.append(
            f"times: slowdowns up to {hidden:.0%} don't show between two files; `klppo bench ab`"
            f" finds {math.expm1(GOAL):.0%}."
        )
    keys = [
        {key_of(row) for row in side.rows if row.kind == "timed" and not compared(row)}
        for side in (base, new)
    ]
    if skipped := len(keys[0] & keys[1]):
        notes.append(
            f"times: {skipped} metrics of both files are not compared: absolute times, cold starts"
            f" and ratios other than our {RATIOS[0]} drift between runs."
        )
    return notes


def require_one_machine(base: Document, new: Document) -> None:
    """Refuse runs of two classes of machine: what is worse may be the machine.

    Raises:
        BadInputError: says what differs.
    """
    if machine_class(base.run["machine"]) == machine_class(new.run["machine"]):
        return
    differences = differing(("cpu", "cores", "isa", "torch"), base, new)
    fix = "Compare what depends on no machine: --across-machines."
    if any(text.startswith("torch") for text in differences):
        fix = "Measure both with one torch."
    raise BadInputError(
        f"two result files are compared within one class of machine; of {base.name} and"
        f" {new.name} {', '.join(differences)}. {fix}"
    )


def differing(
    names: Iterable[str], base: Document, new: Document, missing_differs: bool = True
) -> list[str]:
    """What the sides say differently, in words; what one doesn't say is no difference on demand."""
    said = [
        x.run["machine"] | {"machine class": machine_class(x.run["machine"])} for x in (base, new)
    ]
    pairs = [(name, *(side.get(name) or None for side in said)) for name in names]
    return [
        f"{name} is {a or 'not given'} and {b or 'not given'}"
        for name, a, b in pairs
        if a != b and ((missing_differs and name not in SAID_SINCE) or (a and b))
    ]


def only_first(first: list[Row], second: list[Row]) -> list[tuple[str, str, str]]:
    """Workload, provider and kind of what only the first has."""
    keys = [dict.fromkeys(map(of, rows)) for rows in (first, second)]
    return [key for key in keys[0] if key not in keys[1]]


def of(it: Row | Finding) -> tuple[str, str, str]:
    """Workload, provider and kind."""
    return it.workload, it.provider, it.kind


def lost(workload: str, provider: str, kind: str) -> Finding:
    """What the new run of the same suite should have and hasn't."""
    nothing = math.nan
    reason = "the new run of the same suite does not measure it"
    numbers = (None, None, nothing, nothing, nothing)
    return told_of_peers(
        Finding(workload, provider, "all", kind, "", *numbers, Verdict.UNDECIDED, reason)
    )
