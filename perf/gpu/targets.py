"""The targets of the kernels on a GPU, and whether the measured rows meet them."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from klppo_compile.commands.plain import add_columns
from klppo_compile.perf.gpu.cases import INDUCTOR, LARGE, OURS, SMALL, TORCHRL, Job
from klppo_compile.perf.rows import Row

BOTH = "forward+backward"
OVER_FLOOR, SYNCS = f"over the byte floor, {BOTH}", "syncs"
GRAPH_TIME = f"graph time, {BOTH}"


def speed_over(other: str) -> str:
    """The metric's name: how many times faster than someone else, forward and backward."""
    return f"speed over {other}, {BOTH}"


@dataclass(frozen=True)
class Target:
    """A bound that one metric of our kernels must keep on every workload that it is about."""

    words: str
    metric: str
    bound: float
    least: bool  # whether the bound is from below
    about: Callable[[Job], bool]

    def met(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.least else value <= self.bound


@dataclass(frozen=True)
class Verdict:
    """What became of a target: "met", "missed" or "unmeasured", and the value that decides.

    One miss misses it; it is met only once all its workloads are measured.
    """

    target: Target
    state: str
    worst: Row | None
    measured: int
    asked: int


TARGETS = (
    Target(
        f"{BOTH} <= 1.25x the byte floor at N = {LARGE:,}",
        OVER_FLOOR,
        1.25,
        least=False,
        about=lambda job: job.workload.batch == LARGE,
    ),
    Target(
        ">= 1.5x faster than Inductor on the same text",
        speed_over(INDUCTOR),
        1.5,
        least=True,
        about=lambda job: INDUCTOR in job.contenders,
    ),
    Target(
        ">= 10x faster than torchrl eager",
        speed_over(TORCHRL),
        10.0,
        least=True,
        about=lambda job: TORCHRL in job.contenders,
    ),
    Target(
        f"<= 25 us at N = {SMALL:,} under a CUDA graph, heads only",
        GRAPH_TIME,
        25.0,
        least=False,
        about=lambda job: job.workload.batch == SMALL,
    ),
    Target("0 syncs", SYNCS, 0.0, least=False, about=lambda _: True),
)


def verdicts(rows: list[Row], plan: list[Job]) -> list[Verdict]:
    """Every target's."""
    return [verdict(target, rows, plan) for target in TARGETS]


def verdict(target: Target, rows: list[Row], plan: list[Job]) -> Verdict:
    """One target's, by its worst workload."""
    asked = {job.workload.name for job in plan if target.about(job)}
    found = [
        row
        for row in rows
        if row.provider == OURS and row.metric == target.metric and row.workload in asked
    ]
    found.sort(key=lambda row: row.value, reverse=not target.least)
    state = "met" if asked and len(found) == len(asked) else "unmeasured"
    if not all(target.met(row.value) for row in found):
        state = "missed"
    return Verdict(target, state, found[0] if found else None, len(found), len(asked))


COLOURS = {"met": "green", "missed": "red", "unmeasured": "yellow"}


def table_of(found: list[Verdict]) -> Table:
    """The targets, each with its worst workload."""
    table = Table(title="targets", title_justify="left")
    add_columns(table, "target", "", "worst", "on", "measured")
    for one in found:
        worst = one.worst
        table.add_row(
            one.target.words,
            Text(one.state, style=COLOURS[one.state]),
            f"{worst.value:.3g} {worst.unit}" if worst else "",
            worst.workload if worst else "",
            f"{one.measured} of {one.asked}",
        )
    return table
