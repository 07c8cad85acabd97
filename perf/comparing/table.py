"""Findings and counts as tables to read, and the verdict in one line."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from klppo_compile.commands.plain import add_columns
from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.comparing.rules import BY_TYPE
from klppo_compile.perf.rows import Row
from klppo_compile.perf.table import table_of
from klppo_compile.perf.workloads import WORKLOADS

SEVERITY = (
    Verdict.REGRESSION,
    Verdict.UNDECIDED,
    Verdict.ACCEPTED,
    Verdict.IMPROVEMENT,
    Verdict.SAME,
)
"""What needs eyes first."""
STYLE = {
    Verdict.REGRESSION: "bold red",
    Verdict.UNDECIDED: "yellow",
    Verdict.ACCEPTED: "cyan",
    Verdict.IMPROVEMENT: "green",
    Verdict.SAME: "dim",
}


def findings_table(findings: Iterable[Finding], everything: bool = False) -> Table:
    """What moved, worst first and largest first; with `everything`, what did not as well."""
    table = Table(title_justify="left")
    add_columns(table, "verdict", "workload", "who", "metric")
    add_columns(table, "base", "new", "change", justify="right")
    add_columns(table, "why")
    for found in sorted(findings, key=severity):
        if everything or moved(found):
            table.add_row(
                found.verdict.value,
                found.workload,
                found.provider,
                found.metric,
                number(found.base),
                number(found.new),
                change_of(found),
                found.reason,
                style=STYLE[found.verdict],
            )
    return table


def severity(found: Finding) -> tuple[int, float]:
    """Sorts the worst first, and the largest change of one verdict first."""
    size = 0.0 if math.isnan(found.change) else -abs(found.change)
    return SEVERITY.index(found.verdict), size


def moved(found: Finding) -> bool:
    """Whether there is something to tell."""
    return found.verdict is not Verdict.SAME or found.base is None


def number(value: float | None) -> str:
    """A count in full, a ratio to four digits."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def change_of(found: Finding) -> str:
    """The change, and its 99 % interval where it has one."""
    if math.isnan(found.change):
        return ""
    text = f"{found.change:+.2%}"
    if found.low == found.high:
        return text
    return f"{text} [{found.low:+.1%}, {found.high:+.1%}]"


def conclusion(findings: Sequence[Finding]) -> str:
    """The verdict of all findings, in one line."""
    counts = Counter(found.verdict for found in findings)
    told = ", ".join(f"{n} {verdict.value}" for verdict in SEVERITY if (n := counts[verdict]))
    if counts[Verdict.REGRESSION]:
        return f"REGRESSION: {told}."
    if counts[Verdict.UNDECIDED]:
        return f"CAN'T TELL: {told}. Times: klppo bench ab measures two revisions interleaved."
    return f"PASS: {told}."


def count_tables(rows: Iterable[Row]) -> Iterator[Table]:
    """A table per workload of exact and counted metrics, a column per provider."""
    counts = [r for r in rows if r.kind != "timed" and not r.metric.startswith(BY_TYPE)]
    for workload in dict.fromkeys(row.workload for row in counts):
        found = {(r.metric, r.provider): r for r in counts if r.workload == workload}
        providers = list(dict.fromkeys(provider for _, provider in found))
        table = Table(title=workload, title_justify="left")
        add_columns(table, "exact or counted")
        add_columns(table, *providers, justify="right")
        for metric in dict.fromkeys(metric for metric, _ in found):
            cells = [found.get((metric, provider)) for provider in providers]
            table.add_row(metric, *["" if x is None else f"{x.value:,.0f} {x.unit}" for x in cells])
        yield table


def timed_tables(rows: Iterable[Row]) -> Iterator[Table]:
    """A table per workload that was timed, and one of the cold start."""
    timed = [row for row in rows if row.kind == "timed"]
    warm = [row for row in timed if not row.metric.startswith("cold")]
    for workload in (w for w in WORKLOADS if any(r.workload == w.name for r in warm)):
        yield table_of(workload, [row for row in warm if row.workload == workload.name])
    cold = [row for row in timed if row.metric.startswith("cold")]
    if cold:
        table = Table(title=cold[0].workload, title_justify="left")
        add_columns(table, "cold start", "who")
        add_columns(table, "median", "launches", justify="right")
        for row in cold:
            table.add_row(
                row.metric, row.provider, f"{row.value:.3g} {row.unit}", str(row.launches)
            )
        yield table
