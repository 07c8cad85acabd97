"""What the page shows: from series to sections, cards, lists and tables, all of it plain values.

Nothing here knows HTML; `file.py` writes it. Every list puts what is worst first.
"""

from collections.abc import Iterable

from klppo_compile.perf.comparing.accepting import Accepted
from klppo_compile.perf.history.change_points import ChangePoint
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.history.series import Series, series_of
from klppo_compile.perf.measure import AGAIN
from klppo_compile.perf.page.chart import chart
from klppo_compile.perf.page.records import Card, Cell, Event, ExactRow, Move, Section
from klppo_compile.perf.page.words import (
    Commit,
    commit_of,
    describe,
    move_text,
    number,
    title_of,
)
from klppo_compile.perf.rows import Row, span_of

# Events of a section, and changes of a series: a page must stay small where everything changes all
# the time, and a series that does must not drive the others off the list.
MOST_EVENTS, MOST_CHANGES = 50, 3
STATES = ("worse", "better", "same", "ended")


def sections(
    runs: Iterable[Run], commit_url: str | None = None, decisions: Iterable[Accepted] = ()
) -> list[Section]:
    """A history by class of machine, the one measured last first."""
    decided = tuple(decisions)
    runs = list(runs)
    of_machine: dict[str, list[Run]] = {}
    for run in reversed(runs):
        of_machine.setdefault(run.machine_class, []).insert(0, run)
    return [section(its, commit_url, decided) for its in of_machine.values()]


def section(runs: list[Run], base: str | None, decisions: tuple[Accepted, ...]) -> Section:
    """One class of machine."""
    every = series_of(runs, decisions)
    telling = [one for one in every if not is_trivial(one)]
    moving = [one for one in every if one.latest.kind != "exact"]
    exact = [one for one in every if one.latest.kind == "exact"]
    commits = {run: commit_of(run, base, i) for i, run in enumerate(runs)}
    shown, more = events(telling, commits)
    measured_first = sorted(moving, key=lambda one: one.ended)
    metrics = tuple(dict.fromkeys(title_of(one) for one in measured_first))
    return Section(
        runs[-1].machine_class,
        describe(runs[-1]),
        tuple(commits.items()),
        {state: sum(one.state == state for one in telling) for state in STATES},
        tuple(shown),
        more,
        tuple(cards(moving, metrics, commits)),
        tuple(exact_row(one, commits) for one in worst_first(exact)),
        metrics,
    )


def is_trivial(series: Series) -> bool:
    """Whether it is a contender's ratio to itself, which is 1 in every run."""
    return all(row.unit == "x" and row.low == row.value == row.high == 1 for row in series.rows)


def worst_first(series: Iterable[Series]) -> list[Series]:
    """By setback, then what changed, then as they came; what has ended last."""
    return sorted(series, key=lambda one: (one.ended, -one.setback, -bool(one.changes)))


def events(series: list[Series], commits: dict[Run, Commit]) -> tuple[list[Event], int]:
    """The last changes of level, those of one workload, provider and run together.

    Returns:
        The worst, and how many more there are.
    """
    together: dict[tuple[str, str, Run], list[tuple[Series, ChangePoint]]] = {}
    every = set()
    for one in worst_first(series):
        keys = [(one.latest.workload, one.latest.provider, one.runs[p.index]) for p in one.changes]
        every.update(keys)
        recent = list(zip(keys, one.changes, strict=True))[-MOST_CHANGES:]
        for key, point in recent:
            together.setdefault(key, []).append((one, point))
    found = []
    for (workload, provider, run), parts in together.items():
        one, point = parts[0]
        moves = tuple(
            Move(s.metric, s.latest.kind, move_text(s, p), s.verdict(p), reason_of(s, p))
            for s, p in parts
        )
        before = commits[one.runs[point.index - 1]]
        seen = len(one.runs) - point.index
        state = min((state_after(s, p) for s, p in parts), key=STATES.index)
        setback = max(s.setback if s.verdict(p) == "worse" else 0.0 for s, p in parts)
        event = Event(workload, provider, commits[run], before, seen, moves, state, setback)
        found.append((run.date.timestamp(), event))
    order = sorted(found, key=lambda pair: (pair[1].state == "ended", -pair[1].setback, -pair[0]))
    shown = [event for _, event in order[:MOST_EVENTS]]
    return shown, len(every) - len(shown)


def state_after(series: Series, point: ChangePoint) -> str:
    """What a change left behind: its series' state now, where that is of the change's kind."""
    return series.state if series.state in {series.verdict(point), "ended"} else "same"


def cards(series: list[Series], metrics: tuple[str, ...], runs: dict[Run, Commit]) -> list[Card]:
    """Every workload and provider, worst first."""
    index = {run: i for i, run in enumerate(runs)}
    groups: dict[tuple[str, str], list[Series]] = {}
    for one in series:
        groups.setdefault((one.latest.workload, one.latest.provider), []).append(one)
    found = []
    for (workload, provider), its in groups.items():
        telling = worst_first(one for one in its if not is_trivial(one))
        ratios = [one for one in telling if is_headline(one.latest) and not one.ended]
        # What is measured stands before what was, and that before what was earlier.
        newest = sorted(its, key=lambda one: (not one.ended, index[one.runs[-1]]))
        cells = {title_of(one): cell(one, runs) for one in newest}
        card = Card(
            workload,
            provider,
            tuple((one.metric, f"{number(one.latest.value)}×") for one in ratios),
            tuple(chart(one, index) for one in telling),
            tuple(cells.get(metric, Cell()) for metric in metrics),
            names_of(its),
            min((one.state for one in its), key=STATES.index),
            max(one.setback for one in its),
            end_of(newest[-1], runs),
        )
        found.append(card)
    return sorted(found, key=lambda card: (-card.setback, STATES.index(card.state)))


def is_headline(row: Row) -> bool:
    """Whether a card's first line has it: a ratio, of what was called in turn."""
    return row.unit == "x" and not row.metric.endswith(AGAIN)


def cell(series: Series, commits: dict[Run, Commit]) -> Cell:
    """Its newest number, and how far to trust it."""
    row = series.latest
    span = f"{span_of(row)} {number(row.low)} to {number(row.high)}"
    samples = "" if f"{row.samples} samples" in span else f", {row.samples} samples"
    about = f"{span}{samples}, at {series.runs[-1].commit}"
    return Cell(number(row.value), about, end_of(series, commits))


def end_of(series: Series, commits: dict[Run, Commit]) -> Commit | None:
    """Where a series was last measured, if it has ended."""
    return commits[series.runs[-1]] if series.ended else None


def names_of(series: Iterable[Series]) -> str:
    """The commits of all their change points."""
    names = (one.runs[point.index].commit for one in series for point in one.changes)
    return " ".join(dict.fromkeys(names))


def reason_of(series: Series, point: ChangePoint) -> str:
    """Why a step back was accepted; nothing where it was not."""
    decision = series.decision(point)
    return decision.reason if decision else ""


def exact_row(series: Series, commits: dict[Run, Commit]) -> ExactRow:
    """A line of the diff table."""
    changes = tuple(
        (move_text(series, point), commits[series.runs[point.index]], reason_of(series, point))
        for point in reversed(series.changes[-MOST_CHANGES:])
    )
    earlier = len(series.changes) - len(changes)
    first, last = number(series.values[0]), number(series.values[-1])
    end = end_of(series, commits)
    return ExactRow(series, first, last, changes, earlier, names_of([series]), series.state, end)
