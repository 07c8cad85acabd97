"""The pure parts of the benchmark: medians, interleaving, rows, and no speed for a wrong answer."""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

import klppo_compile
from klppo_compile.cli import run
from klppo_compile.perf import machine
from klppo_compile.perf.__main__ import main
from klppo_compile.perf.machine import result_name, run_header
from klppo_compile.perf.measure import AGAIN, estimate, interleave, ratios, take_turns
from klppo_compile.perf.providers import OURS, PROVIDERS
from klppo_compile.perf.revisions import UNKNOWN
from klppo_compile.perf.rows import Row, read_document, write_document
from klppo_compile.perf.table import table_of
from klppo_compile.perf.timed.cpu import WrongAnswerError, check
from klppo_compile.perf.workloads import WORKLOADS, problem

ROW = Row("normal/heads/256", "ours", "time", "us", 2.0, 1.0, 3.0, 9, "lower")


def test_a_median_lies_in_its_interval():
    found = estimate([float(x) for x in range(101)])
    assert found.value == 50
    assert 30 < found.low < 50 < found.high < 70
    assert ratios([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).value == 2
    with pytest.raises(ValueError, match="needs a sample; got none"):
        estimate([])


def test_steps_take_turns_until_time_is_up():
    order, ticks = [], iter(range(1000))
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleave(steps, rounds=100, seconds=20, clock=lambda: float(next(ticks)))
    rounds = ["".join(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert set(rounds) == {"ab", "ba"}
    assert len(times["a"]) == len(times["b"]) < 100
    assert set(times["a"]) == {1.0}


@pytest.mark.parametrize(("rounds", "made"), [(100, 8), (3, 3)])
def test_no_time_is_too_short_for_an_interval(rounds, made):
    ticks = iter(range(1000))
    steps = dict.fromkeys("ab", lambda: None)
    times = interleave(steps, rounds, seconds=0, clock=lambda: float(next(ticks)))
    assert len(times["a"]) == len(times["b"]) == made


def test_a_table_shows_no_interval_of_few_samples():
    row = replace(ROW, metric="speed over torchrl eager", unit="x")
    for samples, text in ((7, "2.00x"), (8, "2.00x ±50%")):
        table = table_of(WORKLOADS[0], [replace(row, samples=samples)])
        assert list(table.columns[1].cells) == [text]
        assert ("fewer than 8 samples" in str(table.caption)) == (samples == 7)


def test_a_turn_of_two_calls_tells_them_apart():
    order, ticks, cost = [], iter(range(1000)), {"a": 5, "b": 2}

    def step(name):
        first = order[-1:] != [name]
        order.append(name)
        for _ in range(cost[name] if first else 1):
            next(ticks)

    steps = {name: partial(step, name) for name in "ab"}
    first, again = take_turns(steps, 8, 900, calls=2, clock=lambda: float(next(ticks)))
    assert {tuple(order[i : i + 2]) for i in range(0, len(order), 2)} == {("a", "a"), ("b", "b")}
    assert set(again["a"]) == set(again["b"]) == {2.0}
    assert {*first["a"]} <= {6.0, 2.0}
    assert {*first["b"]} <= {3.0, 2.0}
    assert len(first["a"]) == len(again["b"]) == 8


def test_a_table_has_a_line_for_the_call_again():
    workload = WORKLOADS[0]
    rows = [replace(ROW, metric="time" + end, value=value) for end, value in (("", 7), (AGAIN, 3))]
    table = table_of(workload, [*rows, replace(ROW, provider="theirs", value=9.0)])
    assert [[*column.cells] for column in table.columns] == [
        ["ours", "  again", "theirs"],
        ["7", "3", "9"],
    ]


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "run.json"
    write_document(path, {"commit": "abc"}, [ROW])
    assert read_document(path) == ({"commit": "abc"}, [ROW])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"run\.json must be a JSON document"):
        read_document(path)
    path.write_text(json.dumps({"schema": "other"}))
    with pytest.raises(ValueError, match="must have the schema"):
        read_document(path)


@pytest.mark.parametrize("family", ["normal", "categorical"])
def test_a_wrong_answer_gets_no_speed(family):
    workload = replace(next(w for w in WORKLOADS if w.family == family), batch=64)
    case = problem(workload)
    provider = next(p for p in PROVIDERS if p.name == OURS)
    step = provider.build(case)
    check(case, {provider: step})

    def wrong():
        total, grads = step()
        return total, (grads[0] * 1.01, *grads[1:])

    with pytest.raises(WrongAnswerError, match=OURS):
        check(case, {provider: wrong})


def test_a_pattern_that_matches_nothing_is_bad_input(capsys):
    assert main(["cpu", "--workload", "gamma/*"]) == 2
    assert "matches none of" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--rounds", "--seconds"])
def test_no_measurement_takes_no_time(option, capsys):
    assert main(["cpu", option, "0"]) == 2
    assert "must be above 0; got 0" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["nan", "inf", "-inf", "0", "-1"])
def test_no_budget_is_none_or_endless(minutes, capsys):
    assert main(["gpu", "--minutes", minutes]) == 2
    assert "must be above 0; got" in capsys.readouterr().err
    for command in (["ab", ".", "."], ["calibrate"]):
        assert run(["bench", *command, "--minutes", minutes]) == 2
        assert "--minutes" in capsys.readouterr().err


@pytest.mark.parametrize("launches", ["0", "2", "-3"])
def test_launches_are_one_or_enough_for_an_interval(launches, capsys):
    assert main(["cpu", "--launches", launches]) == 2
    assert "must be 1, or 3 or more" in capsys.readouterr().err


def test_what_breaks_here_is_no_failed_check(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("klppo_compile.perf.timed.cpu.measure_workload", broken)
    assert main(["cpu", "--workload", "normal/heads/256"]) == 3
    error = capsys.readouterr().err
    assert "RuntimeError: a defect" in error
    assert "Error: python -m klppo_compile.perf itself broke" in error


def test_a_missing_torchrl_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchrl", None)
    assert main(["cpu", "--workload", "normal/heads/256"]) == 4
    assert "pip install 'klppo-compile[perf]'" in capsys.readouterr().err


def test_results_are_named_by_date_commit_and_machine():
    header = run_header("python -m klppo_compile.perf cpu")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[^-]+(-dirty)?-.+\.json", result_name(header))
    assert header["machine"]["torch"] == torch.__version__
    assert header["version"] == klppo_compile.__version__
    assert header["machine"]["compiler"]


def test_the_version_stands_for_the_commit_of_an_installed_package(monkeypatch):
    monkeypatch.setattr(machine, "commit_here", lambda _: UNKNOWN)
    assert run_header("klppo bench run")["commit"] == f"v{klppo_compile.__version__}"


def test_workloads_reproduce():
    workload = replace(WORKLOADS[0], batch=16)
    one, two = problem(workload), problem(workload)
    assert torch.equal(one.data["action"], two.data["action"])
