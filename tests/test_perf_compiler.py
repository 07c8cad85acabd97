"""The C++ compiler: found as Inductor finds it, asked for before anything is measured."""

import subprocess

import pytest
from torch._inductor import config

from klppo_compile import compiler
from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode
from klppo_compile.perf import suites
from klppo_compile.perf.__main__ import main
from klppo_compile.perf.exact.metrics import exact_row
from klppo_compile.perf.processes import last_words
from tests.house import ROOT


@pytest.fixture(params=["/nonexistent", "/"], ids=["nothing", "a folder"])
def none_here(request):
    """A machine whose CXX names no compiler."""
    with config.patch({"cpp.cxx": (None, request.param)}):
        yield request.param


def test_the_one_that_inductor_takes_is_named():
    assert compiler.missing() == ""
    assert compiler.compiler_version()


def test_without_one_there_is_no_version(none_here):
    assert compiler.compiler_version() == ""


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "run", "--part", "exact", "--out", "x.json"],
        ["bench", "run", "--part", "timed", "--part", "cold", "--out", "x.json"],
        ["bench", "ab", "HEAD", "."],
        ["bench", "calibrate"],
        ["perf", "cpu", "--workload", "normal/heads/256"],
        ["perf", "onnx", "--family", "normal"],
    ],
    ids=" ".join,
)
def test_nothing_is_measured_without_one(none_here, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path if command[1] == "run" else ROOT)
    assert (main(command[1:]) if command[0] == "perf" else run(command)) == ExitCode.MISSING
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: the compiled loss is built by a C++ compiler")
    assert f"runs as {none_here}: apt install g++" in line
    assert not list(tmp_path.iterdir())


def test_kernels_are_measured_without_one(none_here, monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda _: True)
    rows = [exact_row("w", "sm_90", "spills", "spills", 0)]
    monkeypatch.setattr(suites, "measure_kernels", lambda *_, **__: rows)
    assert suites.run_suite("quick", print, ["kernels"]) == suites.Outcome(rows, [])
    found = suites.run_suite("quick", print)
    assert found.rows == rows
    assert [text.split(":")[0] for text in found.left_out] == [
        f"{part} is left out" for part in ("exact", "timed")
    ]


def test_a_suite_of_which_nothing_is_left_is_no_bad_input(none_here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suites, "installed", lambda package: package != "triton")
    assert run(["bench", "run", "--out", str(tmp_path / "x.json")]) == ExitCode.MISSING
    error = capsys.readouterr().err
    assert error.count("C++ compiler") == error.count("klppo-compile[triton]") == 1


SUPPRESS = """You can suppress this exception and fall back to eager by setting:
    import torch._dynamo
    torch._dynamo.config.suppress_errors = True
"""


@pytest.mark.parametrize("advice", ["Set TORCHDYNAMO_VERBOSE=1 for the internal ...", SUPPRESS, ""])
def test_torchs_advice_does_not_hide_the_cause(advice):
    said = f"Traceback ...\nInductorError: No working C++ compiler\n\n{advice}\n"
    done = subprocess.CompletedProcess([], 1, "", said)
    assert last_words(done) == "InductorError: No working C++ compiler"
    assert last_words(subprocess.CompletedProcess([], 1, "", advice)) == "it said nothing"
