"""Files and sidecars edited by hand: one clear line, and never a defect of ours."""

import json
from pathlib import Path
from types import NoneType

import numpy as np
import onnx
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from klppo_compile import KLPENPPOLoss
from klppo_compile.cli import run
from klppo_compile.exit_codes import BadInputError, CannotError, ExitCode
from klppo_compile.export import export_loss
from klppo_compile.export.inspection import inspect_file
from klppo_compile.export.manifest import METADATA_KEY, sidecar_path
from klppo_compile.export.runtime import open_file
from klppo_compile.export.runtime_errors import of_running
from tests.builders import CASES, actor_of
from tests.export_cases import collected, loss_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with loss.onnx, its state and rollout.npz."""
    folder = tmp_path_factory.mktemp("tampering")
    loss, data = loss_of("Categorical")
    export_loss(loss, data, folder / "loss.onnx", checked=False)
    torch.save(dict(loss.state_dict()), folder / "state.pt")
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
        (put("head", []), "got head"),
        (put("inputs", 3, "role", "mask"), "got inputs of the past policy '[]'"),
        (put("inputs", 0, "key", 5), "got inputs"),
        (put("inputs", 0, "shape", [-1]), "got inputs"),
        (put("inputs", 0, "dtype", "float64"), "is tensor(float) ['batch', 4], not tensor(double)"),
        (put("inputs", 0, "name", "speed"), "must have the inputs and outputs"),
        (put("inputs", 0, "shape", [5]), "not tensor(float) ['batch', 5]"),
        (put("batch", 10**30), "is tensor(float) ['batch', 4], not tensor(float) [1"),
        (put("batch_dims", 1.0), "got batch_dims '1.0'"),
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
        ("[]", "got list, not an object"),
        ("{}", "got no 'sha256'"),
        ('{"sha256": "00"}', "got no 'tolerance_met'"),
        ('{"sha256": 0, "tolerance_met": null}', "got sha256 0"),
        ('{"sha256": "00", "tolerance_met": 1}', "it was truncated or changed"),
        ('{"sha256": "00", "tolerance_met": "x"}', "got tolerance_met 'x'"),
        ('{"sha256": "00", "tolerance_met": NaN}', "got tolerance_met nan"),
    ],
)
def test_an_edited_sidecar_is_refused(text, reason, place, capsys):
    path = place / "copy.onnx"
    path.write_bytes((place / "loss.onnx").read_bytes())
    sidecar_path(path).write_text(text)
    for command in (["evaluate", str(path), "--data", "x"], ["inspect", str(path)]):
        assert run(command) == ExitCode.BAD_INPUT
        assert reason in capsys.readouterr().err


def test_a_weight_edited_by_hand_is_found_by_a_check_against_the_target(place, tmp_path, capsys):
    """Its manifest, hash of the parameters and all, is still the old one."""
    proto = onnx.load_model_from_string((place / "loss.onnx").read_bytes())
    weight = next(x for x in proto.graph.initializer if "actor" in x.name and len(x.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.01
    weight.raw_data = values.tobytes()
    path = tmp_path / "bent.onnx"
    path.write_bytes(proto.SerializeToString())
    words = ["check", str(path), "--data", str(place / "rollout.npz"), "--checkpoint"]
    words += [str(place / "state.pt"), "--target", "tests.export_cases:categorical_loss"]
    assert run(words) == ExitCode.FAILED
    assert "where eager gives" in capsys.readouterr().err
    sidecar_path(path).write_bytes(sidecar_path(place / "loss.onnx").read_bytes())
    assert run(words) == ExitCode.BAD_INPUT
    assert "it was truncated or changed" in capsys.readouterr().err


def test_a_file_that_was_never_checked_says_so_everywhere(place, capsys):
    path, data = str(place / "loss.onnx"), ["--data", str(place / "rollout.npz")]
    sidecar = json.loads(sidecar_path(place / "loss.onnx").read_text())
    assert sidecar["check"].startswith("unchecked: it was exported with --no-check, never compared")
    assert sidecar["tolerance_met"] is sidecar["errors"] is None
    for command in (["evaluate", path, *data], ["compare", path, path, *data], ["inspect", path]):
        assert run(command) == ExitCode.GOOD
        output = capsys.readouterr()
        assert f"Warning: {path} is unchecked: it was exported with --no-check" in (
            output.out + output.err
        )
    assert "1e-05, never checked" in output.out
    assert run(["check", path, *data, "--json"]) == ExitCode.GOOD
    found = json.loads(capsys.readouterr().out)
    assert "never compared with eager PyTorch" in found["notes"][0]
    assert (found["verified"], found["tolerance_met"]) == (True, None)
    copy = place / "alone.onnx"
    copy.write_bytes((place / "loss.onnx").read_bytes())
    for command in (["evaluate", str(copy), *data], ["inspect", str(copy)]):
        assert run(command) == ExitCode.GOOD
        output = capsys.readouterr()
        assert "is unverified: no sidecar says that these bytes" in output.out + output.err


def test_a_picture_of_an_unknown_kind_is_refused(place, tmp_path, capsys):
    command = ["evaluate", str(place / "loss.onnx"), "--data", str(place / "rollout.npz")]
    assert run([*command, "--picture", str(tmp_path / "kl.xyz")]) == ExitCode.BAD_INPUT
    assert "by its ending; got kl.xyz" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_gate_says_when_rows_are_not_finite(place, tmp_path, capsys):
    with np.load(place / "rollout.npz") as stored:
        values = dict(stored)
    values["action_log_prob"][5] = -1e30  # finite, but its ratio is not
    np.savez(tmp_path / "wrong.npz", **values)
    command = ["evaluate", str(place / "loss.onnx"), "--data", str(tmp_path / "wrong.npz")]
    assert run([*command, "--max-kl", "9"]) == ExitCode.FAILED
    assert "<= 9, 1 rows are not finite" in capsys.readouterr().out


def test_weights_in_another_file_are_not_read(tmp_path, monkeypatch):
    """Wherever they lie: beside the file, or in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    loss, data = loss_of("Categorical")
    export_loss(loss, data, Path("loss.onnx"), checked=False)
    model = onnx.load_model("loss.onnx")
    weight = max(model.graph.initializer, key=lambda x: len(x.raw_data))
    Path("weights.bin").write_bytes(bytes(len(weight.raw_data)))
    size = str(len(weight.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", size)):
        weight.external_data.add(key=key, value=value)
    Path("outside.onnx").write_bytes(model.SerializeToString())
    for read in (open_file, inspect_file):
        with pytest.raises(BadInputError, match=r"its own weights; .* other files"):
            read(Path("outside.onnx"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--max-kl nan", "finite number; got nan"),
        ("--max-kl inf --json", "finite number; got inf"),
        ("--set beta=-1", "at least 0"),
        ("--set beta=1e39", "at least 0"),
        ("--set beta=1 --set beta=2", "beta twice"),
        ("--out loss.onnx/x.json", "must be writable"),
        ("--picture nowhere/x.png --out kept.json", "must be writable"),
    ],
)
def test_impossible_words_are_refused_before_anything_is_written(place, words, said, capsys):
    file, data = str(place / "loss.onnx"), str(place / "rollout.npz")
    before = sorted(place.iterdir())
    code = run(["evaluate", file, "--data", data, *words.replace("loss.onnx", file).split()])
    assert code == ExitCode.BAD_INPUT
    assert said in capsys.readouterr().err
    assert sorted(place.iterdir()) == before
    assert not Path("kept.json").exists()


@pytest.mark.parametrize(("name", "value"), [("action", -1), ("action", 99), ("logits", np.inf)])
def test_a_row_that_no_policy_recorded_is_named(place, tmp_path, name, value, capsys):
    arrays = dict(np.load(place / "rollout.npz"))
    arrays[name][3] = value
    np.savez(tmp_path / "bad.npz", **arrays)
    for command in ("evaluate", "check"):
        words = [command, str(place / "loss.onnx"), "--data", str(tmp_path / "bad.npz")]
        assert run(words) == ExitCode.BAD_INPUT
        error = capsys.readouterr().err
        assert f"'{name}'" in error
        assert "row 3" in error


def test_an_index_that_an_embedding_has_not_is_an_error_of_the_data(tmp_path, capfd):
    actor = actor_of(CASES["Categorical"], net=torch.nn.Embedding(10, 5))
    critic = TensorDictModule(torch.nn.Embedding(10, 1), ["observation"], ["state_value"])
    data = TensorDict({"observation": torch.arange(48) % 10}, [48])
    loss, data = KLPENPPOLoss(actor, critic), collected(actor, critic, data)
    file, folder = str(tmp_path / "loss.onnx"), str(tmp_path / "rollout")
    export_loss(loss, data, file, checked=False)
    data["observation"][3] = 99
    data.memmap(folder)
    for command in (["evaluate", file], ["check", file], ["compare", file, file]):
        assert run([*command, "--data", folder]) == ExitCode.BAD_INPUT
        lines = capfd.readouterr().err.splitlines()
        (error,) = [line for line in lines if not line.startswith(("Warning: ", file))]
        assert error.startswith(f"Error: the data must be values that the networks of {file} take")
        assert "Gather: indices element out of data bounds, idx=99 must be within" in error
    for graph in ("loss", "policy"):
        with pytest.raises(BadInputError, match=r"every index .* got: index out of range in self"):
            export_loss(loss, data, file, graph=graph)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("/bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 8", CannotError),
        ("CUDA failure 700: an illegal memory access was encountered", NoneType),
        ("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED", NoneType),
        ("/gather_elements.cc:150 Out of range value in index tensor", BadInputError),
    ],
)
def test_a_node_fails_for_its_data_unless_it_says_otherwise(said, kind):
    text = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node."
    assert type(of_running(Exception(f"{text} Name:'a' Status Message: {said}\n"), "it")) is kind
    assert of_running(Exception(said), "it") is None


def test_a_batch_that_memory_does_not_hold_is_refused(tmp_path):
    loss, data = loss_of("Categorical")
    data["frames"] = torch.zeros(1, 1).expand(48, 2**32)
    with pytest.raises(BadInputError, match=r"a batch of 1,048,576 rows .* must fit in memory"):
        export_loss(loss, data, tmp_path / "loss.onnx", batch=2**20)


def test_an_example_with_nan_is_refused(tmp_path):
    loss, data = loss_of("Categorical")
    data["advantage"][2] = np.nan
    with pytest.raises(BadInputError, match="'advantage' has NaN in row 2"):
        export_loss(loss, data, tmp_path / "loss.onnx")
    assert list(tmp_path.iterdir()) == []


def test_parts_of_two_rollouts_of_one_length_do_not_merge(place, tmp_path, capsys):
    arrays = dict(np.load(place / "rollout.npz"))
    np.savez(tmp_path / "other.npz", **{**arrays, "advantage": 5 * arrays["advantage"]})
    file, half = str(place / "loss.onnx"), str(len(arrays["advantage"]) // 2)
    for data, rows in ((place / "rollout.npz", f":{half}"), (tmp_path / "other.npz", f"{half}:")):
        saved = str(tmp_path / f"{data.stem}.json")
        words = ["evaluate", file, "--data", str(data), "--rows", rows, "--out", saved]
        assert run(words) == ExitCode.GOOD
    parts = [str(tmp_path / f"{name}.json") for name in ("rollout", "other")]
    assert run(["merge", *parts]) == ExitCode.BAD_INPUT
    assert "the same rollout ends" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("ranges", []), "got ranges []"),
        (put("ranges", [[3, 3]]), "got ranges [(3, 3)]"),
        (put("ranges", [[0, -5]]), "got ranges [(0, -5)]"),
        (put("schema", 2), "got no object of schema 4"),
        (put("settings", {}), "got settings.reduction 'None'"),
        (lambda values: values.pop("totals"), "got an object without 'totals'"),
        (lambda values: values["totals"].pop("kl"), "got totals that it can't read (KeyError"),
        (put("totals", 3), "got totals that it can't read"),
        (put("totals", "critic", "total", None), "(TypeError None is no number)"),
        (put("totals", "kl_histogram", {"9": 10**30}), "got totals that it can't read (Overflow"),
    ],
)
def test_a_result_edited_by_hand_is_refused(edit, reason, place, tmp_path, capsys):
    path = tmp_path / "part.json"
    data = ["--data", str(place / "rollout.npz"), "--out", str(path)]
    assert run(["evaluate", str(place / "loss.onnx"), *data]) == ExitCode.GOOD
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values))
    assert run(["merge", str(path)]) == ExitCode.BAD_INPUT
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["3", "[]", "{", "null"])
def test_what_is_no_result_is_refused(text, tmp_path, capsys):
    (tmp_path / "part.json").write_text(text)
    assert run(["merge", str(tmp_path / "part.json")]) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert "must be a result that klppo evaluate or compare --out saved; got" in error
    assert "Error'" not in error
