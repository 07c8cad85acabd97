"""What a command prints is text: brackets and colons of names, reasons and paths stay in it."""

import json
from types import SimpleNamespace

import pytest

from klppo_compile.cli import run
from klppo_compile.commands import bench_run, inspect, verdict
from klppo_compile.commands.plain import plain
from klppo_compile.exit_codes import ExitCode
from klppo_compile.export import machine
from klppo_compile.perf import ab_run
from klppo_compile.perf.exact import exact_row
from klppo_compile.perf.rows import Row, write_document
from klppo_compile.perf.suites import Outcome

MACHINE = {"cpu": "A CPU", "cores": 2, "isa": "AVX2", "torch": "2.13.0"}
# Rich would take the first two out, stop at the third and draw the last.
ODD = "see [#12], [perf] of [/3] :bug:"


def exact_file(folder, value):
    path = folder / f"{value}.json"
    row = exact_row(ODD, ODD, ODD, "kernels", value)
    write_document(path, {"machine": MACHINE}, [row])
    return str(path)


def test_bench_compare_prints_names_and_reasons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_run, "LOG_WIDTH", 400)
    entry = dict.fromkeys(("metric", "workload", "provider", "reason"), ODD) | {"old": 1, "new": 2}
    decisions = tmp_path / "accepted.toml"
    text = "".join(f"{key} = {json.dumps(x)}\n" for key, x in entry.items())
    decisions.write_text(f"[[accepted]]\n{text}")
    files = [exact_file(tmp_path, value) for value in (1, 2)]
    assert run(["bench", "compare", *files, "--accepted", str(decisions)]) == ExitCode.GOOD
    assert capsys.readouterr().out.count(ODD) == 4
    assert run(["bench", "compare", files[0], exact_file(tmp_path, 3)]) == ExitCode.FAILED
    assert capsys.readouterr().out.count(ODD) == 3


def test_bench_run_prints_names_and_what_was_left_out(capsys):
    cold = Row(ODD, ODD, f"cold: {ODD}", "s", 1.0, 1.0, 1.0, 5, "lower")
    bench_run.show(Outcome([exact_row(ODD, ODD, ODD, "", 1), cold], [ODD]), bench_run.page())
    assert capsys.readouterr().out.count(ODD) == 7


def test_bench_ab_prints_revisions_and_notes(monkeypatch, capsys):
    result = ab_run.Result(ODD, ODD, [], notes=[ODD])
    monkeypatch.setattr(ab_run, "compare_revisions", lambda *_: result)
    assert run(["bench", "ab", "one", "two"]) == ExitCode.GOOD
    assert capsys.readouterr().out.count(ODD) == 3


@pytest.fixture(params=[False, True], ids=["log", "terminal"])
def page(request, monkeypatch):
    """Where a command prints."""
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")


def test_progress_tells_what_it_is_told(page, capsys):
    with bench_run.progress() as tell:
        tell(ODD)
    assert ODD in capsys.readouterr().err


def test_a_name_that_is_no_environment_is_bad_input(page, capsys):
    assert run(["train", "--env", "[/x]"]) == ExitCode.BAD_INPUT
    assert "got '[/x]'" in capsys.readouterr().err


def test_a_result_is_named_by_its_files(capsys):
    totals = SimpleNamespace(kl_worst=SimpleNamespace(rows=[]))
    evaluation = SimpleNamespace(ranges=[(0, 1)], rollout_rows=1, totals=totals)
    verdict.print_report(evaluation, {ODD: 1}, ODD)
    assert " ".join(capsys.readouterr().out.split()).count(ODD) == 2


def test_inspect_prints_keys_and_shapes(capsys):
    spec = SimpleNamespace(name="a", key=ODD, shape=("n",), dtype="float32", rows=True)
    manifest = SimpleNamespace(batch=0, batch_dims=1, inputs=[spec], outputs=[spec])
    plain(width=99).print(inspect._arrays(manifest))
    output = capsys.readouterr().out
    assert ODD in output
    assert output.count("[batch, n]") == 2


def test_doctor_prints_what_it_finds(monkeypatch, capsys):
    found = machine.Machine({ODD: f"C:\\{ODD}"})
    monkeypatch.setattr(machine, "examine", lambda: found)
    assert run(["doctor"]) == ExitCode.GOOD
    assert capsys.readouterr().out.count(ODD) == 2
