"""What lies between low and high is called what it is: an interval, or the range of few samples."""

import json
import re
from types import SimpleNamespace

import pytest

from klppo_compile.cli import run
from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.formats.files import converted
from klppo_compile.perf.gate import run as ab_run
from klppo_compile.perf.gate.calibrating import Noise
from klppo_compile.perf.gate.run import ratio_row
from klppo_compile.perf.history.files import read_history
from klppo_compile.perf.page.file import page
from klppo_compile.perf.rows import Row, span_of, write_document
from klppo_compile.perf.timed.cold import rows_of
from tests.perf_history_cases import header

INTERVAL, RANGE = "99 % interval", "range of 5 samples"


def timed(samples, launches=1):
    return Row("w", "ours", "time", "us", 5.0, 4.0, 9.0, samples, "lower", launches=launches)


@pytest.fixture
def history(tmp_path):
    def write(row):
        write_document(tmp_path / "run.json", header(0), [row])
        return read_history(tmp_path)

    return write


@pytest.mark.parametrize(("samples", "span"), [(5, RANGE), (8, INTERVAL)])
def test_page_and_pytest_benchmark_call_a_range_a_range(history, samples, span):
    runs = history(timed(samples))
    (about,) = re.findall(r'title="([^"]* 4 to 9[^"]*)"', page(runs))
    assert about.startswith(f"{span} 4 to 9, ")
    assert about.count("samples") == 1
    document = json.loads(converted(runs, "pytest-benchmark")[0][""])
    note = document["benchmarks"][0]["extra_info"]["note"]
    assert f"ends of its {span};" in note
    assert ("standard error" in note) == (span == INTERVAL)


def test_a_cold_start_has_a_range_and_counts_have_none():
    times = {"first call": [1.0, 2.0, 3.0, 4.0, 5.0]}
    rows = rows_of("w", {"ours": times, "torchrl": times})
    assert {span_of(row) for row in rows} == {RANGE}
    counted = Row("w", "ours", "instructions", "", 5.0, 5.0, 5.0, 1, "lower", "counted")
    assert span_of(counted) == INTERVAL


def test_few_launches_of_two_revisions_have_an_interval():
    """Student's, of the launches; what is sampled is calls."""
    numbers = (5.0, 5.5, 0.1, 0.05, 0.15)
    found = Finding("w", "ours", "m", "timed", "us", *numbers, Verdict.SAME, "")
    row = ratio_row(found, [{"w": SimpleNamespace(rounds=100)}] * 4)
    assert (row.samples, row.launches, span_of(row)) == (400, 4, INTERVAL)


# What commands say


def test_calibrate_prints_one_object(monkeypatch, capsys):
    noise = Noise("w", 1e-3, 0.0, -0.001, 0.001, 0.01, 0.02, 8)
    monkeypatch.setattr(ab_run, "calibrate", lambda *_: ([noise], []))
    assert run(["bench", "calibrate", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["workloads"]
    assert (found["workload"], found["visible"]) == ("w", 0.02)


def test_the_gpu_suite_says_a_command_that_there_is(tmp_path, monkeypatch, capsys):
    pytest.importorskip("triton")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(["bench", "run", "--suite", "gpu", "--out", str(tmp_path)]) == 4
    assert "python -m klppo_compile.perf gpu --interpret" in capsys.readouterr().err
