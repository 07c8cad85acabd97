"""The gate's statistics on launches whose truth is known: how often it is wrong, what it finds."""

import math

import numpy as np
import pytest
from scipy import stats

from klppo_compile.perf.comparing.findings import Verdict
from klppo_compile.perf.gate.pairing import Timing
from klppo_compile.perf.gate.verdict import Limits, compare_times, timed_findings
from klppo_compile.perf.statistics import (
    GOAL,
    MARGIN,
    Said,
    bound,
    control,
    proportion,
    say,
    smallest_visible,
)

NAMES = ("one", "two", "three")
RUNS = 400


class Simulated:
    """Launches with a given effect and spread: base, new and base again each have their own part.

    `spread` is of a launch's ratio.
    """

    def __init__(self, random, effect=0.0, spread=0.006, null=0.0, launches=12, heavy=False):
        self.random, self.effect, self.null = random, effect, null
        self.left, self.spread, self.heavy = launches, spread, heavy

    def wave(self):
        if self.left < 2:
            return []
        self.left -= 2
        return [{name: self.timing() for name in NAMES} for _ in range(2)]

    def timing(self):
        draw = (
            self.random.standard_t(3, 3) / math.sqrt(3)
            if self.heavy
            else self.random.normal(size=3)
        )
        base, new, null = draw * self.spread / math.sqrt(2)
        return Timing(self.effect + new - base, self.null + null - base, 1e-3, 1000, 0.0, True)

    def affordable(self):
        return self.left


def verdicts(**options):
    """Of many comparisons: the set of verdicts of each."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(RUNS):
        result = compare_times(Simulated(random, **options), NAMES, Limits())
        found.append({f.verdict for f in timed_findings(result, NAMES, Limits())})
    return found


def share(found, verdict):
    return sum(verdict in each for each in found) / len(found)


def test_bounds_hold_as_often_as_they_say():
    random, above, apart = np.random.default_rng(1), 0, 0
    for _ in range(4000):
        base, new, null = random.normal(size=(3, 5))
        above += bound(list(new - base), list(null - base)).low > 0
        apart += control(list(new - base), list(null - base)).high < 0
    assert stats.binomtest(above, 4000, 0.01).pvalue > 0.001
    assert stats.binomtest(apart, 4000, 0.01).pvalue > 0.001


@pytest.mark.parametrize("heavy", [False, True])
def test_nothing_changed_raises_no_alarm(heavy):
    found = verdicts(heavy=heavy)
    assert share(found, Verdict.REGRESSION) == 0
    # A launch that is off by chance may leave it open, seldom.
    assert share(found, Verdict.UNDECIDED) < (0.25 if heavy else 0.05)


@pytest.mark.parametrize("effect", [0.03, 0.05, 0.10])
def test_a_slowdown_is_found(effect):
    assert share(verdicts(effect=math.log1p(effect)), Verdict.REGRESSION) >= 0.95


def test_a_slowdown_within_the_margin_is_let_pass():
    assert share(verdicts(effect=MARGIN), Verdict.REGRESSION) <= 0.01


def test_a_gain_is_told_and_fails_nothing():
    found = verdicts(effect=math.log(0.95))
    assert share(found, Verdict.IMPROVEMENT) > 0.95
    assert share(found, Verdict.REGRESSION) == 0


def test_noise_is_no_pass():
    found = verdicts(spread=0.05)
    assert share(found, Verdict.UNDECIDED) > 0.95
    assert share(found, Verdict.REGRESSION) == 0


def test_a_base_that_differs_from_itself_decides_nothing():
    found = verdicts(null=math.log1p(0.05), effect=math.log1p(0.05))
    assert share(found, Verdict.REGRESSION) == 0
    assert share(found, Verdict.UNDECIDED) == 1


def test_the_smallest_visible_effect_is_found_that_often():
    # Launches fixed, so that the screen and the confirmation are what the number is about.
    random, hits = np.random.default_rng(2), 0
    spread, n = 0.006, 6
    reach = stats.t.ppf(0.99, 10) + stats.t.ppf(math.sqrt(0.95), 10)
    visible = MARGIN + reach * math.sqrt(0.75 / n) * spread
    for _ in range(RUNS):
        halves = []
        for _ in range(2):
            base, new, null = random.normal(size=(3, n)) * spread / math.sqrt(2)
            halves.append(say(list(visible + new - base), list(null - base)))
        hits += halves == [Said.SLOWER, Said.SLOWER]
    assert stats.binomtest(hits, RUNS, 0.95).pvalue > 0.001


def test_what_one_stage_says():
    quiet = [0.001, -0.001, 0.0, 0.0005]
    assert say([x + 0.05 for x in quiet], quiet) is Said.SLOWER
    assert say(quiet, quiet[::-1]) is Said.NOT_SLOWER
    assert say(quiet, [x - 0.05 for x in quiet]) is Said.CONTROL_FAILED
    assert say([0.05, -0.05, 0.0, 0.01], quiet) is Said.UNCLEAR


def test_a_bound_needs_launches():
    with pytest.raises(
        ValueError, match="needs 3 launches and as many of the control; got 2 and 2"
    ):
        bound([0.0, 0.1], [0.0, 0.1])
    found = bound([0.01, 0.02, 0.03], [0.0, 0.0, 0.0])
    assert found.low < found.value < found.high
    assert GOAL < smallest_visible(found) < 2 * GOAL


def test_rates_have_the_bounds_of_clopper_and_pearson():
    low, high = proportion(0, 40)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert proportion(38, 40)[0] == pytest.approx(0.8308, abs=1e-4)
