"""What a command prints is text: brackets and colons of names, reasons and paths stay in it."""

import ast
import json
from types import SimpleNamespace

import pytest
from rich.table import Table

from klppo_compile.cli import run
from klppo_compile.commands import bench_run, inspect, verdict
from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.exit_codes import ExitCode
from klppo_compile.export import machine
from klppo_compile.perf.exact.metrics import exact_row
from klppo_compile.perf.gate import run as ab_run
from klppo_compile.perf.gpu import targets as gpu_targets
from klppo_compile.perf.rows import Row, write_document
from klppo_compile.perf.suites import Outcome
from klppo_compile.perf.timed import evaluating
from tests.house import MODULES

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


def test_the_tables_of_the_onnx_and_the_gpu_suite_are_text(capsys):
    speed = Row(ODD, ODD, "speed over PyTorch", "x", 2.0, 1.5, 2.5, 20, "higher")
    plain(width=400).print(evaluating.table_of(ODD, [speed]))
    output = capsys.readouterr().out
    assert output.count(ODD) == 2
    assert " 2.00x [1.50, 2.50] " in output
    target = gpu_targets.TARGETS[0]
    plain(width=400).print(gpu_targets.table_of([gpu_targets.Verdict(target, "met", speed, 1, 1)]))
    output = capsys.readouterr().out
    assert ODD in output
    assert " met " in output


def test_no_letter_of_a_table_is_lost_on_a_narrow_page(capsys):
    table = Table()
    add_columns(table, "folder", "number", justify="right")
    table.add_row("InvertedPendulum-v5-seed0-2", "1234567.125")
    plain(width=20).print(table)
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    found = ["".join("".join(cells).split()) for cells in zip(*lines, strict=True)]
    assert found[1:3] == ["InvertedPendulum-v5-seed0-2", "1234567.125"]


def test_every_table_gets_its_columns_from_one_place():
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        others = [call for call in calls if ast.unparse(call.func).endswith(".add_column")]
        assert not others or module == "klppo_compile.commands.plain", module
        assert not any(call.args for call in calls if ast.unparse(call.func) == "Table"), module
