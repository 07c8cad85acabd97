"""A run folder whose numbers were edited: refused by name, before anything in it is changed."""

import json
import shutil

import gymnasium
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError, ExitCode
from klppo_compile.training.loading import load_run
from klppo_compile.training.train import resume, train
from tests.mirror_environments import Mirror
from tests.training_cases import settings_for


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "saved"
    train(settings_for("Box", steps=256), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def refused(folder, match, call=None):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(BadInputError, match=match) as caught:
        call() if call else resume(folder, steps=10_000)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def edit_state(folder, change):
    """Change the tensors and counters that a run resumes from."""
    path = folder / "resume.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        counters = json.loads(file.metadata()["counters"])
    change(tensors, counters)
    save_file(tensors, path, {"counters": json.dumps(counters)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iteration", -5),
        ("iteration", 0),
        ("iteration", 1.9),
        ("iteration", float("inf")),
        ("iteration", True),
        ("seconds", float("nan")),
        ("seconds", -1.0),
        ("seconds", 10**400),
        ("best_return", float("nan")),
        ("recent", [float("inf")]),
        ("recent", [10**400]),
        ("recent", ["1"]),
    ],
)
def test_counters_that_no_run_has_are_not_resumed(name, value, folder):
    edit_state(folder, lambda _, counters: counters.update({name: value}))
    refused(folder, r"resume\.safetensors must be as klppo train wrote it")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pending.mean", lambda x: x * torch.nan),
        ("pending.mean", torch.Tensor.double),
        ("pending.var", lambda x: -1 - x),
        ("reward.var", lambda x: -1 - x),
        ("reward.count", torch.neg),
        ("optimizer.0.step", torch.neg),
        ("optimizer.0.step", lambda x: x * torch.inf),
        ("optimizer.0.exp_avg", lambda x: x * torch.nan),
        ("optimizer.0.exp_avg", torch.Tensor.double),
        ("optimizer.0.exp_avg_sq", lambda x: -1 - x),
        ("random.torch", lambda x: x[:10].clone()),
    ],
)
def test_tensors_that_no_run_has_are_not_resumed(name, change, folder):
    edit_state(folder, lambda tensors, _: tensors.update({name: change(tensors[name])}))
    refused(folder, r"resume\.safetensors must (be as klppo train wrote it|hold statistics)")


def edit_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("change", [{"horizon": 64}, {"num_envs": 2}])
def test_rollouts_of_another_size_are_not_resumed(change, folder):
    edit_config(folder, lambda values: values["settings"].update(change))
    refused(folder, r"metrics\.csv must fit the config\.json")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("\n128,1,", "\n129,1,", "iteration 1 is at step 129"),
        ("\n128,1,", f"\n{'9' * 400},1,", r"iteration 1 is at step 9{20}\."),
        ("\n128,1,", f"\n{'9' * 5000},1,", "must hold one row"),
        ("\n128,1,", f"\n128,1,{'1' * 200_000}", "field larger than field limit"),
    ],
)
def test_metrics_that_no_run_has_are_not_resumed(old, new, match, folder):
    path = folder / "metrics.csv"
    text = path.read_text().replace("\r\n", "\n")
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(folder, match)


def test_a_kl_that_no_run_goes_on_after_is_not_resumed(folder):
    path = folder / "metrics.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows[1][3] = "inf"
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    refused(folder, "numbers that are not finite")


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("action", {"low": [10**400, 0]}),
        ("action", {"dtype": "i4,i4"}),
        ("action", {"kind": "discrete", "counts": [10**12], "start": [0], "low": [], "high": []}),
        ("observation", {"shape": [10**12]}),
        ("observation", {"shape": [2**62, 2**62]}),
        ("observation", {"shape": [-1, -2]}),
    ],
)
def test_spaces_that_no_run_has_are_not_loaded(where, change, folder):
    edit_config(folder, lambda values: values["spaces"][where].update(change))
    refused(folder, r"config\.json must be as klppo train wrote it", lambda: load_run(folder))


def test_an_action_space_of_which_no_machine_holds_a_network_is_refused(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        gymnasium, "make", lambda *_, **__: Mirror(gymnasium.spaces.Discrete(2**40))
    )
    arguments = ["train", "--env=Huge-v0", f"--out={tmp_path / 'run'}", "--no-compile"]
    assert run(arguments) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "the actions need 1,099,511,627,776" in line
    assert not list(tmp_path.iterdir())
