"""Every snippet and every klppo command of the README runs; make's two are what CI runs."""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributions import Distribution

from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("klppo ")]


def small(command):
    """The command at sizes for a test: hundreds of steps, eager."""
    words = shlex.split(command)[1:]
    sizes = {"--steps": {"200000": "512", "300000": "1024"}}
    for i, word in enumerate(words[:-1]):
        words[i + 1] = sizes.get(word, {}).get(words[i + 1], words[i + 1])
    if words[0] == "train":
        words.append("--no-compile")
        if "--resume" not in words:
            words += ["--num-envs", "4", "--horizon", "64", "--minibatch-size", "64"]
    return words


def test_python_snippets_run_in_one_session(monkeypatch, capsys):
    # Dynamo turns the checks of torch.distributions off when it first compiles; keep them off.
    monkeypatch.setattr(Distribution, "_validate_args", False)
    snippets, namespace = blocks("python"), {}
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)  # noqa: S102 - our own text
    assert "KL " in capsys.readouterr().out
    assert namespace["beta"] > 0


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert commands()
    for command in commands():
        code = run(small(command))
        assert code == ExitCode.GOOD, f"{command}\n{capsys.readouterr()}"


def test_exit_codes_are_the_table():
    found = re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)
    assert [int(code) for code in found] == [code.value for code in ExitCode]


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets_of_the_makefile(target):
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text(encoding="utf-8")
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
