"""What launches prove: bounds on a ratio, the rule for a regression, the least effect that shows.

A launch is the unit: its thousands of calls share one placement of code and data, and with it a
bias of their own, so its median counts once. All values here are logarithms of ratios.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import stdtrit
from scipy.stats import binomtest

CONFIDENCE = 0.99
"""Of each bound by itself: low is below the truth, and high above it, in 99 % of cases."""
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
    freedom: float
    launches: int


class Said(StrEnum):
    """What the launches of one stage say of one workload."""

    SLOWER = "slower"
    NOT_SLOWER = "not slower"
    UNCLEAR = "unclear"
    CONTROL_FAILED = "control failed"


def bound(logs: Sequence[float], control: Sequence[float]) -> Bound:
    """The mean of launches, with bounds by Student's t.

    The spread is pooled with that of the control, the base against itself in the same launches:
    what makes a launch differ makes both differ. They share the base, so that their variances
    correlate by 1/4, and two of them are worth 2 / (1 + 1/4) of one.

    Raises:
        ValueError: too few launches, or not as many of the control.
    """
    n = len(logs)
    if n < LEAST or len(control) != n:
        raise ValueError(
            f"a bound needs {LEAST} launches and as many of the control; got {n} and"
            f" {len(control)}. Launch again."
        )
    spread2 = (np.var(logs, ddof=1) + np.var(control, ddof=1)) / 2
    freedom = 2 * (n - 1) / 1.25
    error = math.sqrt(float(spread2) / n)
    reach = float(stdtrit(freedom, CONFIDENCE)) * error
    value = float(np.mean(logs))
    return Bound(value, value - reach, value + reach, error, freedom, n)


def smallest_visible(found: Bound) -> float:
    """The effect that screen and confirmation, of this many launches each, find by `POWER`."""
    each = math.sqrt(POWER)
    reach = float(stdtrit(found.freedom, CONFIDENCE) + stdtrit(found.freedom, each))
    return MARGIN + reach * found.error


def say(logs: Sequence[float], control: Sequence[float], goal: float = GOAL) -> Said:
    """The rule of one stage: slower where the lower bound is above the margin.

    The control is the base against itself: where the same rule sees a change in it, or in its
    reverse, nothing that these launches say can be trusted. Not slower means that a slowdown of
    `goal` would have been found.
    """
    null = bound(control, logs)
    if null.low > MARGIN or null.high < -MARGIN:
        return Said.CONTROL_FAILED
    found = bound(logs, control)
    if found.low > MARGIN:
        return Said.SLOWER
    return Said.NOT_SLOWER if smallest_visible(found) <= goal else Said.UNCLEAR


def proportion(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a rate, by Clopper and Pearson 1934: `hits` of `trials`."""
    interval = binomtest(hits, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
