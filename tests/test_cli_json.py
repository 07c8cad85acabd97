"""`--json`: standard output is one object, whatever comes of a command."""

import io
import json
import sys

import click
import numpy as np
import pytest

from klppo_compile.cli import klppo, run
from klppo_compile.exit_codes import (
    CannotError,
    ExitCode,
    FailedError,
    MissingRequirementError,
)
from klppo_compile.export import export_loss
from tests.export_cases import categorical_loss


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["evaluate", "none.onnx", "--data", "x", "--json"], ExitCode.BAD_INPUT),
        (["compare", "a.onnx", "b.onnx", "--data", "x", "--json"], ExitCode.BAD_INPUT),
        (["check", "none.onnx", "--data", "x", "--json"], ExitCode.BAD_INPUT),
        (["export", "nothing", "--out", "x.onnx", "--json"], ExitCode.BAD_INPUT),
        (["inspect", "none.onnx", "--json"], ExitCode.BAD_INPUT),
        (["merge", "none.json", "--json"], ExitCode.BAD_INPUT),
        (["evaluate", "--json"], ExitCode.BAD_INPUT),
        (["doctor", "--json", "--jsonn"], ExitCode.BAD_INPUT),
        (["bench", "compare", "a.json", "b.json", "--json"], ExitCode.BAD_INPUT),
    ],
)
def test_with_json_an_error_is_an_object(arguments, code, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    output = capsys.readouterr()
    found = json.loads(output.out)["error"]
    assert (found["kind"], found["exit_code"]) == (code.name.lower(), code)
    assert output.err.endswith(f"Error: {found['message']}\n")
    without = [word for word in arguments if word != "--json"]
    assert run(without) == code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FailedError("no", {"errors": {"kl": 1.0}}), ExitCode.FAILED),
        (CannotError("no"), ExitCode.CANNOT),
        (MissingRequirementError("no"), ExitCode.MISSING),
        (click.Abort(), ExitCode.INTERRUPTED),
        (ZeroDivisionError(), ExitCode.CANNOT),
    ],
)
def test_with_json_every_exit_code_has_its_kind(error, code, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(klppo, "main", fail)
    assert run(["doctor", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["exit_code"] == code
    assert found["error"]["kind"] == code.name.lower()
    assert found.get("errors") == getattr(error, "report", {}).get("errors")


@pytest.mark.parametrize("broken", [OSError(28, "No space"), BrokenPipeError(32, "No reader")])
@pytest.mark.parametrize("error", [None, FailedError("no"), CannotError("no")])
def test_json_that_can_not_be_printed_is_no_verdict(error, broken, capsys, monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise broken

    @click.command()
    @click.option("--json", is_flag=True)
    def command(json):
        if error is not None:
            raise error
        click.echo("{}")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        code = run(["--json"], command)
    assert code == (ExitCode.CANNOT if broken.errno == 28 else ExitCode.UNREAD)
    assert ("No space" in capsys.readouterr().err) == (code == ExitCode.CANNOT)


def test_a_check_or_a_gate_that_fails_prints_its_report(tmp_path, capsys):
    loss, data = categorical_loss()
    file, rollout = str(tmp_path / "loss.onnx"), str(tmp_path / "rollout.npz")
    export_loss(loss, data, file, checked=False)
    np.savez(rollout, **{k: x.numpy() for k, x in data.items()})
    given = [file, "--data", rollout, "--json"]
    for target in ([], ["--target", "tests.export_cases:categorical_loss"]):
        assert run(["check", *given, "--tolerance", "1e-12", *target]) == ExitCode.FAILED
        output = capsys.readouterr()
        found = json.loads(output.out)
        assert found["error"]["message"] in output.err
        assert (found["file"], found["provider"], found["tolerance"]) == (file, "cpu", 1e-12)
        assert 1e-12 < max(found["errors"].values()) < 1e-5
    assert run(["evaluate", *given, "--max-kl", "1e-9"]) == ExitCode.FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["gates"][0] | {"found": 0.0} == {
        "gate": "max-kl",
        "limit": 1e-9,
        "found": 0.0,
        "passed": False,
    }


def test_an_export_that_fails_its_check_prints_every_outputs_error(tmp_path, capsys):
    out = tmp_path / "loss.onnx"
    words = ["export", "tests.export_cases:categorical_loss", "--out", str(out), "--json"]
    assert run([*words, "--tolerance", "1e-12"]) == ExitCode.FAILED
    found = json.loads(capsys.readouterr().out)
    assert "The smallest tolerance that would pass" in found["error"]["message"]
    assert found["tolerance"] == 1e-12 < max(found["errors"].values())
    assert found["errors"]["beta_next"] == 0.0
    assert list(tmp_path.iterdir()) == []
