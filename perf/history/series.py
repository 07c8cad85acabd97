"""The history as series that may be compared, and what each says now.

A series is one metric of one workload and provider on one class of machine, with one of each
version that `klppo bench compare` wants to be the same; runs of different classes never meet in
one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from klppo_compile.perf.comparing.accepting import Accepted, decision_on
from klppo_compile.perf.comparing.documents import NEEDS
from klppo_compile.perf.comparing.rules import PEERS, YARDSTICKS
from klppo_compile.perf.history.change_points import LEAST_STEP, ChangePoint, change_points
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.rows import Row, metric_of, of_launches


@dataclass(frozen=True, eq=False)
class Series:
    """One metric over the runs of one class of machine, oldest first.

    Attributes:
        machine_class: of all its runs.
        runs, rows: the runs that have the metric, and what each measured.
        decisions: the exact changes for the worse that were accepted, of any series.
        ended: whether a later run of the same command no longer measures it so, or, of what one
            launch said, one of the same tool by several launches.
    """

    machine_class: str
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    decisions: tuple[Accepted, ...] = ()
    ended: bool = False

    @property
    def latest(self) -> Row:
        """The newest row; its names are those of the series."""
        return self.rows[-1]

    @property
    def metric(self) -> str:
        """Its metric, and whether it is of several launches."""
        return metric_of(self.latest)

    @property
    def is_judged(self) -> bool:
        """Whether its changes are good or bad news: a peer's or a yardstick's are told of."""
        return not self.latest.provider.startswith((PEERS, *YARDSTICKS))

    @property
    def values(self) -> list[float]:
        """What each run measured."""
        return [row.value for row in self.rows]

    @cached_property
    def changes(self) -> list[ChangePoint]:
        """Where its level changed; of a time over a base's, since the base is the one it is."""
        start = self.since_base
        found = change_points(self.values[start:], self.latest.kind)
        return [replace(point, index=point.index + start) for point in found]

    @property
    def since_base(self) -> int:
        """The first run from which on every time was taken over that of one base; 0 without one."""
        bases = [(i, base) for i, run in enumerate(self.runs) if (base := run.header.get("base"))]
        moved = [i for (_, a), (i, b) in pairwise(bases) if a != b]
        return moved[-1] if moved and self.latest.kind == "timed" else 0

    def decision(self, point: ChangePoint) -> Accepted | None:
        """What was decided on a step back, if anything was; only exact ones are decided on."""
        if self.latest.kind != "exact" or not self.is_worse(point.before, point.after):
            return None
        return decision_on(self.decisions, self.latest, point.before, point.after)

    def verdict(self, point: ChangePoint) -> str:
        """A change is `worse` or `better`; `quiet` where it is accepted, a peer's, or history."""
        if self.ended or not self.is_judged or self.decision(point):
            return "quiet"
        return "worse" if self.is_worse(point.before, point.after) else "better"

    @property
    def level(self) -> float:
        """What it is now, without a run's noise where its level is known."""
        return self.changes[-1].after if self.changes else self.latest.value

    @property
    def first_level(self) -> float:
        """What it was at first."""
        return self.changes[0].before if self.changes else self.latest.value

    def lead(self, x: float, y: float) -> float:
        """How far x is ahead of y, as a fraction of the smaller of the two; below 0 where behind.

        Infinite where one of the two is 0 or they differ in sign.
        """
        if x == y:
            return 0.0
        smaller, larger = sorted((abs(x), abs(y)))
        size = larger / smaller - 1 if smaller and x * y > 0 else math.inf
        return size if (x < y) == (self.latest.better == "lower") else -size

    def is_worse(self, before: float, after: float) -> bool:
        """Whether going from `before` to `after` is a step back."""
        return self.lead(before, after) > 0

    @property
    def setback(self) -> float:
        """How far its level now is behind the best it has had: its severity.

        0 where it is at its best, so a step back that was made good again has none; 0 too where
        what is left of one is below the least step that counts as a change. An accepted step back
        begins anew: what was better before it counts no more. What has ended is nowhere now, and a
        peer's is not ours to judge.
        """
        if self.ended or not self.is_judged:
            return 0.0
        levels = [self.first_level]
        for point in self.changes:
            levels = [point.after] if self.decision(point) else [*levels, point.after]
        behind = max(self.lead(level, self.level) for level in levels)
        return behind if behind >= LEAST_STEP.get(self.latest.kind, 0.0) else 0.0

    @property
    def state(self) -> str:
        """`worse` than it has been, `better` than at first, the `same`, or `ended`."""
        if self.ended:
            return "ended"
        if self.setback > 0:
            return "worse"
        if not self.is_judged:
            return "same"
        gain = self.lead(self.level, self.first_level)
        return "better" if gain > LEAST_STEP.get(self.latest.kind, 0.0) else "same"


def series_of(runs: Iterable[Run], decisions: Iterable[Accepted] = ()) -> list[Series]:
    """The series of a history, in the order in which their names come up.

    Args:
        runs: oldest first.
        decisions: the exact changes for the worse that were accepted.

    A metric begins anew where its unit or direction changed, or a version that its numbers depend
    on: what a new compiler did is no commit's doing, nor what several launches say where one had
    said it.
    """
    decided = tuple(decisions)
    found: dict[tuple[str, ...], list[Points]] = {}
    newest: dict[tuple[str, str], Run] = {}
    launched: dict[tuple[str, ...], Run] = {}
    for run in runs:
        if not run.header.get("left out"):
            newest[errand(run)] = run
        for row in run.rows:
            if of_launches(row):
                launched[told_by(run, row)] = run
            names = (run.machine_class, row.workload, row.provider, metric_of(row))
            add(found.setdefault((*names, row.unit, row.kind, row.better), []), run, row)
    return [
        Series(
            its.runs[-1].machine_class,
            tuple(its.runs),
            tuple(its.rows),
            decided,
            ended=has_ended(its, newest, launched),
        )
        for many in found.values()
        for its in many
    ]


@dataclass
class Points:
    """A series in the making, and the versions that its runs agree on."""

    versions: tuple[str, ...]
    runs: list[Run] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def add(series: list[Points], run: Run, row: Row) -> None:
    """Add a point to the series, last in use, whose versions are the run's, or begin one.

    A version that one of the two doesn't say is as in the other.
    """
    said = versions(run, row)
    for its in reversed(series):
        pairs = list(zip(its.versions, said, strict=True))
        if all(a == b or not (a and b) for a, b in pairs):
            its.versions = tuple(a or b for a, b in pairs)
            series.remove(its)
            break
    else:
        its = Points(said)
    series.append(its)
    its.runs.append(run)
    its.rows.append(row)


def has_ended(
    its: Points, newest: dict[tuple[str, str], Run], launched: dict[tuple[str, ...], Run]
) -> bool:
    """Whether others had the last word: a run on the same errand, or several launches on one's."""
    run, row = its.runs[-1], its.rows[-1]
    several = None if of_launches(row) else launched.get(told_by(run, row))
    return is_behind(run, newest.get(errand(run))) or is_behind(run, several)


def is_behind(run: Run, last: Run | None) -> bool:
    """Whether another run had the last word."""
    return last is not None and last.date.timestamp() > run.date.timestamp()


def told_by(run: Run, row: Row) -> tuple[str, ...]:
    """What a row is of, however it was measured, and what the run was made by, less its options."""
    tool = str(run.header.get("command")).split(" --")[0]
    return run.machine_class, row.workload, row.provider, row.metric, tool


def errand(run: Run) -> tuple[str, str]:
    """Where a run was made and by which command: one of another command lacks what it never had."""
    return run.machine_class, str(run.header.get("command"))


def versions(run: Run, row: Row) -> tuple[str, ...]:
    """The versions that a row's numbers depend on; "" for one that the run doesn't say."""
    said = run.header["machine"]
    return tuple(str(said.get(name, "")) for need in NEEDS if need.are(row) for name in need.same)
