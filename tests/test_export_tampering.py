"""Files and sidecars edited by hand: one clear line, and never a defect of ours."""

import json

import numpy as np
import onnx
import pytest

from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode
from klppo_compile.export import export_loss
from klppo_compile.export.manifest import METADATA_KEY, sidecar_path
from tests.export_cases import loss_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with loss.onnx and rollout.npz."""
    folder = tmp_path_factory.mktemp("tampering")
    loss, data = loss_of("Categorical")
    export_loss(loss, data, folder / "loss.onnx", checked=False)
    np.savez(folder / "rollout.npz", **{k: x.numpy() for k, x in data.items()})
    return folder


def edited(place, edit):
    """The file with its manifest edited, and without the sidecar that would give it away."""
    proto = onnx.load_model_from_string((place / "loss.onnx").read_bytes())
    (entry,) = [p for p in proto.metadata_props if p.key == METADATA_KEY]
    values = json.loads(entry.value)
    edit(values)
    entry.value = json.dumps(values)
    path = place / "edited.onnx"
    path.write_bytes(proto.SerializeToString())
    return str(path)


def put(*where):
    """An edit: the last of the arguments in the place that the others name."""
    *path, last, value = where

    def edit(values):
        for step in path:
            values = values[step]
        values[last] = value

    return edit


def no_advantage(values):
    values["inputs"] = [s | {"role": s["role"].replace("adv", "m")} for s in values["inputs"]]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("schema", 99), "schema 99, not 1"),
        (put("graph", "actor"), "got graph 'actor'"),
        (put("family", 5), "got family '5'"),
        (put("batch_dims", 7), "got batch_dims '7'"),
        (put("batch", -3), "got batch '-3'"),
        (put("tolerance", "big"), "got tolerance 'big'"),
        (put("versions", 3), "got versions '3'"),
        (put("notes", 5), "'int' object is not iterable"),
        (put("settings", {}), "got settings.reduction 'None'"),
        (put("settings", "normalize_advantage_exclude_dims", ["x"]), "got settings"),
        (put("scalars", {}), "got scalars '[]'"),
        (put("scalars", "beta", "nan"), "got scalars"),
        (put("head", ["nope"]), "got head"),
        (put("inputs", 0, "key", 5), "got inputs"),
        (put("inputs", 0, "shape", [-1]), "got inputs"),
        (put("inputs", 0, "dtype", "float64"), "its observation is tensor(float), not float64"),
        (put("inputs", 0, "name", "speed"), "must have the inputs and outputs"),
        (put("inputs", 0, "shape", [5]), "'observation' must be [B, 5]; got [48, 4]"),
        (no_advantage, "got inputs"),
        (put("outputs", 1, "rows", False), "got outputs"),
        (put("more", 1), "fields ['more']"),
    ],
)
def test_an_edited_manifest_is_refused(edit, reason, place, capsys):
    path = edited(place, edit)
    data = ["--data", str(place / "rollout.npz")]
    assert run(["evaluate", path, *data]) == ExitCode.BAD_INPUT
    assert reason in capsys.readouterr().err
    for command in (["check", path, *data], ["inspect", path]):
        assert run(command) != ExitCode.CANNOT
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "must be the sidecar"),
        ("[]", "got no sha256"),
        ('{"sha256": "00"}', "it was truncated or changed"),
        ('{"sha256": "00", "tolerance_met": "x"}', "got tolerance_met 'x'"),
    ],
)
def test_an_edited_sidecar_is_refused(text, reason, place, capsys):
    path = place / "copy.onnx"
    path.write_bytes((place / "loss.onnx").read_bytes())
    sidecar_path(path).write_text(text)
    for command in (["evaluate", str(path), "--data", "x"], ["inspect", str(path)]):
        assert run(command) == ExitCode.BAD_INPUT
        assert reason in capsys.readouterr().err


def test_a_picture_of_an_unknown_kind_is_refused(place, tmp_path, capsys):
    command = ["evaluate", str(place / "loss.onnx"), "--data", str(place / "rollout.npz")]
    assert run([*command, "--picture", str(tmp_path / "kl.xyz")]) == ExitCode.BAD_INPUT
    assert "by its ending; got kl.xyz" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_says_when_rows_are_not_finite(place, tmp_path, capsys):
    with np.load(place / "rollout.npz") as stored:
        values = dict(stored)
    values["action"][5] = 99
    np.savez(tmp_path / "wrong.npz", **values)
    command = ["evaluate", str(place / "loss.onnx"), "--data", str(tmp_path / "wrong.npz")]
    assert run([*command, "--max-kl", "9"]) == ExitCode.FAILED
    assert "<= 9, 1 rows are not finite" in capsys.readouterr().out
