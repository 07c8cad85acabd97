"""One run folder and several processes: at the same time, or one after another that was killed."""

import shutil
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from klppo_compile.cli import run
from klppo_compile.commands.train import _conclude
from klppo_compile.exit_codes import BadInputError, ExitCode
from klppo_compile.training.files import held
from klppo_compile.training.run_folder import RunFolder
from klppo_compile.training.train import resume, train
from tests.training_cases import finished_run, settings_for

SMALL = ["--steps=128", "--num-envs=4", "--horizon=32", "--epochs=1", "--minibatch-size=64"]
locks = pytest.importorskip("fcntl", reason="no locks on folders here")


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nobody_else_trains_in_the_folder_of_a_run(tmp_path):
    folder = tmp_path / "run"
    refused = []

    def meddle(_):
        before = contents(folder)
        for other in (
            lambda: train(settings_for("Box"), folder),
            lambda: resume(folder, steps=10_000),
        ):
            with pytest.raises(BadInputError, match=rf"is training in {folder}\. Wait"):
                other()
            refused.append(contents(folder) == before)

    train(settings_for("Box", steps=256), folder, report=meddle)
    assert refused == [True] * 4
    # And the next one may.
    assert resume(folder, steps=384).finished


def test_a_folder_that_another_begins_in_is_left_alone(tmp_path, capsys):
    arguments = ["train", "--env=tests/Box-v0", f"--out={tmp_path}", "--no-compile", *SMALL]
    with held(tmp_path):
        assert run(arguments) == ExitCode.BAD_INPUT
    assert "another process is training in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_locks_is_trained_in_all_the_same(tmp_path, monkeypatch):
    def none(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(locks, "flock", none)
    assert train(settings_for("Box", steps=128), tmp_path / "run").finished


def test_a_rollout_that_was_moved_aside_by_a_killed_process_is_put_back(tmp_path):
    folder = RunFolder(tmp_path)
    kept = TensorDict(action=torch.zeros(3), batch_size=[3])
    folder.write_rollout(kept)
    folder.rollout.rename(tmp_path / ".rollout.1.old")
    folder.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["rollout"]
    assert (TensorDict.load_memmap(folder.rollout) == kept).all()
    # But not over a newer one.
    shutil.copytree(folder.rollout, tmp_path / ".rollout.1.old")
    newer = TensorDict(action=torch.ones(3), batch_size=[3])
    folder.write_rollout(newer)
    folder.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["rollout"]
    assert (TensorDict.load_memmap(folder.rollout) == newer).all()


def test_a_run_killed_at_the_end_of_its_first_save_has_saved_nothing(tmp_path):
    folder = tmp_path / "run"
    train(settings_for("Box", steps=128), folder)
    (folder / "resume.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"whose run has saved nothing\. Delete the folder"):
        resume(folder, steps=10_000)
    (folder / "summary.json").write_text("{")  # damage is another matter
    with pytest.raises(BadInputError, match=r"summary\.json must be"):
        resume(folder, steps=10_000)


# Names of folders


def test_the_command_that_continues_a_run_can_be_pasted(capsys):
    result = finished_run(Path("my runs; 1"))
    result.after, result.finished = None, False
    assert _conclude(settings_for("Box"), result) == ExitCode.INTERRUPTED
    assert "klppo train --resume 'my runs; 1'\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train --env tests/Box-v0 --no-compile --out", "demo --out"])
def test_a_name_that_is_no_text_is_refused_at_the_start(command, tmp_path, capsys):
    # As the shell hands over a byte that is none.
    arguments = [*command.split(), f"{tmp_path}/r\udcff", "--steps=128"]
    assert run(arguments) == ExitCode.BAD_INPUT
    assert "must be valid UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
