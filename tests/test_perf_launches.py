"""What launches decide: the rule, the control, the interval, the time that there is."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.comparing.findings import Verdict, exit_code
from klppo_compile.perf.comparing.rules import timed
from klppo_compile.perf.comparing.table import findings_table
from klppo_compile.perf.gate import calibrating
from klppo_compile.perf.gate.calibrating import GATE, chosen_workloads, noise_of
from klppo_compile.perf.gate.launch import build_order, difference, log_ratio
from klppo_compile.perf.gate.pairing import Pair, Timing, logs
from klppo_compile.perf.gate.verdict import (
    Comparison,
    Limits,
    compare_times,
    timed_finding,
    timed_findings,
)
from klppo_compile.perf.rows import Row
from klppo_compile.perf.statistics import bound
from klppo_compile.perf.timed.launches import joined, measure_launches
from klppo_compile.perf.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[1]


class Given:
    """Launches that are there already."""

    def __init__(self, *timings):
        self.launches = [{"w": timing} for timing in timings]

    def wave(self):
        return [self.launches.pop(0)] if self.launches else []

    def affordable(self):
        return len(self.launches)


def timing(new=0.0, null=0.0, difference=0.0):
    return Timing(new, null, 1e-3, 1000, difference, True)


def judged(*timings, limits=Limits(4, 4)):  # noqa: B008 - it is frozen
    found = compare_times(Given(*timings), ["w"], limits)
    return timed_findings(found, ["w"], limits)[0]


def test_a_regression_needs_a_confirmation():
    jitter = (0.001, -0.001, 0.0, 0.0005)
    slow = [timing(0.05 + x, -x) for x in jitter]
    fine = [timing(x, -x) for x in jitter]
    found = judged(*slow, *slow)
    assert (found.verdict, exit_code([found])) == (Verdict.REGRESSION, 1)
    assert "in 4 launches and in 4 fresh ones" in found.reason
    assert found.change == pytest.approx(0.0514, abs=1e-3)
    assert found.new == pytest.approx(found.base * (1 + found.change))
    assert judged(*slow, *fine).verdict is Verdict.UNDECIDED
    assert "no time was left to confirm it" in judged(*slow).reason
    assert judged(*fine, *fine).verdict is Verdict.SAME
    faster = judged(*[timing(-0.05 + x, -x) for x in jitter])
    assert (faster.verdict, exit_code([faster])) == (Verdict.IMPROVEMENT, 0)


def test_a_confirmation_of_fewer_launches_than_the_screen_tells_nothing():
    slow = [timing(0.05 + x, -x) for x in (0.001, -0.001, 0.0, 0.0005)]
    found = judged(*slow, *slow[:3])
    assert (found.verdict, exit_code([found])) == (Verdict.UNDECIDED, 3)
    assert "time for 3 launches was left to confirm it, which takes 4" in found.reason
    fine = [timing(x, -x) for x in (0.001, -0.001, 0.0005)]
    assert judged(*slow, *fine).verdict is Verdict.UNDECIDED


def test_too_few_launches_tell_nothing():
    for found in (judged(timing(0.5), timing(0.5)), judged()):
        assert (found.verdict, exit_code([found])) == (Verdict.UNDECIDED, 3)
        assert "a bound needs 3" in found.reason


def test_another_answer_has_no_speed():
    for apart in (0.01, float("nan")):
        found = judged(*[timing(-0.5, 0.0, apart)] * 4)
        assert (found.verdict, found.metric) == (Verdict.REGRESSION, "difference of the answers")
        assert "no speed for another answer" in found.reason


def tensors(*numbers):
    loss, *gradients = (torch.tensor(x) for x in numbers)
    return loss, tuple(gradients)


def test_an_answer_that_is_no_number_is_another_answer():
    right, nan = tensors(1.0, [1.0, 2.0], [3.0]), float("nan")
    assert difference(right, right) == 0
    assert difference(tensors(1.0, [1.0, 2.2], [3.0]), right) == pytest.approx(0.1)
    for number in (nan, float("inf")):
        for wrong in (
            tensors(number, [1.0, 2.0], [3.0]),
            tensors(1.0, [1.0, number], [3.0]),
            tensors(1.0, [1.0, 2.0], [number]),
        ):
            assert difference(wrong, right) == math.inf
    # No gradient on either side is no difference; one on one side is.
    assert difference(tensors(1.0, [0.0]), tensors(1.0, [0.0])) == 0
    assert difference(tensors(1.0, [0.1]), tensors(1.0, [0.0])) == math.inf
    assert difference(tensors(1.0, [1.0]), tensors(1.0, [1.0, 1.0])) == math.inf
    found = judged(*[timing(0.0, 0.0, math.inf)] * 4)
    assert findings_table([found]).row_count == 1


def test_the_interval_that_is_shown_holds_the_change_in_99_percent():
    drawing = np.random.default_rng(0)
    held, trials = 0, 4000
    for _ in range(trials):
        base, null, new = drawing.normal(0, 0.004, (3, 8))
        launches = [{"w": timing(n, x)} for n, x in zip(new - base, null - base, strict=True)]
        every = bound(*logs(launches, "w"))
        found = timed_finding("w", launches, every, Verdict.SAME, "")
        held += found.low <= 0 <= found.high
    assert held / trials == pytest.approx(0.99, abs=0.004)


def test_nothing_is_said_of_no_launches():
    assert timed_findings(Comparison(), ["w"], Limits())[0].base is None
    assert noise_of([], "w") is None


def test_a_noise_floor_is_made_of_launches():
    found = noise_of([{"w": timing(x, -x)} for x in (0.01, -0.01, 0.0, 0.005)], "w")
    assert found is not None
    assert 0.005 < found.spread < 0.02
    assert found.low < found.mean < found.high < found.visible


def test_launches_keep_to_their_time(monkeypatch):
    ticks = iter([0.0, 0.0, 0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(calibrating.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(calibrating, "wave", lambda *_: [{}] * calibrating.jobs())
    here = calibrating.LaunchedHere(Pair(ROOT, {}), GATE, 100.0, lambda _: None)
    assert here.affordable() == 2 * calibrating.jobs()
    assert len(here.wave()) == calibrating.jobs()  # from 0 to 30: it took 30
    assert here.done == here.jobs
    assert here.affordable() == calibrating.jobs()
    assert not here.wave()


def test_every_side_is_built_first_in_turn():
    orders = [tuple(build_order(["base", "null", "new"], launch)) for launch in range(6)]
    assert len(set(orders)) == 6
    assert {order[0] for order in orders[:3]} == {"base", "null", "new"}


def test_a_ratio_of_paired_calls_shrugs_off_outliers():
    base = [1.0, 2.0, 1.5, 1.2, 1.0, 3.0, 1.1]
    times = [1.1 * x for x in base]
    times[3] = 900.0
    assert log_ratio(times, base) == pytest.approx(0.0953, abs=1e-3)


def test_workloads_go_by_pattern():
    assert chosen_workloads(None) == GATE
    assert chosen_workloads("normal/heads/4*") == ("normal/heads/4096",)
    with pytest.raises(BadInputError, match="'gamma' matches none of normal/heads/256"):
        chosen_workloads("gamma")


def speed(value, metric="speed over torchrl eager"):
    """A launch's ratio, which its calls agree on to 1 %."""
    return Row("w", "ours compiled", metric, "x", value, 0.99 * value, 1.01 * value, 60, "higher")


def test_the_interval_of_launches_is_students_and_no_calls():
    values = [5.7, 7.3, 6.6, 9.2, 6.1]
    (row,) = joined([[speed(x)] for x in values])
    logs = np.log(values)
    low, high = stats.t.interval(0.99, 4, np.mean(logs), stats.sem(logs))
    assert (row.value, row.low, row.high) == pytest.approx(
        (stats.gmean(values), math.exp(low), math.exp(high))
    )
    assert (row.samples, row.launches) == (300, 5)


def test_launches_that_differ_are_no_change_between_runs():
    one, other = [5.7, 7.3, 6.6, 9.2, 6.1], [7.3, 5.7, 5.5, 6.1, 6.6]
    (base,), (new,) = (joined([[speed(x)] for x in values]) for values in (one, other))
    assert timed(base, new).verdict is Verdict.SAME
    assert timed(speed(6.6), speed(6.1)).verdict is Verdict.SAME
    halved = joined([[speed(x / 3)] for x in one])[0]
    assert timed(base, halved).verdict is Verdict.UNDECIDED  # no fresh confirmation


def test_too_few_launches_or_other_ones_have_no_interval():
    with pytest.raises(ValueError, match="needs 3; got 2"):
        joined([[speed(1.0)]] * 2)
    with pytest.raises(ValueError, match="the same"):
        joined([[speed(1.0)], [speed(1.0)], [speed(1.0, "time")]])


def test_launches_are_processes_of_their_own():
    workload = next(w for w in WORKLOADS if w.name == "normal/heads/256")
    said = []
    rows = measure_launches(workload, 8, 1.0, 3, said.append)
    assert len(said) == 3
    assert {row.launches for row in rows} == {3}
    found = {(row.provider, row.metric) for row in rows}
    assert ("ours compiled", "speed over torchrl eager, again") in found
    assert all(0 < row.low <= row.value <= row.high for row in rows)
