"""A run that is asked to stop while it evaluates: its folder is complete soon."""

import json

import pytest

from klppo_compile.commands.train import _conclude
from klppo_compile.exit_codes import ExitCode
from klppo_compile.training.evaluation import EPISODES
from klppo_compile.training.train import resume, train
from tests.mirror_environments import LENGTH, Mirror
from tests.training_cases import FILES, settings_for


@pytest.fixture
def endless(monkeypatch):
    """Episodes that end after 50 times their length, and the number of steps taken."""
    step, taken = Mirror.step, []

    def long(self, action):
        taken.append(self)
        observation, reward, *_ = step(self, action)
        return observation, reward, False, self.count >= 50 * LENGTH, {}

    monkeypatch.setattr(Mirror, "step", long)
    return taken


def test_a_run_that_is_stopped_in_its_first_evaluation_is_complete_and_goes_on(endless, tmp_path):
    settings = settings_for("Box", steps=256)

    def stop():
        return len(endless) >= 3 * EPISODES

    result = train(settings, tmp_path / "run", should_stop=stop)
    assert len(endless) == 3 * EPISODES + settings.rollout_size
    assert (result.finished, result.before.episodes, result.last.iteration) == (False, 0, 1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["before"] is None
    again = resume(tmp_path / "run", should_stop=stop)
    assert again.before.episodes == 0
    assert again.last.iteration == 2


def test_a_run_that_is_stopped_in_its_last_evaluation_keeps_what_was_measured(
    tmp_path, monkeypatch, capsys
):
    step, taken, reported = Mirror.step, [], []

    def uneven(self, action):
        """Each environment's episodes are longer than those of the one made before it."""
        taken.append(self)
        self.number = getattr(self, "number", len(taken) % EPISODES)
        observation, reward, *_ = step(self, action)
        return observation, reward, False, self.count >= 1 + self.number, {}

    def report(row):
        reported.append(row)
        taken.clear()

    def stop():
        return len(reported) == 3 and len(taken) >= 5 * EPISODES

    monkeypatch.setattr(Mirror, "step", uneven)
    settings = settings_for("Box")
    result = train(settings, tmp_path / "run", report=report, should_stop=stop)
    assert result.last.iteration == 3
    assert 0 < result.after.episodes < EPISODES
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    assert after["episodes"] == result.after.episodes
    assert not result.finished
    assert _conclude(settings, result) == ExitCode.INTERRUPTED
    assert f"({result.after.episodes} evaluation episodes)" in capsys.readouterr().out
