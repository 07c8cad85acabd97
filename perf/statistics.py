"""What launches prove: bounds on a ratio, the rule for a regression, the least effect that shows.

A launch is the unit: its thousands of calls share one placement of code and data, and with it a
bias of their own, so its median counts once. All values here are logarithms of ratios.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import binomtest

CONFIDENCE = 0.99
"""Of each bound by itself: low is below the truth, and high above it, in 99 % of cases. Both at
once hold in 98 %; `interval` has both in 99 %."""
POWER = 0.95
"""How often the smallest visible effect is found, by the screen and the confirmation together."""
MARGIN = math.log1p(0.01)
"""A slowdown that is let pass."""
GOAL = math.log1p(0.03)
"""A slowdown that has to be found."""
LEAST = 3
"""Launches that a bound is made of, at least."""


@dataclass(frozen=True)
class Bound:
    """A mean of launches and how far to trust it.

    Attributes:
        value: mean logarithm of the ratio.
        low, high: its bounds, each by itself at `CONFIDENCE`.
        error: standard error of `value`.
        freedom: degrees of freedom that `error` is known by.
        launches: how many there were.
    """

    value: float
    low: float
    high: float
    error: float
    freedom: int
    launches: int


class Said(StrEnum):
    """What the launches of one stage say of one workload."""

    SLOWER = "slower"
    NOT_SLOWER = "not slower"
    UNCLEAR = "unclear"
    CONTROL_FAILED = "control failed"


def bound(new: Sequence[float], null: Sequence[float]) -> Bound:
    """The new side's slowdown, by launches' logarithms of its ratio and of the control's.

    The control is the base again, so that the base is measured twice: the slowdown of a launch is
    new - null / 2, against the mean of both.
    """
    return _bound(np.array(new) - np.array(null) / 2, 1.5, spread2(new, null))


def control(new: Sequence[float], null: Sequence[float]) -> Bound:
    """The base against itself, which ought to be 0."""
    return _bound(np.array(null), 2.0, spread2(new, null))


def spread2(new: Sequence[float], null: Sequence[float]) -> float:
    """Variance of one side in one launch.

    From new - null / 2, of 1.5 such variances, and from null, of 2: they are independent, and each
    knows it by launches - 1 degrees of freedom.

    Raises:
        ValueError: too few launches, or not as many of the control.
    """
    n = len(new)
    if n < LEAST or len(null) != n:
        raise ValueError(
            f"a bound needs {LEAST} launches and as many of the control; got {n} and {len(null)}."
            " Launch again."
        )
    effect = np.var(np.array(new) - np.array(null) / 2, ddof=1)
    return float(effect / 1.5 + np.var(null, ddof=1) / 2) / 2


def _bound(values: NDArray[np.float64], variances: float, one: float) -> Bound:
    """Student's bounds of a mean of launches, each of so many variances of one side."""
    n = len(values)
    error, freedom = math.sqrt(variances * one / n), 2 * (n - 1)
    reach = float(stdtrit(freedom, CONFIDENCE)) * error
    value = float(np.mean(values))
    return Bound(value, value - reach, value + reach, error, freedom, n)


def interval(found: Bound) -> tuple[float, float]:
    """Ends that hold the truth between them at `CONFIDENCE`: what is shown, where bounds decide."""
    return student(found.value, found.error, found.freedom)


def student(mean: float, error: float, freedom: int) -> tuple[float, float]:
    """The interval of a mean with such a standard error, at `CONFIDENCE` (Student 1908)."""
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return mean - reach, mean + reach


def smallest_visible(found: Bound) -> float:
    """The effect that screen and confirmation, of this many launches each, find by `POWER`."""
    each = math.sqrt(POWER)
    reach = float(stdtrit(found.freedom, CONFIDENCE) + stdtrit(found.freedom, each))
    return MARGIN + reach * found.error


def say(new: Sequence[float], null: Sequence[float], goal: float = GOAL) -> Said:
    """The rule of one stage: slower where the lower bound is above the margin.

    The control is the base against itself: where the same rule sees a change in it, up or down,
    nothing that these launches say can be trusted. Not slower means that a slowdown of `goal` would
    have been found.
    """
    itself = control(new, null)
    if itself.low > MARGIN or itself.high < -MARGIN:
        return Said.CONTROL_FAILED
    found = bound(new, null)
    if found.low > MARGIN:
        return Said.SLOWER
    return Said.NOT_SLOWER if smallest_visible(found) <= goal else Said.UNCLEAR


def proportion(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a rate, by Clopper and Pearson 1934: `hits` of `trials`."""
    interval = binomtest(hits, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
