"""What the page is made of: records of plain values, in the order in which it shows them."""

from dataclasses import dataclass
from typing import Any

from klppo_compile.perf.history.files import Run
from klppo_compile.perf.history.series import Series
from klppo_compile.perf.page.words import Commit


@dataclass(frozen=True)
class Move:
    """One metric at one change of level.

    Attributes:
        metric, kind: as in `Row`.
        text: from which level to which, and by how much.
        verdict: `worse`, `better`, or `quiet` where it is nothing to judge, or no more.
        accepted: why it may be worse, where that was decided on.
    """

    metric: str
    kind: str
    text: str
    verdict: str
    accepted: str = ""


@dataclass(frozen=True)
class Event:
    """All changes of one workload and provider that began with the same run.

    Attributes:
        workload, provider: whose.
        commit: of the first run at the new levels.
        before: the commit of the run before it: what is to blame lies after that one.
        runs: how many runs have been at the new level; 1 may still be an accident.
        moves: the metrics.
        state: what is left now of the worst of them, or of the best.
        setback: the largest now of those that were worse.
    """

    workload: str
    provider: str
    commit: Commit
    before: Commit
    runs: int
    moves: tuple[Move, ...]
    state: str
    setback: float


@dataclass(frozen=True)
class Cell:
    """A contender's newest number of one metric; empty where it has none.

    Attributes:
        about: how far to trust it.
        ended_at: where it was last measured, if it is no longer.
    """

    text: str = ""
    about: str = ""
    ended_at: Commit | None = None


@dataclass(frozen=True)
class Card:
    """All of one workload and provider that has noise.

    Attributes:
        facts: its ratios and its distance to the floor, the newest: metric and text.
        charts: what the script draws, one for each metric.
        cells: its newest numbers, one for each metric of the section.
        names: the commits of its change points.
        state, setback: of its worst series.
        ended_at: where it was last measured, if nothing of it is any longer.
    """

    workload: str
    provider: str
    facts: tuple[tuple[str, str], ...]
    charts: tuple[dict[str, Any], ...]
    cells: tuple[Cell, ...]
    names: str
    state: str
    setback: float
    ended_at: Commit | None


@dataclass(frozen=True)
class ExactRow:
    """One exact metric: its first and last value, and its changes with the commits that made them.

    Attributes:
        changes: the newest first, each as text, its commit, and why it was accepted, if it was.
        earlier: how many more there are.
        ended_at: where it was last measured, if it is no longer.
    """

    series: Series
    first: str
    last: str
    changes: tuple[tuple[str, Commit, str], ...]
    earlier: int
    names: str
    state: str
    ended_at: Commit | None


@dataclass(frozen=True)
class Section:
    """All of one class of machine.

    Attributes:
        machine_class: its name.
        about: the newest run's machine and versions, in words.
        runs: oldest first, each with its commit.
        events: the worst of the last changes.
        more_events: how many more there are.
        metrics: the columns of the cards' cells.
    """

    machine_class: str
    about: str
    runs: tuple[tuple[Run, Commit], ...]
    counts: dict[str, int]
    events: tuple[Event, ...]
    more_events: int
    cards: tuple[Card, ...]
    exact: tuple[ExactRow, ...]
    metrics: tuple[str, ...]
