"""What the page's script draws: a series as short keys and numbers cut short."""

from statistics import median
from typing import Any

from klppo_compile.perf.history.change_points import relative_noise
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.history.series import Series
from klppo_compile.perf.page.words import percent

# Half of the band in which 99 % of the runs at one level lie, in standard deviations: of normal
# noise, each run's its own. Few runs tell too little of their noise.
BAND, BAND_RUNS = 2.576, 8
VERDICTS = ("better", "worse", "quiet")


def chart(series: Series, index: dict[Run, int]) -> dict[str, Any]:
    """What the script draws of a series; its keys are short because there are many.

    `r` are the indices of its runs among the section's, `v`, `l` and `h` its values and their
    intervals, `c` the change points as first run, level before and after, text and which of
    `VERDICTS`, `y` the level where there is no change point, `n` half of the noise band as a
    fraction, 0 where runs are too few for one, `e` whether it has ended, `s` the first point that
    has a level.
    """
    values, start = series.values, series.since_base
    residuals = (values if not series.changes else detrended(series))[start:]
    digits = 5 if series.latest.kind == "timed" else 9  # a count is told whole
    return {
        "m": series.metric,
        "u": series.latest.unit,
        "r": [index[run] for run in series.runs],
        "v": [short(x, digits) for x in values],
        "l": [short(row.low, digits) for row in series.rows],
        "h": [short(row.high, digits) for row in series.rows],
        "c": [
            [
                point.index,
                short(point.before, digits),
                short(point.after, digits),
                percent(point.change),
                VERDICTS.index(series.verdict(point)),
            ]
            for point in series.changes
        ],
        "y": short(median(values[start:]), digits),
        "n": short(BAND * relative_noise(residuals), 2) if len(residuals) >= BAND_RUNS else 0.0,
        "e": int(series.ended),
        "s": start,
    }


def detrended(series: Series) -> list[float]:
    """Its values over the level that each is at, so that steps don't count as noise."""
    found, level = [], series.changes[0].before
    at = {point.index: point.after for point in series.changes}
    for i, x in enumerate(series.values):
        level = at.get(i, level)
        found.append(x / level if level else x)
    return found


def short(x: float, digits: int) -> float:
    """A number cut to so many digits: a page has tens of thousands of them."""
    return float(f"{x:.{digits}g}")
