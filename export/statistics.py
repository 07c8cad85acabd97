"""Statistics of a stream of rows that merge: two parts give what the whole would have given.

Counts and histograms are integers and merge exactly; sums are float64 with Neumaier's compensation
(1974, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen"), to 1e-12.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Sum:
    """A compensated sum."""

    total: float = 0.0
    correction: float = 0.0

    def add(self, x: float) -> None:
        """Take in one number."""
        after = self.total + x
        if math.isfinite(after):
            large, small = (self.total, x) if abs(self.total) >= abs(x) else (x, self.total)
            self.correction += (large - after) + small
        self.total = after

    def merge(self, other: "Sum") -> None:
        """Take in what another summed."""
        self.add(other.total)
        self.add(other.correction)

    @property
    def value(self) -> float:
        """The sum."""
        return self.total + self.correction


@dataclass
class Moments:
    """Count, mean and squared deviations, merged pairwise (Chan, Golub and LeVeque 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def update(self, x: Array) -> None:
        """Take in numbers."""
        if x.size:
            x = x.astype(np.float64)
            mean = float(x.mean())
            squares = float(np.square(x - mean).sum())
            self.merge(Moments(x.size, mean, squares, float(x.min()), float(x.max())))

    def merge(self, other: "Moments") -> None:
        """Take in another's numbers."""
        count = self.count + other.count
        if not other.count:
            return
        delta, share = other.mean - self.mean, other.count / count
        self.squares += other.squares + delta * delta * self.count * share
        self.mean += delta * share
        self.count = count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def variance(self) -> float:
        """Biased."""
        return self.squares / self.count if self.count else math.nan


@dataclass
class Groups:
    """Moments of numbers by group, and sums of their weights: `[G]` each, as many as were seen."""

    count: Array = field(default_factory=lambda: np.zeros(0))
    mean: Array = field(default_factory=lambda: np.zeros(0))
    squares: Array = field(default_factory=lambda: np.zeros(0))
    weight: Array = field(default_factory=lambda: np.zeros(0))
    weighted: Array = field(default_factory=lambda: np.zeros(0))
    """Of weight times number."""

    def update(self, x: Array, weight: Array, group: Array) -> None:
        """Take in numbers, their weights, and which group each is of."""
        if x.size:
            count = np.bincount(group).astype(np.float64)
            mean = np.bincount(group, x) / np.maximum(count, 1.0)
            squares = np.bincount(group, np.square(x - mean[group]))
            sums = (np.bincount(group, w) for w in (weight, weight * x))
            self.merge(Groups(count, mean, squares, *sums))

    def merge(self, other: "Groups") -> None:
        """Take in another's numbers."""
        size = max(self.count.size, other.count.size)
        a, b = (
            {name: np.pad(x, (0, size - x.size)) for name, x in vars(groups).items()}
            for groups in (self, other)
        )
        count = a["count"] + b["count"]
        delta, share = b["mean"] - a["mean"], b["count"] / np.maximum(count, 1.0)
        self.count = count
        self.mean = a["mean"] + delta * share
        self.squares = a["squares"] + b["squares"] + delta * delta * a["count"] * share
        self.weight, self.weighted = a["weight"] + b["weight"], a["weighted"] + b["weighted"]

    def standardised(self, lost: int, floor: float) -> float:
        """The sum of weight times number, with each group's numbers standardised.

        Args:
            lost: degrees of freedom that each group's mean takes.
            floor: the least deviation.
        """
        freedom = np.maximum(self.count - lost, 1.0)
        deviation = np.maximum(np.sqrt(self.squares / freedom), floor)
        return float(((self.weighted - self.mean * self.weight) / deviation).sum())


@dataclass
class LogHistogram:
    """Counts in bins of equal width on a logarithmic scale, the same for every rollout.

    A quantile is the geometric middle of its bin: at most `BIN_ERROR` off, relatively.
    """

    PER_DECADE: ClassVar[int] = 100
    DECADES: ClassVar[tuple[int, int]] = (-15, 9)
    BIN_ERROR: ClassVar[float] = 10 ** (0.5 / 100) - 1

    counts: Array = field(default_factory=lambda: np.zeros(LogHistogram.bins() + 2, np.int64))
    """The first is of what is smaller, zeros and below among them; the last of what is larger."""

    @classmethod
    def bins(cls) -> int:
        """How many bins there are."""
        return (cls.DECADES[1] - cls.DECADES[0]) * cls.PER_DECADE

    @classmethod
    def edges(cls) -> Array:
        """`[bins + 1]`."""
        return np.asarray(10.0 ** (np.arange(cls.bins() + 1) / cls.PER_DECADE + cls.DECADES[0]))

    def update(self, x: Array) -> None:
        """Take in numbers that are not NaN."""
        x = np.maximum(x.astype(np.float64), 10.0 ** (self.DECADES[0] - 1))
        at = np.floor((np.log10(x) - self.DECADES[0]) * self.PER_DECADE)
        index = np.clip(at, -1, self.bins()).astype(np.int64) + 1
        self.counts += np.bincount(index, minlength=self.counts.size)

    def merge(self, other: "LogHistogram") -> None:
        """Take in another's counts."""
        self.counts += other.counts

    def quantile(self, q: float) -> float:
        """The value that a share q of the numbers doesn't exceed."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        rank = max(1, math.ceil(q * total))
        bin_ = int(np.searchsorted(self.counts.cumsum(), rank))
        if bin_ == 0:
            return 0.0
        if bin_ == self.counts.size - 1:
            return math.inf
        return float(10.0 ** ((bin_ - 0.5) / self.PER_DECADE + self.DECADES[0]))


@dataclass
class WorstRows:
    """The rows with the largest values, largest first."""

    KEPT: ClassVar[int] = 10

    rows: list[tuple[int, float]] = field(default_factory=list)

    def update(self, x: Array, row: Array) -> None:
        """Take in values and their rows' numbers."""
        top = np.argsort(-x, kind="stable")[: self.KEPT]
        self.merge(WorstRows([(int(row[i]), float(x[i])) for i in top]))

    def merge(self, other: "WorstRows") -> None:
        """Take in another's rows."""
        both = sorted([*self.rows, *other.rows], key=lambda pair: (-pair[1], pair[0]))
        self.rows = both[: self.KEPT]


@dataclass
class Series:
    """Means over stretches of the rollout. Stretches grow, so that there are never too many."""

    LIMIT: ClassVar[int] = 512

    stretch: int = 1024
    counts: dict[int, int] = field(default_factory=dict)
    sums: dict[int, float] = field(default_factory=dict)

    def update(self, x: Array, row: Array) -> None:
        """Take in values and their rows' numbers."""
        if not x.size:
            return
        at = row // self.stretch
        first = int(at.min())
        counts = np.bincount(at - first)
        sums = np.bincount(at - first, x.astype(np.float64))
        for i in np.flatnonzero(counts):
            self._add(first + int(i), int(counts[i]), float(sums[i]))
        self._coarsen()

    def merge(self, other: "Series") -> None:
        """Take in another's stretches."""
        while self.stretch < other.stretch:
            self._double()
        for at, count in other.counts.items():
            self._add(at * other.stretch // self.stretch, count, other.sums[at])
        self._coarsen()

    def _add(self, at: int, count: int, total: float) -> None:
        self.counts[at] = self.counts.get(at, 0) + count
        self.sums[at] = self.sums.get(at, 0.0) + total

    def _coarsen(self) -> None:
        while len(self.counts) > self.LIMIT:
            self._double()

    def _double(self) -> None:
        old, self.counts, counts = self.sums, {}, self.counts
        self.sums, self.stretch = {}, 2 * self.stretch
        for at, count in counts.items():
            self._add(at // 2, count, old[at])

    def means(self) -> list[tuple[int, float]]:
        """(first row, mean) of each stretch."""
        return [(at * self.stretch, self.sums[at] / n) for at, n in sorted(self.counts.items())]


# ---- to and from JSON


def to_plain(x: Any) -> Any:
    """A statistic as what JSON can hold."""
    if isinstance(x, LogHistogram):
        # Most bins are empty.
        return {str(i): int(x.counts[i]) for i in np.flatnonzero(x.counts)}
    if isinstance(x, Series):
        return {"stretch": x.stretch, "counts": _keys(x.counts), "sums": _keys(x.sums)}
    if isinstance(x, WorstRows):
        return [[row, plain_number(value)] for row, value in x.rows]
    if isinstance(x, Groups):
        return {name: [plain_number(float(v)) for v in values] for name, values in vars(x).items()}
    if isinstance(x, Sum | Moments):
        return {name: plain_number(value) for name, value in vars(x).items()}
    return x


def from_plain(kind: type, values: Any) -> Any:
    """A statistic from what `to_plain` made of it."""
    if kind is LogHistogram:
        out = LogHistogram()
        for i, n in values.items():
            out.counts[int(i)] = number(n)
        return out
    if kind is Series:
        counts = {int(k): int(v) for k, v in values["counts"].items()}
        sums = {int(k): number(v) for k, v in values["sums"].items()}
        return Series(int(values["stretch"]), counts, sums)
    if kind is WorstRows:
        return WorstRows([(int(row), number(value)) for row, value in values])
    if kind is Groups:
        return Groups(**{k: np.array([number(v) for v in x], float) for k, x in values.items()})
    if kind in {Sum, Moments}:
        return kind(**{name: number(value) for name, value in values.items()})
    return kind(number(values))


def _keys(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(k): plain_number(v) for k, v in values.items()}


def plain_number(x: float) -> Any:
    """A number, or its name where JSON has no such number."""
    return x if isinstance(x, int) or math.isfinite(x) else str(x)


def number(x: Any) -> Any:
    """A number from either.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(x, str):
        return float(x)
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"{x!r} is no number")
    return x
