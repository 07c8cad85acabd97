"""Ctrl-C: while libraries load, while a run goes on, and between the runs of a demo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from klppo_compile.cli import run
from klppo_compile.commands import demo
from klppo_compile.commands.interrupt import StopRequest, loading
from klppo_compile.exit_codes import ExitCode, as_object
from klppo_compile.training.loading import load_run
from tests.training_cases import finished_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C as from a terminal: a shell has what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def in_a_process(*arguments):
    """Start `klppo` in a process of its own, as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "klppo_compile.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# Before anything is begun


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("numpy", "train --env=CartPole-v1"),
        ("numpy", "train --resume=run"),
        ("numpy", "demo"),
        ("numpy", "export run --out=file.onnx"),
        ("onnxruntime", "export run --out=file.onnx"),
        ("numpy", "check file.onnx --data=rollout"),
        ("onnxruntime", "check file.onnx --data=rollout"),
        ("torch", "check file.onnx --data=rollout --target=run"),
        ("onnxruntime", "evaluate file.onnx --data=rollout"),
        ("numpy", "evaluate file.onnx --data=rollout --picture=kl.png"),
        ("onnxruntime", "compare file.onnx file.onnx --data=rollout"),
        ("onnxruntime", "compare file.onnx file.onnx --data=rollout --json"),
        ("numpy", "merge part.json"),
        ("onnx", "inspect file.onnx"),
        ("onnxruntime", "doctor"),
        ("numpy", "bench compare a.json b.json --json"),
        ("numpy", "bench report --out=page.html"),
    ],
)
def test_ctrl_c_ends_a_command_in_a_library_that_swallows_it(library, arguments, tmp_path):
    (tmp_path / f"{library}.py").write_text(
        "import signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt: pass"
    )
    done = subprocess.run(
        [sys.executable, "-m", "klppo_compile.cli", *arguments.split()],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "Interrupted.\n")
    said = as_object(ExitCode.INTERRUPTED, "Interrupted.") if "--json" in arguments else None
    assert (json.loads(done.stdout) if done.stdout else None) == said
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {f"{library}.py"}


def test_loading_gives_the_signal_back_and_leaves_a_callers_handler_alone():
    before = signal.getsignal(signal.SIGINT)
    with loading("no_such_module"):
        assert signal.getsignal(signal.SIGINT) not in (before, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGINT) is before
    with StopRequest("Stopping.") as stop, loading():
        assert signal.getsignal(signal.SIGINT) == stop._receive


# A demo


@pytest.mark.parametrize("runs", [1, 2])
def test_a_demo_stops_after_a_run_that_has_finished_all_the_same(
    runs, tmp_path, capsys, monkeypatch
):
    result = finished_run(tmp_path / "run")
    watched = []

    def watch(settings, *_):
        watched.append(settings.env)
        if len(watched) == runs:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(demo, "watch", watch)
    assert run(["demo", f"--out={tmp_path}"]) == ExitCode.INTERRUPTED
    assert tuple(watched) == demo.ENVIRONMENTS[:runs]
    output = capsys.readouterr()
    assert output.out.count(str(tmp_path / "run")) == runs
    assert "Stopping after this iteration" in output.err
    assert "exporting" not in output.err


# A run


def begin_a_long_run(folder):
    """Start a run that won't end by itself, and wait until it has trained a little."""
    arguments = ["--env", "CartPole-v1", "--out", str(folder), "--no-compile", "--epochs=1"]
    process = in_a_process("train", *arguments, "--steps=200000")
    for line in process.stderr:
        if " of " in line:
            return process
    raise AssertionError(f"ended by itself: {process.wait()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_complete_folder_that_resumes(number, tmp_path):
    folder = tmp_path / "run"
    process = begin_a_long_run(folder)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Stopping after this iteration" in error
    assert "Traceback" not in error
    assert f"Continue with: klppo train --resume {folder}" in output
    run_folder = load_run(folder, "last")
    assert (folder / "curves.png").stat().st_size > 10_000
    rows = (folder / "metrics.csv").read_text().splitlines()
    steps = int(rows[-1].split(",")[0])
    assert len(run_folder.example) == 2048
    assert run(["train", "--resume", str(folder), f"--steps={steps + 1}"]) == ExitCode.GOOD
    assert len((folder / "metrics.csv").read_text().splitlines()) == len(rows) + 1


def test_a_killed_run_resumes_from_its_last_save(tmp_path, capsys):
    folder = tmp_path / "run"
    process = begin_a_long_run(folder)
    process.kill()
    process.communicate(timeout=60)
    # What a process leaves that dies while it replaces the rollout.
    (folder / "rollout").rename(folder / ".rollout.1.old")
    (folder / ".best.safetensors.1.tmp").write_bytes(b"half")
    assert run(["train", "--resume", str(folder), "--steps=4096"]) == ExitCode.GOOD
    iterations = [row.split(",")[1] for row in (folder / "metrics.csv").read_text().splitlines()]
    assert iterations == ["iteration", "1", "2"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_second_ctrl_c_ends_at_once(capsys):
    before = signal.getsignal(signal.SIGINT)
    with StopRequest("Stopping.") as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "\nStopping. Press Ctrl-C again to quit at once.\n"
