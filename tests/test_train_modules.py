"""An environment's module in the current folder: found as `klppo export` finds a factory's."""

import sys

import gymnasium

from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode

MODULE = """
import gymnasium
from tests.mirror_environments import make
gymnasium.register("here/Box-v0", entry_point=make, kwargs={"kind": "Box"})
"""
SMALL = ["--steps=128", "--num-envs=4", "--horizon=32", "--epochs=1", "--minibatch-size=64"]


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "in_this_folder").mkdir()
    (tmp_path / "in_this_folder" / "mine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    env = "in_this_folder.mine:here/Box-v0"
    assert run(["train", f"--env={env}", "--out=r", "--no-compile", *SMALL]) == ExitCode.GOOD
    for name in ("in_this_folder.mine", "in_this_folder"):
        del sys.modules[name]
    del gymnasium.registry["here/Box-v0"]
    sys.path.remove(str(tmp_path))
    assert run(["train", "--resume=r", "--steps=256"]) == ExitCode.GOOD
