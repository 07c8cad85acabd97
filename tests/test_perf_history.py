"""The history as series, and where their levels change: rates on simulated series, fixed seeds."""

import json
import math

import numpy as np
import pytest

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.comparing.accepting import Accepted
from klppo_compile.perf.gpu.job import FLOOR as GPU_FLOOR
from klppo_compile.perf.history.change_points import change_points, relative_noise
from klppo_compile.perf.history.files import read_history
from klppo_compile.perf.history.series import series_of
from klppo_compile.perf.page.chart import chart
from klppo_compile.perf.providers import YARDSTICKS
from klppo_compile.perf.rows import Row, write_document
from tests.perf_history_cases import MACHINE, header, rows, write_history


def simulated(generator, runs, noise=0.0075, step=0.0, at=0, correlation=0.0):
    """A series at 1, from run `at` on at 1 + step."""
    e = generator.normal(size=runs + 50)
    for i in range(1, runs + 50):
        e[i] += correlation * e[i - 1]
    e = e[50:] * math.sqrt(1 - correlation**2)
    level = np.where(np.arange(runs) >= at, np.log1p(step), 0.0)
    return np.exp(level + noise * e).tolist()


def rate(found):
    """The share of a list that is not empty."""
    return np.mean([bool(each) for each in found])


# Change points


@pytest.mark.parametrize(
    ("noise", "correlation", "most"),
    [
        (0.003, 0.0, 0.01),
        (0.0075, 0.0, 0.01),
        (0.03, 0.0, 0.02),
        (0.0075, 0.5, 0.12),
        (0.02, 0.5, 0.25),
    ],
)
def test_noise_is_no_change(noise, correlation, most):
    generator = np.random.default_rng(0)
    series = [simulated(generator, 120, noise, correlation=correlation) for _ in range(200)]
    assert rate(change_points(x) for x in series) <= most


@pytest.mark.parametrize(
    ("step", "after", "least"),
    [(0.05, 12, 0.99), (0.05, 2, 0.93), (0.05, 1, 0.62), (0.02, 12, 0.8)],
)
def test_a_step_is_found(step, after, least):
    generator = np.random.default_rng(1)
    series = [simulated(generator, 18 + after, step=step, at=18) for _ in range(200)]
    near = [[p for p in change_points(x) if abs(p.index - 18) <= 1] for x in series]
    assert rate(near) >= least


def test_a_step_is_named_by_its_first_run_and_its_levels():
    generator = np.random.default_rng(2)
    found = [change_points(simulated(generator, 30, step=0.08, at=19)) for _ in range(50)]
    assert np.mean([[p.index for p in each] == [19] for each in found]) >= 0.96
    assert all(abs(each[0].change - 0.08) < 0.015 for each in found)


def test_two_steps_are_both_found():
    x = [*simulated(np.random.default_rng(3), 40, step=0.1, at=12)]
    x[25:] = [value / 1.06 for value in x[25:]]
    up, down = change_points(x)
    assert (up.index, down.index) == (12, 25)
    assert up.change > 0.09
    assert down.change < -0.05


@pytest.mark.parametrize("step", [0.05, 0.1])
def test_a_step_that_is_undone_hides_nothing(step):
    generator = np.random.default_rng(6)
    found = []
    for _ in range(100):
        x = simulated(generator, 30, step=step, at=10)
        x[20:] = [value / (1 + step) for value in x[20:]]
        found.append([p.index for p in change_points(x)])
    assert np.mean([each == [10, 20] for each in found]) >= 0.85


def test_a_step_below_the_least_is_none_however_sure():
    generator = np.random.default_rng(4)
    x = simulated(generator, 60, noise=0.0005, step=0.007, at=30)
    assert not change_points(x)
    # counted metrics have less noise, and a smaller least step
    assert [p.index for p in change_points(x, "counted")] == [30]


def test_few_runs_tell_nothing_about_a_timed_series():
    assert not change_points([])
    assert not change_points([1.0])
    assert not change_points([1.0, 2.0])
    assert not change_points([1.0, 1.01, 2.0])


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_a_constant_series_has_no_change(value):
    assert not change_points([value] * 20)
    assert not change_points([value] * 20, "exact")


def test_any_change_of_an_exact_metric_is_one():
    found = change_points([0, 0, 1, 1, 1, 0, 17, 17], "exact")
    assert [p.index for p in found] == [2, 5, 6]
    assert [(p.before, p.after) for p in found] == [(0, 1), (1, 0), (0, 17)]
    assert [p.change for p in found] == [math.inf, -1, math.inf]


def test_a_baseline_of_zero_is_on_an_absolute_scale():
    x = [0.0, 1.0] * 6 + [100.0, 101.0] * 6
    (point,) = change_points(x)
    assert (point.index, point.before, point.after) == (12, 0.5, 100.5)
    assert change_points([0.0] * 12 + [5.0] * 12)[0].change == math.inf
    assert not change_points([-1.0, 0.0, 1.0] * 10)


def test_noise_is_measured_around_levels():
    x = simulated(np.random.default_rng(5), 400, noise=0.02, step=3.0, at=200)
    assert relative_noise(x) == pytest.approx(0.02, rel=0.25)


# History


def test_a_folder_becomes_series_within_one_class_of_machine(tmp_path):
    write_history(tmp_path, 3)
    write_history(tmp_path, 2, machine=MACHINE | {"cpu": "Xeon"})
    runs = read_history(tmp_path)
    assert [run.date for run in runs] == sorted(run.date for run in runs)
    series = series_of(runs)
    assert len(series) == 80
    assert sorted({(one.machine_class, len(one.runs)) for one in series}) == [
        ("amd-epyc-2c-avx2-torch2.13.0", 3),
        ("xeon-2c-avx2-torch2.13.0", 2),
    ]


def test_another_unit_begins_another_series(tmp_path):
    for number, unit in enumerate(("us", "ms")):
        row = Row("w", "p", "time", unit, 2.0, 1.0, 3.0, 9, "lower")
        write_document(tmp_path / f"{number}.json", header(number), [row])
    assert [one.values for one in series_of(read_history(tmp_path))] == [[2.0], [2.0]]


def test_another_direction_begins_another_series(tmp_path):
    for number, better in enumerate(("lower", "lower", "higher")):
        value = 10.0 + 2 * bool(number)
        row = Row("w", "ours", "m", "", value, value, value, 1, better, "exact")
        write_document(tmp_path / f"{number}.json", header(number), [row])
    first, second = series_of(read_history(tmp_path))
    assert (first.values, second.values, second.state) == ([10.0, 12.0], [12.0], "same")


@pytest.mark.parametrize(
    ("tool", "kind", "provider", "metric", "many"),
    [
        ("triton", "exact", "sm_90", "forward registers", 2),
        ("triton", "exact", "ours compiled", "graph breaks", 1),
        ("tensordict", "exact", "ours compiled", "graph breaks", 2),
        ("onnxscript", "exact", "ours", "ONNX nodes", 2),
        ("valgrind", "counted", "ours eager", "instructions", 2),
        ("torchrl", "timed", "ours compiled", "speed over torchrl eager", 2),
        ("tensordict", "timed", "ours compiled", "speed over torchrl eager", 2),
        ("compiler", "timed", "ours compiled", "speed over torchrl eager", 2),
        ("compiler", "exact", "ours compiled", "graph breaks", 1),
        ("torchrl", "exact", "ours compiled", "graph breaks", 1),
    ],
)
def test_another_version_that_a_number_depends_on_begins_another_series(
    tmp_path, tool, kind, provider, metric, many
):
    for number in range(2):
        row = Row("w", provider, metric, "", 32.0 + number, 1.0, 99.0, 1, "lower", kind)
        head = header(number, MACHINE | {tool: f"3.{9 + number}.0"})
        write_document(tmp_path / f"{number}.json", head, [row])
    found = series_of(read_history(tmp_path))
    assert len(found) == many
    assert [bool(one.changes) for one in found] == [many == 1 and kind == "exact"] * many


def history_of(folder, values, kind="exact", better="lower"):
    """A history of one series."""
    for number, value in enumerate(values):
        row = Row("w", "p", "m", "", value, value, value, 1, better, kind)
        write_document(folder / f"{number:03}.json", header(number), [row])
    return series_of(read_history(folder))[0]


@pytest.mark.parametrize(
    ("values", "better", "state", "setback"),
    [
        ([17.0, 17.0], "lower", "same", 0),
        ([17.0, 18.0], "lower", "worse", 1 / 17),
        ([17.0, 18.0], "higher", "better", 0),
        ([18.0, 17.0], "lower", "better", 0),
        ([0.0, 1.0], "lower", "worse", math.inf),
        ([17.0, 18.0, 17.0], "lower", "same", 0),
        ([20.0, 10.0, 15.0], "lower", "worse", 0.5),
    ],
)
def test_severity_is_how_far_it_is_behind_its_best(tmp_path, values, better, state, setback):
    series = history_of(tmp_path, values, better=better)
    assert series.state == state
    assert series.setback == pytest.approx(setback)


@pytest.mark.parametrize(
    ("values", "kind", "state", "setback"),
    [
        ([17.0, 18.0], "exact", "same", 0),
        ([17.0, 18.0, 19.0], "exact", "worse", 1 / 18),
        ([17.0, 18.0, 16.0], "exact", "better", 0),
        ([16.0, 18.0], "exact", "worse", 1 / 8),
        ([17.0] * 8 + [18.0] * 8, "counted", "worse", 1 / 17),
    ],
)
def test_an_accepted_step_back_is_none(tmp_path, values, kind, state, setback):
    history_of(tmp_path, values, kind)
    decision = Accepted("m", "w", "p", 17.0, 18.0, "needed")
    (series,) = series_of(read_history(tmp_path), [decision])
    assert series.state == state
    assert series.setback == pytest.approx(setback)


def test_several_launches_begin_another_series_than_one(tmp_path):
    for number, launches in enumerate([1, 1, 5, 5, 8]):
        row = Row("w", "p", "m", "x", 5.0, 4.0, 6.0, 9, "higher", "timed", launches)
        options = {"command": f"klppo bench run --launches {launches}"}
        write_document(tmp_path / f"{number}.json", header(number) | options, [row])
    one, several = series_of(read_history(tmp_path))
    assert [len(one.runs), len(several.runs)] == [2, 3]
    assert [one.metric, several.metric] == ["m", "m (launches)"]
    assert [one.ended, several.ended] == [True, False]


def test_a_version_that_was_not_said_before_continues_the_series(tmp_path):
    for number, compiler in enumerate([None, None, "g++ 12", None, "g++ 12", "g++ 14"]):
        row = Row("w", "p", "m", "x", 5.0, 4.0, 6.0, 9, "higher", "timed")
        head = header(number, MACHINE | ({"compiler": compiler} if compiler else {}))
        write_document(tmp_path / f"{number}.json", head, [row])
    old, new = series_of(read_history(tmp_path))
    assert [len(old.runs), len(new.runs)] == [5, 1]
    assert [old.ended, new.ended] == [True, False]


def test_a_version_that_is_not_said_is_the_one_before(tmp_path):
    for number, compiler in enumerate(["g++ 12", "g++ 14", "g++ 12", None]):
        row = Row("w", "p", "m", "x", 5.0, 4.0, 6.0, 9, "higher", "timed")
        head = header(number, MACHINE | ({"compiler": compiler} if compiler else {}))
        write_document(tmp_path / f"{number}.json", head, [row])
    assert sorted(len(one.runs) for one in series_of(read_history(tmp_path))) == [1, 3]


def test_one_launch_ends_no_series_of_several(tmp_path):
    for number, launches in enumerate([5, 5, 1]):
        row = Row("w", "p", "m", "x", 5.0, 4.0, 6.0, 9, "higher", "timed", launches)
        options = {"command": f"klppo bench run --launches {launches}"}
        write_document(tmp_path / f"{number}.json", header(number) | options, [row])
    assert [one.ended for one in series_of(read_history(tmp_path))] == [False, False]


@pytest.mark.parametrize(("bases", "changes"), [(["a", "a"], 1), ([None, "a"], 1), (["a", "b"], 0)])
def test_a_time_over_another_base_is_no_change(tmp_path, bases, changes):
    for number in range(16):
        value = 1.2 if number < 8 else 1.0
        row = Row("w", "ours compiled", "m", "x", value, value, value, 9, "lower", "timed", 9)
        base = bases[number // 8]
        head = header(number) | ({"base": base} if base else {})
        write_document(tmp_path / f"{number:02}.json", head, [row])
    (series,) = series_of(read_history(tmp_path))
    assert len(series.changes) == changes
    assert series.state == ("better" if changes else "same")


def test_a_change_since_the_base_moved_is_one(tmp_path):
    for number in range(24):
        value = 1.0 if 8 <= number < 16 else 1.2
        row = Row("w", "ours compiled", "m", "x", value, value, value, 9, "lower", "timed", 9)
        base = "a" if number < 8 else "b"
        head = header(number) | ({"base": base} if number != 8 else {})
        write_document(tmp_path / f"{number:02}.json", head, [row])
    (series,) = series_of(read_history(tmp_path))
    assert (series.since_base, [point.index for point in series.changes]) == (9, [16])
    assert series.state == "worse"
    drawn = chart(series, dict(zip(series.runs, range(24), strict=True)))
    assert (drawn["s"], drawn["c"][0][:3], drawn["n"]) == (9, [16, 1.0, 1.2], 0)


@pytest.mark.parametrize("provider", ["torchrl eager", GPU_FLOOR, *(p.name for p in YARDSTICKS)])
def test_a_peer_or_a_yardstick_is_not_judged(tmp_path, provider):
    for number, value in enumerate([17.0, 18.0, 16.0]):
        row = Row("w", provider, "m", "", value, value, value, 1, "lower", "exact")
        write_document(tmp_path / f"{number}.json", header(number), [row])
        (series,) = series_of(read_history(tmp_path))
        assert (len(series.changes), series.state, series.setback) == (number, "same", 0)
        assert {series.verdict(point) for point in series.changes} <= {"quiet"}


def test_what_is_left_of_a_mended_step_is_noise(tmp_path):
    levels = [100.0] * 10 + [110.0] * 10 + [100.4] * 10
    x = [value * (1 + 0.001 * (-1) ** i) for i, value in enumerate(levels)]
    series = history_of(tmp_path, x, kind="timed")
    assert [p.index for p in series.changes] == [10, 20]
    assert (series.state, series.setback) == ("same", 0)


def broken(tmp_path, edit):
    """A folder with one good file, and one whose document was edited."""
    write_history(tmp_path, 1)
    path = tmp_path / "bad.json"
    write_document(path, header(1), rows(1, np.random.default_rng(0)))
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda d: d.update(schema="other/1"), "must have the schema"),
        (lambda d: d["run"].pop("machine"), "KeyError: 'machine'"),
        (lambda d: d["run"].pop("commit"), "KeyError: 'commit'"),
        (lambda d: d["run"].update(date="yesterday"), "yesterday"),
        (lambda d: d["run"].update(date="0001-01-01T00:00:00"), "date must be one of a calendar"),
        (lambda d: d["rows"][0].update(workload="half \ud83d"), "surrogates not allowed"),
        (lambda d: d["run"].update(commit="../../zz"), "commit must be a word"),
        (lambda d: d["run"].update(commit=""), "commit must be a word"),
        (lambda d: d["run"]["machine"].pop("cpu"), "KeyError: 'cpu'"),
        (lambda d: d.pop("rows"), "KeyError: 'rows'"),
        (lambda d: d["rows"][0].update(value=math.nan), "must be finite numbers"),
        (lambda d: d["rows"][0].update(value="1"), "must be finite numbers"),
        (lambda d: d["rows"][0].update(workload=3), "must be text; got 3 ·"),
        (lambda d: d["rows"][0].update(kind="guessed"), "kind must be one of"),
        (lambda d: d["rows"][0].update(better="more"), "better one of"),
        (lambda d: d["rows"][0].update(colour="red"), "colour"),
        (lambda d: d["rows"].append(d["rows"][0]), "is there twice"),
    ],
)
def test_a_file_that_cannot_be_taken_is_named_and_refused(tmp_path, edit, why):
    broken(tmp_path, edit)
    with pytest.raises(BadInputError, match=r"bad\.json") as error:
        read_history(tmp_path)
    assert why in str(error.value)
    assert error.value.exit_code == 2


def test_a_truncated_file_is_named(tmp_path):
    (path,) = write_history(tmp_path, 1).iterdir()
    path.write_text(path.read_text()[:-40])
    with pytest.raises(BadInputError, match=rf"{path.name} must be a JSON document"):
        read_history(tmp_path)


def test_every_bad_file_is_named(tmp_path):
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(BadInputError, match=r"(?s)one\.json.*two\.json.*take them out"):
        read_history(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"has no \.json file"):
        read_history(tmp_path)
    with pytest.raises(BadInputError, match="is not a folder"):
        read_history(tmp_path / "none")
