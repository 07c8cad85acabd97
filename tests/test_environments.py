import json
import sys

import gymnasium
import numpy as np
import pytest

from klppo_compile.cli import run
from klppo_compile.exit_codes import (
    BadInputError,
    CannotError,
    ExitCode,
    MissingRequirementError,
)
from klppo_compile.training.environments import make_environments
from klppo_compile.training.loading import load_run
from klppo_compile.training.train import resume, train
from tests.mirror_environments import Mirror
from tests.training_cases import settings_for


@pytest.fixture
def register(monkeypatch):
    """Register an environment for one test, and return its id."""

    def register(entry_point, **options):
        monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
        gymnasium.register("tests/Odd-v0", entry_point=entry_point, **options)
        return "tests/Odd-v0"

    return register


def odd(**methods):
    """Return a maker of environments that deviate in these methods."""
    return lambda: type("Odd", (Mirror,), methods)(gymnasium.spaces.Discrete(2))


# Environments that can't be made


@pytest.mark.parametrize("env", ["Hopper-v2", "HalfCheetah-v3", "GymV21Environment-v0"])
@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
def test_an_environment_that_moved_away_names_the_package(env, tmp_path):
    with pytest.raises(
        MissingRequirementError, match=rf"environment {env} needs .*(robotics|shimmy)"
    ):
        train(settings_for(env), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_module_that_an_environment_imports_is_missing_and_not_its_id(
    register, tmp_path, monkeypatch
):
    with pytest.raises(MissingRequirementError, match="No module named 'absent_engine'"):
        make_environments(register("absent_engine.envs:Thing"), 1)
    (tmp_path / "own_module_of_a_user.py").write_text("import absent_engine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingRequirementError, match="No module named 'absent_engine'"):
        make_environments("own_module_of_a_user:Thing-v0", 1)


@pytest.mark.parametrize("env", ["a:b:c", "no_such.module:Thing-v0", "tests:Thing-v0", "bad id"])
def test_an_id_that_names_nothing_is_refused(env):
    with pytest.raises(BadInputError, match=f"an id that Gymnasium knows; got '{env}'"):
        make_environments(env, 1)


def test_a_module_that_exits_is_refused(tmp_path, monkeypatch):
    (tmp_path / "leaving_module_of_a_user.py").write_text("import sys; sys.exit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInputError, match=r"gymnasium.make can make; got SystemExit: 1\. Regis"):
        make_environments("leaving_module_of_a_user:Thing-v0", 1)


def raising():
    raise FileNotFoundError("no map at level.json")


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        (raising, r"FileNotFoundError: no map at level.json\. Register"),
        (sys.exit, r"SystemExit\. Register"),
        (Mirror, "TypeError: .*missing 1 required positional argument: 'action_space'"),
        (dict, "TypeError: The environment must inherit"),
    ],
)
def test_a_constructor_that_fails_is_refused_with_what_it_said(entry_point, reason, register):
    with pytest.raises(BadInputError, match=rf"tests/Odd-v0 must be one .* can make; got {reason}"):
        make_environments(register(entry_point), 1)


# Environments that fail when they run


def one_over_zero(self, action):
    return 1 / 0


def leaving(self, action):
    sys.exit(1)


def old_reset(self, **options):
    return np.zeros(3)


def step_with(change):
    return lambda self, action: change(*Mirror.step(self, action))


FAULTS = {
    "step raises": (
        {"step": one_over_zero},
        r"step gave ZeroDivisionError \(.*test_environments.py, line \d+\): division by zero\.",
    ),
    "step exits": (
        {"step": leaving},
        r"step gave SystemExit \(.*test_environments.py, line \d+\): 1\. Mend",
    ),
    "reset without a seed": ({"reset": Mirror._observe}, "reset gave TypeError"),
    "old reset": ({"reset": old_reset}, "reset gave ValueError: too many"),
    "old step": ({"step": step_with(lambda *got: got[:3] + got[4:])}, "step gave ValueError"),
    "other shape": (
        {"step": step_with(lambda *got: (np.zeros(3), *got[1:]))},
        r"gave ValueError: an observation of shape \(3,\) in a space of \(2,\)\. Mend",
    ),
    "no numbers": ({"step": step_with(lambda *got: (["a", "b"], *got[1:]))}, "Cannot cast"),
    "two rewards": ({"step": step_with(lambda o, r, *rest: (o, [r, r], *rest))}, "of size 1"),
    "close raises": ({"close": lambda self: one_over_zero(self, 0)}, "close gave ZeroDivisionErr"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_an_environment_is_told_as_its_own(name, register, tmp_path, capsys):
    methods, reason = FAULTS[name]
    env = register(odd(**methods))
    with pytest.raises(CannotError, match=f"environment {env} must keep .*{reason}"):
        train(settings_for(env), tmp_path / "run")
    assert run(["train", "--env", env, "--out", str(tmp_path / "run")]) == ExitCode.CANNOT
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_reward_may_be_an_array_of_one_number_and_infos_may_be_anything(register, tmp_path):
    def change(observation, reward, terminated, truncated, info):
        info = {"ragged": np.zeros(np.random.default_rng().integers(1, 9))}
        return observation, np.array([reward]), np.array(terminated), truncated, info

    result = train(settings_for(register(odd(step=step_with(change)))), tmp_path / "run")
    assert result.finished


def test_a_fault_during_training_keeps_what_was_saved(tmp_path, monkeypatch):
    def on_the_second(row):
        if row.iteration == 2:
            monkeypatch.setattr(Mirror, "step", one_over_zero)

    with pytest.raises(CannotError, match="division by zero"):
        train(settings_for("Box"), tmp_path / "run", report=on_the_second)
    monkeypatch.undo()
    assert load_run(tmp_path / "run", "last").example.shape == (128,)
    assert resume(tmp_path / "run").finished


@pytest.mark.parametrize("method", ["close", "step"])
def test_a_close_that_fails_hides_neither_the_run_nor_another_fault(method, tmp_path, monkeypatch):
    closed = []

    def close(self):
        closed.append(self)
        one_over_zero(self, 0)

    def on_the_last(row):
        if row.iteration == 3 or method == "step":
            monkeypatch.setattr(Mirror, "close", close)
            monkeypatch.setattr(Mirror, method, close if method == "close" else old_reset)

    settings = settings_for("Box")
    if method == "step":
        with pytest.raises(CannotError, match="its step gave TypeError"):
            train(settings, tmp_path / "run", report=on_the_last)
    else:
        assert train(settings, tmp_path / "run", report=on_the_last).finished
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    assert len(set(closed)) == settings.num_envs + (20 if method == "close" else 0)


def test_a_run_is_saved_before_its_environments_are_closed(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    def on_the_last(row):
        if row.iteration == 3:
            monkeypatch.setattr(Mirror, "close", interrupted)

    with pytest.raises(KeyboardInterrupt):
        train(settings_for("Box"), tmp_path / "run", report=on_the_last)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"] == 3
