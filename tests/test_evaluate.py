"""Exported files at work: klppo export, check, evaluate, compare, merge, inspect, doctor."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from klppo_compile.cli import run
from klppo_compile.commands.verdict import LIMITS
from klppo_compile.exit_codes import BadInputError, ExitCode, MissingRequirementError
from klppo_compile.export import export_loss, runtime
from klppo_compile.export.data import open_rollout
from klppo_compile.export.evaluation import evaluate
from klppo_compile.export.gates import GATES
from klppo_compile.export.machine import SMALLEST, examine
from klppo_compile.export.report import report
from klppo_compile.export.runtime import open_file
from klppo_compile.export.totals import Evaluation
from tests.export_cases import categorical_loss, loss_of, masked_rows_loss
from tests.house import ROOT

FACTORY = "tests.export_cases:categorical_loss"
LOSS = {"normalize_advantage": True, "clip_value": 0.2, "beta": 1.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file, another one of a changed policy, and a rollout of 48 rows, in one folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    loss, data = loss_of("Categorical", **LOSS)
    export_loss(loss, data, folder / "old.onnx")
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    export_loss(loss, data, folder / "new.onnx", batch=16, checked=False)
    export_loss(loss, data, folder / "free.onnx", checked=False)
    np.savez(folder / "rollout.npz", **{k: x.numpy() for k, x in data.items()})
    data.memmap(folder / "rollout")
    return SimpleNamespace(folder=folder, loss=loss, data=data)


def run_in(place, *arguments):
    words = [a.format(folder=place.folder) if isinstance(a, str) else str(a) for a in arguments]
    return run(words)


def numbers_of(place, name="free.onnx", **options):
    file = open_file(place.folder / name)
    with open_rollout(place.folder / "rollout.npz") as rollout:
        return evaluate(file, rollout, **options)


# The numbers


@pytest.mark.parametrize("name", ["free.onnx", "new.onnx"])
def test_streaming_gives_what_the_loss_gives_for_the_whole_rollout(name, place):
    """Batches of 7 rows, though the advantage is standardised over all; and a graph of 16 rows."""
    found = report(numbers_of(place, name, batch_rows=7))
    wanted = {k: x.detach() for k, x in place.loss.eval()(place.data).items()}
    for key in ("loss_objective", "loss_entropy", "loss_critic", "entropy", "kl_approx"):
        assert found[key] == pytest.approx(float(wanted[key]), rel=2e-5, abs=1e-6), key
    assert found["kl_mean"] == pytest.approx(float(wanted["kl"].mean()), rel=2e-5)
    assert found["kl_max"] == pytest.approx(float(wanted["kl"].max()), rel=2e-5)
    assert found["explained_variance"] == pytest.approx(float(wanted["explained_variance"]), 1e-4)
    clipped = float(wanted["value_clip_fraction"])
    assert found["value_clip_fraction"] == pytest.approx(clipped, abs=1e-6)
    assert found["rows"] == found["rows_counted"] == 48


def test_parts_add_up_to_the_whole(place):
    whole = numbers_of(place)
    parts = [numbers_of(place, rows=r, batch_rows=5) for r in ((0, 11), (11, 30), (30, None))]
    first, *others = parts
    for part in others:
        first.merge(part)
    assert first.ranges == whole.ranges == [(0, 48)]
    for key, value in report(whole).items():
        assert report(first)[key] == pytest.approx(value, rel=1e-12), key
    assert (first.totals.kl_histogram.counts == whole.totals.kl_histogram.counts).all()
    assert first.totals.kl_worst == whole.totals.kl_worst
    with pytest.raises(BadInputError, match="must not overlap; rows 0:11 are in two"):
        first.merge(numbers_of(place, rows=(0, 11)))
    with pytest.raises(BadInputError, match="same file sha256"):
        first.merge(numbers_of(place, "old.onnx", rows=(0, 11)))


def test_beta_can_be_set(place):
    found, other = (report(numbers_of(place, scalars={"beta": b})) for b in (1.0, 3.0))
    shift = 2 * found["kl_mean"]
    assert other["loss_objective"] - found["loss_objective"] == pytest.approx(shift, rel=1e-6)


def test_a_row_of_nan_is_named(place, tmp_path):
    for key, row in (("advantage", 5), ("value_target", 40), ("observation", 20)):
        data = place.data.clone()
        data[key][row] = torch.nan
        np.savez(tmp_path / "nan.npz", **{k: x.numpy() for k, x in data.items()})
        file = open_file(place.folder / "free.onnx")
        with (
            open_rollout(tmp_path / "nan.npz") as rollout,
            pytest.raises(BadInputError, match=f"'{key}' has NaN or infinity in row {row}"),
        ):
            evaluate(file, rollout, batch_rows=16)


# The commands


def test_evaluate_prints_saves_draws_and_judges(place, tmp_path, capsys):
    out, picture = tmp_path / "result.json", tmp_path / "kl.png"
    arguments = ["evaluate", "{folder}/free.onnx", "--data", "{folder}/rollout"]
    arguments += ["--out", out, "--picture", picture, "--provider", "cpu"]
    assert run_in(place, *arguments, "--max-kl", "5", "--min-ess", "0") == ExitCode.GOOD
    output = capsys.readouterr()
    assert "kl_mean" in output.out
    assert "passed: kl_mean" in output.out
    assert "free.onnx: on cpu" in output.err
    assert "unchecked" in output.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = Evaluation.read(out)
    assert report(saved)["rows"] == 48
    assert run_in(place, *arguments, "--max-kl", "1e-9") == ExitCode.FAILED
    assert "FAILED: kl_mean" in capsys.readouterr().out


def test_a_ratio_that_the_loss_caps_can_not_be_gated_above_the_cap(tmp_path, capsys):
    loss, data = loss_of("Categorical", max_importance_ratio=1.05)
    export_loss(loss, data, tmp_path / "loss.onnx", checked=False)
    np.savez(tmp_path / "rollout.npz", **{k: x.numpy() for k, x in data.items()})
    file, rollout = str(tmp_path / "loss.onnx"), ["--data", str(tmp_path / "rollout.npz")]
    for command in (["evaluate", file, *rollout], ["compare", file, file, *rollout]):
        assert run([*command, "--max-ratio", "1.2"]) == ExitCode.BAD_INPUT
        assert "below the 1.05 at which this loss caps every ratio" in capsys.readouterr().err
    lifted = ["--set", "max_importance_ratio=1e9", "--max-ratio"]
    assert run(["evaluate", file, *rollout, *lifted, "1.0001"]) == ExitCode.FAILED


def test_merge_of_saved_parts(place, tmp_path, capsys):
    evaluation = ["evaluate", "{folder}/old.onnx", "--data", "{folder}/rollout.npz"]
    for i, rows in enumerate(("0:20", "20:")):
        assert run_in(place, *evaluation, "--rows", rows, "--out", tmp_path / f"{i}.json") == 0
    capsys.readouterr()
    parts = [tmp_path / "0.json", tmp_path / "1.json"]
    assert run_in(place, "merge", *parts, "--json") == ExitCode.GOOD
    merged = json.loads(capsys.readouterr().out)["report"]
    assert run_in(place, *evaluation, "--json") == ExitCode.GOOD
    whole = json.loads(capsys.readouterr().out)["report"]
    assert merged == pytest.approx(whole, rel=1e-12)
    assert run_in(place, "merge", parts[0], parts[0]) == ExitCode.BAD_INPUT
    assert "must not overlap" in capsys.readouterr().err


def test_compare_of_a_file_with_itself_and_with_another(place, capsys):
    data = ["--data", "{folder}/rollout", "--json"]
    assert run_in(place, "compare", "{folder}/old.onnx", "{folder}/old.onnx", *data) == 0
    same = json.loads(capsys.readouterr().out)["report"]
    assert same["kl_max"] < 1e-12
    assert same["ratio_min"] == pytest.approx(1.0) == same["ratio_max"]
    command = ["compare", "{folder}/old.onnx", "{folder}/free.onnx", *data, "--max-kl", "1e-6"]
    assert run_in(place, *command) == ExitCode.FAILED
    other = json.loads(capsys.readouterr().out)["report"]
    old, new = (
        open_file(place.folder / name).run(
            {
                s.name: place.data[s.key].numpy()
                for s in open_file(place.folder / name).manifest.inputs
            },
            ["logits"],
        )["logits"]
        for name in ("old.onnx", "free.onnx")
    )
    q, p = (torch.distributions.Categorical(logits=torch.tensor(x).double()) for x in (old, new))
    kl = float(torch.distributions.kl_divergence(q, p).mean())
    assert other["kl_mean"] == pytest.approx(kl, rel=1e-4)


def test_nothing_of_that_needs_torch(place, tmp_path):
    """Imports of torch, tensordict and onnx fail in this process."""
    commands = [
        ["evaluate", "old.onnx", "--data", "rollout", "--out", str(tmp_path / "r.json")],
        ["evaluate", "old.onnx", "--data", "rollout.npz", "--max-kl", "9"],
        ["compare", "old.onnx", "free.onnx", "--data", "rollout"],
        ["check", "old.onnx", "--data", "rollout"],
        ["merge", str(tmp_path / "r.json")],
        ["doctor"],
    ]
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'tensordict', 'onnx', 'onnxscript'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from klppo_compile.cli import run\n"
        f"codes = [run(c) for c in {commands!r}]\n"
        "assert 'torch' not in sys.modules\n"
        "print('codes', *map(int, codes))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "codes 0 0 0 0 0 0", done.stderr


def test_export_and_check_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "loss.onnx"
    assert run(["export", FACTORY, "--out", str(out), "--json"]) == ExitCode.GOOD
    found = json.loads(capsys.readouterr().out)
    assert found["checked"]
    assert max(found["errors"].values()) < 1e-5
    _, data = categorical_loss()
    data.memmap(tmp_path / "data")
    check = ["check", str(out), "--data", str(tmp_path / "data")]
    assert run([*check, "--target", FACTORY]) == ExitCode.GOOD
    assert f"of {FACTORY} (asked for 1e-05)" in capsys.readouterr().out
    assert run(check) == ExitCode.GOOD
    assert "not compared with PyTorch" in capsys.readouterr().out
    other = {k: x + 0.01 for k, x in categorical_loss()[0].state_dict().items() if x.ndim}
    state = {**categorical_loss()[0].state_dict(), **other}
    torch.save(state, tmp_path / "other.pt")
    wrong = [*check, "--target", FACTORY, "--checkpoint", str(tmp_path / "other.pt")]
    assert run(wrong) == ExitCode.FAILED
    assert "must be of the target's parameters" in capsys.readouterr().err
    assert run(["inspect", str(out)]) == ExitCode.GOOD
    output = capsys.readouterr().out
    for word in ("old_logits", "[batch, 5]", "beta_next", "Gemm", "the bytes that were exported"):
        assert word in output
    out.with_name("loss.onnx.json").unlink()
    assert run(["inspect", str(out), "--json"]) == ExitCode.GOOD
    assert json.loads(capsys.readouterr().out)["verified"] is False


def test_a_check_takes_rows_in_any_batch_and_masked_rows_of_nan(tmp_path):
    """A file over rows takes [B, T] and [B, T, U]; what a mask excludes may be anything."""
    loss, data = masked_rows_loss()
    data["observation"][~data["collector", "mask"]] = torch.nan
    file = tmp_path / "loss.onnx"
    export_loss(loss, data, file, checked=False)
    state = tmp_path / "state.pt"
    torch.save(dict(loss.state_dict()), state)
    target = ["--target", FACTORY, "--checkpoint", str(state)]
    for i, shape in enumerate(((48,), (6, 8), (4, 3, 4))):
        place = tmp_path / str(i)
        data.reshape(shape).memmap(place)
        for more in ([], target):
            assert run(["check", str(file), "--data", str(place), *more]) == ExitCode.GOOD


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "none.onnx", "--data", "x"], "got none.onnx: No such file"),
        (["evaluate", "{folder}/bent.onnx", "--data", "x"], "it was truncated or changed"),
        (["evaluate", "{folder}/rollout.npz", "--data", "x"], "must be an ONNX file"),
        (["evaluate", "{folder}/smallest.onnx", "--data", "x"], "it has no manifest"),
        (["evaluate", "{folder}/old.onnx", "--data", "none"], "data must be there; got none"),
        (["evaluate", "{folder}/old.onnx", "--data", "{folder}/rollout", "--rows", "9:3"], "9:3"),
        (["evaluate", "{folder}/old.onnx", "--data", "{folder}/rollout", "--rows", "3"], "A:B"),
        (
            ["evaluate", "{folder}/old.onnx", "--data", "{folder}/rollout", "--set", "gamma=1"],
            "got 'gamma'",
        ),
        (
            ["evaluate", "{folder}/old.onnx", "--data", "{folder}/rollout", "--set", "beta=x"],
            "got 'x'",
        ),
        (["merge", "{folder}/old.onnx.json"], "got no object of schema 4"),
        (["export", "nothing", "--out", "x.onnx"], "a run folder of klppo train, or module"),
        (["export", "no.module:f", "--out", "x.onnx"], "got 'no.module', which is not found"),
        (["export", "tests.export_cases:none", "--out", "x.onnx"], "got no such name"),
        (["export", "tests.export_cases:ROWS", "--out", "x.onnx"], "got int"),
        (["export", "tests.export_cases:broken", "--out", "x.onnx"], "it raised KeyError in"),
        (["export", "tests.export_cases:number", "--out", "x.onnx"], "a TensorDict; got int."),
        (["export", "tests.export_cases:backwards", "--out", "x.onnx"], "got (TensorDict, KLPEN"),
        (["export", "tests.export_cases:loss_of", "--out", "x.onnx"], "must run without arguments"),
        (["export", "tests.export_cases:leaves", "--out", "x.onnx"], "it raised SystemExit in"),
        (["export", FACTORY, "--out", "x.pt2"], "of the format onnx ends in .onnx; got x.pt2"),
        (["export", FACTORY, "--out", "a.safetensors"], "onnx ends in .onnx; got a.safetensors"),
        (["export", FACTORY, "--format", "pt2", "--out", "x.onnx"], "pt2 ends in .pt2; got x.onnx"),
        (["inspect", "{folder}/lone.pt2"], "only {folder}/lone.pt2.json says"),
        (["export", "tests.export_cases:bare_loss", "--out", "x.onnx"], "Give --data"),
        (["export", FACTORY, "--out", "x.onnx", "--opset", "17"], "must be 18 to 21"),
        (["export", FACTORY, "--out", "none/x.onnx"], "no writable folder"),
        (["export", FACTORY, "--out", "x.onnx", "--batch", "many"], "--batch is dynamic"),
        (["export", FACTORY, "--out", "x.onnx", "--batch", "9" * 25], "at most 18 digits; got one"),
        (["export", FACTORY, "--out", "x.onnx", "--batch", "99999999999"], "1 to 16,777,216 rows"),
        (["evaluate", "x", "--data", "x", "--rows", ":" + "9" * 5000], "got one of 5,000"),
        (["export", FACTORY, "--out", "x.onnx", "--checkpoint", "none.pt"], "got none.pt"),
        (["export", "{folder}", "--out", "x.onnx"], "which has no config.json"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, reason, place, tmp_path, capsys, monkeypatch):
    content = bytearray((place.folder / "old.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (place.folder / "bent.onnx").write_bytes(content)
    sidecar = (place.folder / "old.onnx.json").read_text()
    (place.folder / "bent.onnx.json").write_text(sidecar)
    (place.folder / "smallest.onnx").write_bytes(SMALLEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    (place.folder / "lone.pt2").write_bytes(b"code")
    assert run_in(place, *arguments) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err.splitlines()
    assert reason.format(folder=place.folder) in error[-1]
    assert [line for line in error if line.startswith("Error: ")] == error[-1:]
    assert list(tmp_path.iterdir()) == []


class Malice:
    """What a pickle can do when it is loaded."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def test_checkpoints_are_data_and_must_fit(tmp_path, capsys):
    state = dict(categorical_loss()[0].state_dict())
    name = next(k for k, x in state.items() if x.ndim == 2)
    huge = torch.zeros(1).expand(100_000, 10_000)
    for change, reason in (
        ({name: huge}, "has the shape [100000, 10000], not [5, 4]"),
        ({name: torch.full((5, 4), torch.nan)}, "must hold finite numbers"),
        ({"other": torch.zeros(1)}, "has an unknown 'other'"),
        ({name: Malice()}, "a .pt of tensors alone"),
    ):
        torch.save({**state, **change}, tmp_path / "state.pt")
        arguments = ["export", FACTORY, "--out", str(tmp_path / "x.onnx")]
        assert run([*arguments, "--checkpoint", str(tmp_path / "state.pt")]) == 2
        assert reason in capsys.readouterr().err
    short = {k: x.clone() for k, x in state.items() if k != name}
    save_file(short, tmp_path / "state.safetensors")
    assert run([*arguments, "--checkpoint", str(tmp_path / "state.safetensors")]) == 2
    assert f"lacks '{name}'" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


# Providers


def fallen_back(content, provider, *more):
    return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])


def test_a_provider_that_is_not_active_is_an_error(place, monkeypatch, capsys):
    fake = SimpleNamespace(get_available_providers=lambda: list(runtime.PROVIDERS.values()))
    monkeypatch.setattr(runtime, "load_onnxruntime", lambda: fake)
    monkeypatch.setattr(runtime, "_session", fallen_back)
    arguments = ["evaluate", "{folder}/old.onnx", "--data", "{folder}/rollout", "--provider"]
    for provider in ("cuda", "tensorrt"):
        assert run_in(place, *arguments, provider) == ExitCode.MISSING
        error = capsys.readouterr().err
        assert f"the provider {provider} was asked for" in error
        assert "fell back to CPUExecutionProvider" in error
    monkeypatch.setattr(runtime, "has_driver", lambda: True)
    assert runtime.open_session(b"", "auto", "it")[1] == "cpu"
    fake.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(MissingRequirementError, match="this ONNX Runtime has cpu"):
        runtime.open_session(b"", "cuda", "it")


def test_two_runtimes_at_once_are_diagnosed(place, monkeypatch, capsys):
    both = ["onnxruntime", "onnxruntime-gpu"]
    monkeypatch.setattr(runtime, "runtimes", lambda: both)
    monkeypatch.setattr("klppo_compile.export.machine.runtimes", lambda: both)
    assert run_in(place, "evaluate", "{folder}/old.onnx", "--data", "x") == ExitCode.MISSING
    assert "found onnxruntime and onnxruntime-gpu" in capsys.readouterr().err
    assert run(["doctor"]) == ExitCode.MISSING
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in capsys.readouterr().out


def test_doctor_tells_what_this_machine_can_do(capsys):
    assert run(["doctor", "--json"]) == ExitCode.GOOD
    found = json.loads(capsys.readouterr().out)["facts"]
    # A wheel for CUDA leaves +cu130 out of its own description.
    assert torch.__version__.startswith(found["torch"])
    assert found["loss runs on"].split(":")[0] in {"torch", "triton"}
    assert examine().facts["ONNX Runtime"].startswith("runs on cpu")


def test_the_gates_of_the_command_line_are_those_of_the_room():
    assert {gate.option: gate.text for gate in GATES} == LIMITS
