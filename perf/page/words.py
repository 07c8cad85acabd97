"""How the page says things: numbers, changes, commits and machines as text."""

import math
import re
from dataclasses import dataclass
from urllib.parse import quote

from klppo_compile.perf.history.change_points import ChangePoint
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.history.series import Series


@dataclass(frozen=True)
class Commit:
    """A run's commit.

    Attributes:
        name: as the run has it.
        url: a link to it, where one can be made.
        about: date, machine and versions in words.
        index: of the run among its section's.
    """

    name: str
    url: str | None
    about: str
    index: int


def number(x: float) -> str:
    """A number to read: four digits at least, all of a whole one."""
    return f"{x:,.0f}" if abs(x) >= 1000 or x == round(x) else f"{x:.4g}"


def percent(change: float) -> str:
    """A change with its sign; nothing where it has no size."""
    return f"{100 * change:+.1f} %" if math.isfinite(change) else "new"


def describe(run: Run) -> str:
    """A run's machine and versions in words."""
    facts = run.header["machine"]
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def commit_of(run: Run, base: str | None, index: int) -> Commit:
    """The commit of a section's run; `base` and its hash make the link."""
    found = re.fullmatch(r"([0-9a-fA-F]{7,40})(-dirty)?", run.commit)
    url = base + quote(found[1]) if base and found else None
    about = f"{run.date:%Y-%m-%d %H:%M}, {describe(run)}"
    return Commit(run.commit, url, about, index)


def move_text(series: Series, point: ChangePoint) -> str:
    """`+8.0 % (123 → 133 us)`."""
    levels = f"{number(point.before)} → {number(point.after)} {series.latest.unit}".strip()
    return f"{percent(point.change)} ({levels})" if math.isfinite(point.change) else levels


def title_of(series: Series) -> str:
    """A column's title: the metric and its unit."""
    unit = series.latest.unit
    return series.metric if unit in {"", "x"} else f"{series.metric}, {unit}"
