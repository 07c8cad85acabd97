import errno
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from klppo_compile.exit_codes import BadInputError, CannotError
from klppo_compile.training.loading import load_run
from klppo_compile.training.metrics import COLUMNS, read_metrics
from klppo_compile.training.run_folder import RunFolder
from klppo_compile.training.train import resume, train
from tests.training_cases import FILES, settings_for


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on multi-discrete actions, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    reported = []
    result = train(settings_for("MultiDiscrete"), folder, report=reported.append)
    return folder, result, reported


def test_a_run_folder_is_complete(finished):
    folder, result, reported = finished
    assert {path.name for path in folder.iterdir()} == FILES
    rows = read_metrics(folder / "metrics.csv", 3)
    assert rows == reported
    assert rows[-1] == result.last
    assert [row.step for row in rows] == [128, 256, 384]
    assert all(np.isfinite(list(vars(row).values())).all() for row in rows)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["mean"] == result.before.mean
    assert summary["after"]["mean"] == result.after.mean


def test_the_table_of_metrics_is_frozen():
    assert COLUMNS == (
        "step",
        "iteration",
        "return_mean",
        "kl_mean",
        "beta",
        "entropy",
        "loss_objective",
        "loss_critic",
        "explained_variance",
        "learning_rate",
        "seconds",
    )


def test_a_run_loads_without_its_environment(finished, monkeypatch):
    folder, _, reported = finished
    monkeypatch.setattr(gymnasium, "make", None)
    run = load_run(folder, "last")
    outputs = run.loss(run.example)
    # The rollout is the one that the last update learnt from, under the same normaliser.
    assert 0 < outputs["kl"].mean() < 0.5
    assert run.actor.get_submodule("module.0.module.0").count == 256
    assert float(run.loss.beta) == pytest.approx(reported[-1].beta)
    assert run.example["logits"].shape == (128, 2, 4)
    assert run.example["logits"].isneginf().sum() == 2 * 128
    early = load_run(folder, "early")
    drift = early.loss(run.example)["kl"].mean()
    assert drift != outputs["kl"].mean()


def test_checkpoints_are_the_state_dict_of_the_loss(finished):
    folder, *_ = finished
    run = load_run(folder, "best")
    state = load_file(folder / "best.safetensors")
    assert state.keys() == run.loss.state_dict().keys()


@pytest.mark.parametrize("kind", ["Box", "MultiDiscrete", "MultiBinary"])
def test_the_rollout_is_what_tensordict_writes(kind, tmp_path):
    train(settings_for(kind, steps=128), tmp_path / "run")
    rollout = TensorDict.load_memmap(tmp_path / "run" / "rollout")
    rollout.clone().memmap(tmp_path / "theirs")
    ours, theirs = contents(tmp_path / "run" / "rollout"), contents(tmp_path / "theirs")
    assert [path.name for path in ours] == [path.name for path in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if mine.name == "meta.json":
            assert json.loads(ours[mine]) == json.loads(theirs[other])
        else:
            assert ours[mine] == theirs[other]


@contextmanager
def largest_file(size):
    """Limit the size of the files that this process writes: the nearest to a full disk.

    No longer than that: what pytest prints may go to a file too.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_rollout_that_finds_no_room_is_refused_and_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    kept = TensorDict(action=torch.zeros(3), batch_size=[3])
    folder.write_rollout(kept)
    reason = "rollout must be writable; got File too large"
    with pytest.raises(CannotError, match=reason), largest_file(1000):
        folder.write_rollout(TensorDict(action=torch.zeros(300), batch_size=[300]))
    assert [path.name for path in tmp_path.iterdir()] == ["rollout"]
    assert (TensorDict.load_memmap(folder.rollout) == kept).all()


@pytest.mark.parametrize("interrupted", [1, 2])
def test_a_rollout_outlives_an_interrupt_of_its_replacement(interrupted, tmp_path, monkeypatch):
    folder, rename, calls = RunFolder(tmp_path), Path.rename, []
    kept = TensorDict(action=torch.zeros(3), batch_size=[3])
    folder.write_rollout(kept)

    def interrupt(self, target):
        calls.append(self)
        if len(calls) == 2 and interrupted == 1:
            raise KeyboardInterrupt
        rename(self, target)
        if len(calls) == 1 and interrupted == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.write_rollout(TensorDict(action=torch.ones(3), batch_size=[3]))
    assert [path.name for path in tmp_path.iterdir()] == ["rollout"]
    assert (TensorDict.load_memmap(folder.rollout) == kept).all()


def test_leftovers_that_cannot_be_removed_are_said(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tmp_path / ".best.safetensors.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CannotError, match=rf"{tmp_path} must be writable; got Permission denied"):
        RunFolder(tmp_path).sweep()


# Folders that were damaged


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(path, change):
    values = load_file(path)
    change(values)
    save_file(values, path)


def spoil_parameter(values):
    values[next(name for name in values if name.endswith("weight"))][0, 0] = torch.nan


def reshape_parameter(values):
    name = next(name for name in values if name.endswith("weight"))
    values[name] = values[name].T.contiguous()


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "no\\s+config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json must be a JSON object"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 100_000), "must be a JSON object"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "got a list"),
    "other format": (lambda f: edit_json(f / "config.json", lambda v: v.update(format=9)), "got 9"),
    "unknown setting": (
        lambda f: edit_json(f / "config.json", lambda v: v["settings"].update(x=1)),
        "x is unknown",
    ),
    "setting of another type": (
        lambda f: edit_json(f / "config.json", lambda v: v["settings"].update(steps="9")),
        "setting steps must be",
    ),
    "impossible setting": (
        lambda f: edit_json(f / "config.json", lambda v: v["settings"].update(epochs=0)),
        r"epochs must be at least 1; got 0\. Give a positive number\. Give an intact run folder\.$",
    ),
    "no spaces": (
        lambda f: edit_json(f / "config.json", lambda v: v["spaces"].pop("action")),
        "'action'",
    ),
    "contradictory spaces": (
        lambda f: edit_json(f / "config.json", lambda v: v["spaces"]["action"].update(counts=[2])),
        "components",
    ),
    "other network": (
        lambda f: edit_json(
            f / "config.json", lambda v: v["spaces"]["observation"].update(shape=[7])
        ),
        "must fit the config.json",
    ),
    "no checkpoint": (lambda f: (f / "best.safetensors").unlink(), "best.safetensors must be"),
    "truncated checkpoint": (truncate("best.safetensors"), "best.safetensors must be a safeten"),
    "parameter missing": (
        lambda f: edit_tensors(f / "best.safetensors", lambda v: v.pop("beta")),
        "lacks beta",
    ),
    "parameter of another shape": (
        lambda f: edit_tensors(f / "best.safetensors", reshape_parameter),
        r"weight must be torch.float32 \[",
    ),
    "parameter not finite": (
        lambda f: edit_tensors(f / "best.safetensors", spoil_parameter),
        "has NaN or infinity",
    ),
    "no rollout": (
        lambda f: (f / "rollout").rename(f / "elsewhere"),
        r"rollout must be .* No such file .*: '.*meta.json'\. Give an intact run folder\.$",
    ),
    "rollout without a key": (
        lambda f: TensorDict(action=torch.zeros(3)).memmap(f / "rollout"),
        "got no observation",
    ),
    "truncated rollout": (truncate("rollout/observation.memmap"), "rollout must be"),
    "rollout of no rows": (
        lambda f: (f / "rollout" / "action.memmap").write_bytes(b""),
        "no rows in action",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(name, finished, tmp_path):
    damage, message = DAMAGES[name]
    folder = copy_of(finished[0], tmp_path)
    damage(folder)
    with pytest.raises(BadInputError, match=message):
        load_run(folder)


RESUME_DAMAGES = {
    "no state": (lambda f: (f / "resume.safetensors").unlink(), "resume.safetensors must be"),
    "truncated state": (truncate("resume.safetensors"), "resume.safetensors must be"),
    "no counters": (
        lambda f: edit_tensors(f / "resume.safetensors", dict.copy),
        "counters",
    ),
    "no early checkpoint": (lambda f: (f / "early.safetensors").unlink(), "early.safetensors must"),
    "no metrics": (lambda f: (f / "metrics.csv").unlink(), "metrics.csv must hold"),
    "other metrics": (lambda f: (f / "metrics.csv").write_text("a,b\n1,2\n"), "columns"),
    "metrics cut short": (truncate("metrics.csv"), "metrics.csv must hold"),
    "no summary": (lambda f: (f / "summary.json").unlink(), "summary.json must be"),
    "summary of something else": (
        lambda f: (f / "summary.json").write_text('{"before": {"mean": 1}}'),
        "summary.json must be as klppo train wrote it",
    ),
    "summary of words": (
        lambda f: edit_json(f / "summary.json", lambda v: v["before"].update(mean="x")),
        "numbers expected, got 'x'",
    ),
    "summary of NaN": (
        lambda f: edit_json(f / "summary.json", lambda v: v["before"].update(std=float("nan"))),
        "numbers expected, got nan",
    ),
    "summary out of range": (
        lambda f: edit_json(f / "summary.json", lambda v: v["before"].update(mean=10**400)),
        "numbers expected, got 1000",
    ),
    "other environment": (
        lambda f: edit_json(f / "config.json", lambda v: v["settings"].update(env="CartPole-v1")),
        "other spaces",
    ),
}


@pytest.mark.parametrize("name", RESUME_DAMAGES)
def test_a_damaged_folder_is_not_resumed_and_left_alone(name, finished, tmp_path):
    damage, message = RESUME_DAMAGES[name]
    folder = copy_of(finished[0], tmp_path)
    damage(folder)
    before = contents(folder)
    with pytest.raises(BadInputError, match=message):
        resume(folder, steps=10_000)
    assert contents(folder) == before


def test_a_run_that_was_killed_before_its_first_save_says_so(finished, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "metrics.csv"):
        shutil.copy(finished[0] / name, folder)
    with pytest.raises(BadInputError, match=rf"got {folder}, whose run has saved nothing\. Delete"):
        resume(folder, steps=10_000)
    with pytest.raises(BadInputError, match=r"Give another --out\.$"):
        train(settings_for("MultiDiscrete"), folder)
    with pytest.raises(BadInputError, match="or --resume to continue"):
        train(settings_for("MultiDiscrete"), finished[0])


def test_unknown_checkpoint_is_refused(finished):
    with pytest.raises(BadInputError, match="early, best and last; got 'final'"):
        load_run(finished[0], "final")


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "run")


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
