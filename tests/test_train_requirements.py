"""What a machine may lack: said in one line before a run is begun."""

import gymnasium
import pytest
from torch._inductor import config

from klppo_compile.cli import run
from klppo_compile.commands import demo
from klppo_compile.exit_codes import ExitCode, MissingRequirementError
from klppo_compile.export.machine import examine
from klppo_compile.training.train import resume, train
from tests.training_cases import settings_for

TRAIN = "train --env tests/Box-v0 --steps 128 --num-envs 4 --horizon 32 --minibatch-size 64"


def refused(arguments, capsys):
    """The one line of a command that the machine can't run."""
    assert run(arguments.split()) == ExitCode.MISSING
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("command", [TRAIN, "demo --steps 128"])
def test_without_a_compiler_nothing_is_begun(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with config.patch({"cpp.cxx": (None, "/nonexistent")}):
        line = refused(command, capsys)
    assert "C++ compiler" in line
    assert line.endswith("or train without compiling: --no-compile")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_nothing_is_resumed(tmp_path):
    train(settings_for("Box", steps=128), tmp_path / "run")
    with (
        config.patch({"cpp.cxx": (None, "/nonexistent")}),
        pytest.raises(MissingRequirementError, match="--no-compile"),
    ):
        resume(tmp_path / "run", steps=256, compile_graph=True)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    line = refused(TRAIN, capsys)
    assert f"{tmp_path / 'file' / 'cache'}: Not a directory. Name a folder of yours" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_doctor_looks_for_the_compiler():
    assert examine().facts["C++ compiler"]
    with config.patch({"cpp.cxx": (None, "/nonexistent")}):
        found = examine()
    assert found.facts["C++ compiler"] == "none that Inductor finds"
    assert any("apt install g++" in text for text in found.more)


def test_a_demo_of_which_one_environment_is_missing_trains_none(tmp_path, capsys, monkeypatch):
    make = gymnasium.make

    def without_mujoco(env, **options):
        if env == "InvertedPendulum-v5":
            raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")
        return make(env, **options)

    monkeypatch.setattr(gymnasium, "make", without_mujoco)
    monkeypatch.setattr(demo, "watch", None)  # what would train
    line = refused(f"demo --no-compile --out {tmp_path}", capsys)
    assert "klppo-compile[train]" in line
    assert not list(tmp_path.iterdir())
