import errno
import json

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from klppo_compile.exit_codes import BadInputError, CannotError, MissingRequirementError
from klppo_compile.training import files
from klppo_compile.training.loading import load_run
from klppo_compile.training.metrics import read_metrics
from klppo_compile.training.run_folder import RunFolder
from klppo_compile.training.settings import TrainSettings
from klppo_compile.training.train import resume, train
from tests import mirror_environments
from tests.training_cases import FILES, metrics_of, same_files, settings_for


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": 10**400}, "steps must be at most 1,000,000,000,000,000; got 1000"),
        ({"num_envs": -1}, "num_envs must be at least 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"dtarg": float("inf")}, "dtarg must be positive and finite"),
        ({"dtarg": 1e-50}, "dtarg must be positive and finite, in float32 too; got 1e-50"),
        ({"dtarg": 1e39}, "dtarg must be positive and finite, in float32 too"),
        ({"entropy_coef": 1e39}, "entropy_coef must be 0 or more, and finite, in float32 too"),
        ({"horizon": 10**12}, r"num_envs \* horizon, the rows of a rollout, must be at most"),
        ({"gamma": 1.5}, "gamma must be from 0 to 1"),
        ({"gamma": 10**400}, "gamma must be from 0 to 1"),
        ({"learning_rate": 10**400}, "learning_rate must be positive"),
        ({"entropy_coef": -0.1}, "entropy_coef must be 0 or more"),
        ({"minibatch_size": 100}, r"must divide num_envs \* horizon.*Use 4"),
    ],
)
def test_impossible_settings_are_refused(changes, reason):
    with pytest.raises(BadInputError, match=reason):
        settings_for("Box", **changes)


def test_settings_survive_json():
    settings = settings_for("Box", learning_rate=1.0)
    assert TrainSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert TrainSettings.from_json({**settings.to_json(), "learning_rate": 1}) == settings


# Learning


@pytest.mark.parametrize("kind", mirror_environments.SPACES)
def test_every_kind_of_action_is_learnt(kind, tmp_path):
    settings = settings_for(kind, steps=8_000, num_envs=8, epochs=4)
    reported = []
    result = train(settings, tmp_path / "run", report=reported.append)
    best = mirror_environments.LENGTH * (0.75 if kind == "Discrete" else 1.0)
    assert reported[0].return_mean < 0.75 * best
    assert result.after.mean > 0.93 * best


def test_image_observations_train(tmp_path):
    train(settings_for("Image"), tmp_path / "run")
    assert load_run(tmp_path / "run").example["observation"].shape == (128, 2, 3)


def test_rollouts_of_one_row_train(tmp_path):
    one = settings_for("Box", steps=2, num_envs=1, horizon=1, minibatch_size=1)
    assert train(one, tmp_path / "run").finished


@pytest.mark.parametrize("env", ["Acrobot-v1", "Pendulum-v1", "InvertedPendulum-v5"])
def test_known_environments_train(env, tmp_path):
    result = train(settings_for(env, steps=128), tmp_path / "run")
    assert result.finished
    assert np.isfinite(result.after.mean)


def test_compiled_and_eager_training_agree(tmp_path):
    eager = train(settings_for("Box"), tmp_path / "eager")
    compiled = train(settings_for("Box", compile=True), tmp_path / "compiled")
    for name in ("kl_mean", "beta", "loss_critic", "entropy", "return_mean"):
        assert getattr(compiled.last, name) == pytest.approx(getattr(eager.last, name), rel=1e-3)


def test_the_seed_decides_everything(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        torch.manual_seed(len(name))
        train(settings_for("Box", seed=seed), tmp_path / name)
    assert same_files(tmp_path / "first", tmp_path / "again")
    assert metrics_of(tmp_path / "first") == metrics_of(tmp_path / "again")
    assert not same_files(tmp_path / "first", tmp_path / "other", ("last",))


def test_the_caller_keeps_its_torch_state(tmp_path):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(settings_for("Box", steps=128), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


# What can't be trained


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BadInputError, match="new or empty"):
        train(settings_for("Box"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failed_run_leaves_nothing(tmp_path):
    with pytest.raises(CannotError, match="every reward of an evaluation must be finite"):
        train(settings_for("Broken"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_environment_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInputError, match="CartPol-v1"):
        train(settings_for("CartPol-v1"), tmp_path / "run")
    with pytest.raises(BadInputError, match="no_such_module"):
        train(settings_for("no_such_module:Thing-v0"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_said_and_keeps_what_was_saved(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def on_the_second(row):
        if row.iteration == 2:
            monkeypatch.setattr(files, "save", full)

    reason = r"safetensors must be writable; got No space left.* saved before is in .*run; --resume"
    with pytest.raises(CannotError, match=reason):
        train(settings_for("Box"), tmp_path / "run", report=on_the_second)
    monkeypatch.undo()
    assert load_run(tmp_path / "run", "last").example.shape == (128,)
    assert resume(tmp_path / "run").finished


def test_a_rollout_that_memory_does_not_hold_is_said(tmp_path, monkeypatch):
    def small(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def after_the_first(_):
        monkeypatch.setattr(torch, "empty", small)

    reason = r"32 steps of 4 environments do not\. Give shorter .* saved before is in .*run"
    with pytest.raises(CannotError, match=reason):
        train(settings_for("Box"), tmp_path / "run", report=after_the_first)
    monkeypatch.undo()
    assert resume(tmp_path / "run").finished


@pytest.mark.parametrize("save", ["write_rollout", "write_checkpoint", "write_summary"])
def test_a_first_save_that_fails_leaves_nothing_and_says_so(save, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        with files.replacing(tmp_path / "run" / "file") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, save, full)
    with pytest.raises(CannotError, match=r"No space left on device\. Make .*\. Nothing is left"):
        train(settings_for("Box"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert train(settings_for("Box", steps=128), tmp_path / "run").finished


def test_a_run_that_is_killed_in_its_first_save_keeps_only_what_others_wrote(tmp_path, monkeypatch):
    def quit_at_once(*args):
        (tmp_path / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_summary", quit_at_once)
    with pytest.raises(KeyboardInterrupt):
        train(settings_for("Box"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_takes_no_config_is_not_left_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(BadInputError, match=r"config.json must be writable; got No space left"):
        train(settings_for("Box"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_last_evaluation_that_fails_keeps_the_trained_policy(tmp_path, monkeypatch):
    def on_the_last(row):
        if row.iteration == 3:
            monkeypatch.setattr(mirror_environments.Mirror, "reset", None)

    with pytest.raises(CannotError, match=r"its reset gave TypeError.*--resume goes on from there"):
        train(settings_for("Box"), tmp_path / "run", report=on_the_last)
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"] == 3
    assert resume(tmp_path / "run", steps=500).last.iteration == 4


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def make(*args, **kwargs):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(MissingRequirementError, match=r"MuJoCo is not.*klppo-compile\[train\]"):
        train(settings_for("InvertedPendulum-v5"), tmp_path / "run")


# Stopping and resuming


def stopped_run(folder, settings, iterations):
    """Train until `iterations` have been reported, then stop."""
    reported = []
    result = train(
        settings, folder, report=reported.append, should_stop=lambda: len(reported) == iterations
    )
    assert not result.finished
    assert result.after is None
    return reported


def test_a_stopped_run_is_complete_and_goes_on(tmp_path):
    settings = settings_for("MultiBinary", steps=5 * 128)
    stopped_run(tmp_path / "run", settings, 2)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    stopped = load_run(tmp_path / "run", "last")
    reported = []
    result = resume(tmp_path / "run", report=reported.append)
    assert result.finished
    assert [row.iteration for row in reported] == [3, 4, 5]
    rows = read_metrics(tmp_path / "run" / "metrics.csv", 5)
    assert rows[2:] == reported
    assert rows[2].learning_rate == pytest.approx(settings.learning_rate * (1 - 0.9 * 2 / 5))
    assert rows[2].seconds > rows[1].seconds
    # The statistics of both stretches, less the last rollout, which is taken in before a next one.
    count = "module.0.module.0"
    assert stopped.actor.get_submodule(count).count == 128
    assert load_run(tmp_path / "run", "last").actor.get_submodule(count).count == 4 * 128


def test_a_resumed_run_has_everything_back(tmp_path):
    settings = settings_for("Box", steps=4 * 128)
    for name in ("one", "two"):
        stopped_run(tmp_path / name, settings, 2)
        resume(tmp_path / name)
    assert metrics_of(tmp_path / "one") == metrics_of(tmp_path / "two")
    assert same_files(tmp_path / "one", tmp_path / "two")
    # Adam's count, of 3 or more optimiser steps per iteration in both stretches.
    state = load_file(tmp_path / "one" / "resume.safetensors")
    assert state["optimizer.0.step"] == 4 * settings.epochs * 2
    assert state["reward.count"] == 4 * 128


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    train(settings_for("Box"), tmp_path / "run")
    with pytest.raises(BadInputError, match=r"more than the run already has; got 384 against 384"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run", steps=500).last.step == 512
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["steps"] == 500


def test_rows_beyond_the_last_save_are_dropped(tmp_path):
    stopped_run(tmp_path / "run", settings_for("Box"), 2)
    metrics = tmp_path / "run" / "metrics.csv"
    with metrics.open("a") as file:
        file.write("384,3,1,1,1,1,1,1,1,1,1\n512,4,1,1")
    resume(tmp_path / "run")
    assert [row["iteration"] for row in metrics_of(tmp_path / "run")] == ["1", "2", "3"]
