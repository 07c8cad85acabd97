"""Evaluation as a stream: its memory, its parts, and advantages with statistics of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode
from klppo_compile.export import export_loss
from klppo_compile.export.data import open_rollout
from klppo_compile.export.evaluation import evaluate
from klppo_compile.export.gates import judge
from klppo_compile.export.report import report
from klppo_compile.export.runtime import open_file
from tests.export_cases import loss_of, masked_rows_loss
from tests.house import ROOT

PEAK = """
import resource, sys
from klppo_compile.cli import run
code = run(["evaluate", sys.argv[1], "--data", sys.argv[2], "--json"])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, int(code))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A categorical loss as a file, and its rollout."""
    path = tmp_path_factory.mktemp("streaming") / "loss.onnx"
    loss, data = loss_of("Categorical")
    export_loss(loss, data, path, checked=False)
    return path, data


def write_memmap(folder, data, rows):
    """The rollout over and over as a TensorDict memmap folder; returns its bytes."""
    folder.mkdir()
    meta, size = {}, 0
    for key, x in data.items():
        values = np.resize(x.numpy(), (rows, *x.shape[1:]))
        values.tofile(folder / f"{key}.memmap")
        meta[key] = {"shape": list(values.shape), "dtype": str(x.dtype)}
        size += values.nbytes
    (folder / "meta.json").write_text(json.dumps(meta))
    return size


def peak_of(path, folder):
    """Bytes of memory that the process took at most."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    word, peak, code = done.stdout.splitlines()[-1].split()
    assert (word, code) == ("peak", "0")
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no getrusage")
def test_memory_does_not_grow_with_the_rollout(exported, tmp_path):
    path, data = exported
    few = write_memmap(tmp_path / "few", data, 65_536)
    many = write_memmap(tmp_path / "many", data, 20 * 65_536)
    assert many - few > 60e6
    grown = peak_of(path, tmp_path / "many") - peak_of(path, tmp_path / "few")
    assert grown < (many - few) / 6


@pytest.mark.parametrize(
    ("dims", "masked"), [((0,), False), ((1,), False), ((1,), True), ((0, 1, -1), False)]
)
def test_an_advantage_is_standardised_apart_along_excluded_dimensions(dims, masked, tmp_path):
    make = masked_rows_loss if masked else lambda **kwargs: loss_of("Categorical", **kwargs)
    loss, data = make(normalize_advantage=True, normalize_advantage_exclude_dims=dims)
    data = data.reshape(12, 4)
    export_loss(loss, data, tmp_path / "loss.onnx", checked=False)
    data.memmap(tmp_path / "rollout")
    file = open_file(tmp_path / "loss.onnx")
    with open_rollout(tmp_path / "rollout") as rollout:
        whole = evaluate(file, rollout, batch_rows=20)
        first, last = (evaluate(file, rollout, rows=r) for r in ((0, 5), (5, None)))
    first.merge(type(last).read(_saved(last, tmp_path)))
    wanted = float(loss.eval()(data)["loss_objective"].detach())
    assert report(whole)["loss_objective"] == pytest.approx(wanted, rel=2e-5, abs=1e-6)
    merged = report(first)["loss_objective"]
    assert merged == pytest.approx(report(whole)["loss_objective"], rel=1e-12)


@pytest.mark.filterwarnings("ignore:You requested advantage normalization:UserWarning")
@pytest.mark.parametrize("each", [False, True], ids=["of a row", "of an element"])
@pytest.mark.parametrize("name", ["plain Normal", "Bernoulli"])
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_an_advantage_counts_once_however_many_elements_a_row_has(name, dims, each, tmp_path):
    loss, data = loss_of(name, normalize_advantage=True, normalize_advantage_exclude_dims=dims)
    data = data[:12].reshape(3, 4)
    if each:
        data["advantage"] = torch.randn(*data["action"].shape, 1)
    export_loss(loss, data, tmp_path / "loss.onnx", checked=False)
    data.memmap(tmp_path / "rollout")
    with open_rollout(tmp_path / "rollout") as rollout:
        found = report(evaluate(open_file(tmp_path / "loss.onnx"), rollout))
    wanted = float(loss.eval()(data)["loss_objective"].detach())
    assert found["loss_objective"] == pytest.approx(wanted, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("lead", [(16, 3), (3, 16), (2, 24), (48,)])
def test_a_fixed_batch_of_rows_reads_sequences_of_any_length(lead, tmp_path, capsys):
    loss, data = loss_of("Categorical")
    export_loss(loss, data, tmp_path / "loss.onnx", batch=16, checked=False)
    data.reshape(lead).memmap(tmp_path / "rollout")
    command = [str(tmp_path / "loss.onnx"), "--data", str(tmp_path / "rollout"), "--json"]
    assert run(["evaluate", *command]) == ExitCode.GOOD
    found = json.loads(capsys.readouterr().out)["report"]
    assert found["rows"] == 48
    wanted = float(loss.eval()(data)["loss_objective"].detach())
    assert found["loss_objective"] == pytest.approx(wanted, rel=2e-5, abs=1e-6)
    assert run(["check", *command]) == ExitCode.GOOD


def _saved(evaluation, folder):
    (folder / "part.json").write_text(evaluation.to_json())
    return folder / "part.json"


def test_a_rollout_without_a_row_that_counts_passes_no_gate(tmp_path):
    loss, data = masked_rows_loss()
    export_loss(loss, data, tmp_path / "loss.onnx", checked=False)
    data["collector", "mask"] = torch.zeros(len(data), dtype=torch.bool)
    data.memmap(tmp_path / "rollout")
    with open_rollout(tmp_path / "rollout") as rollout:
        found = report(evaluate(open_file(tmp_path / "loss.onnx"), rollout))
    assert (found["rows"], found["rows_counted"]) == (48, 0)
    limits = {"max-kl": 1.0, "max-row-kl": 1.0, "max-ratio": 9.0, "min-ess": 0.0}
    limits |= {"min-entropy": 0.0, "min-explained-variance": -1.0}
    assert not any(verdict.passed for verdict in judge(found, limits))
    assert len(judge(found, limits)) == 6


def test_a_merge_says_which_rows_are_missing(exported, tmp_path, capsys):
    path, data = exported
    data.memmap(tmp_path / "rollout")
    command = ["evaluate", str(path), "--data", str(tmp_path / "rollout"), "--json", "--rows"]
    parts = []
    for rows in ("8:20", "30:40"):
        parts.append(str(tmp_path / f"{rows.partition(':')[0]}.json"))
        assert run([*command, rows, "--out", parts[-1]]) == ExitCode.GOOD
    capsys.readouterr()
    assert run(["merge", *parts, "--json"]) == ExitCode.GOOD
    output = capsys.readouterr()
    assert json.loads(output.out)["ranges"] == [[8, 20], [30, 40]]
    gaps = [line.split()[2] for line in output.err.splitlines()]
    assert gaps == ["0:8", "20:30", "40:48"]
    # Parts of rollouts of different lengths are parts of different rollouts.
    data[:47].memmap(tmp_path / "other")
    command[3] = str(tmp_path / "other")
    assert run([*command, "20:30", "--out", str(tmp_path / "other.json")]) == ExitCode.GOOD
    assert run(["merge", parts[0], str(tmp_path / "other.json")]) == ExitCode.BAD_INPUT
    assert "must have the same rollout rows" in capsys.readouterr().err
