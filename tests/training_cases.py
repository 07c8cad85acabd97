"""What the tests of training share: small runs, and how two of them are compared."""

import csv
from dataclasses import replace
from types import SimpleNamespace

from klppo_compile.training.settings import TrainSettings
from tests import mirror_environments

CHECKPOINTS = ("early", "best", "last")
FILES = {
    "config.json",
    "curves.png",
    "metrics.csv",
    "resume.safetensors",
    "rollout",
    "summary.json",
    *(f"{which}.safetensors" for which in CHECKPOINTS),
}


def settings_for(env, **changes):
    """Settings of a run that takes a second."""
    small = TrainSettings(
        env=f"tests/{env}-v0" if env in mirror_environments.NAMES else env,
        steps=384,
        num_envs=4,
        horizon=32,
        epochs=2,
        minibatch_size=64,
        learning_rate=3e-3,
        compile=False,
    )
    return replace(small, **changes)


def metrics_of(folder):
    """Return the rows of a run without their wall time."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds")
    return rows


def same_files(first, second, names=CHECKPOINTS):
    return all(
        (first / f"{n}.safetensors").read_bytes() == (second / f"{n}.safetensors").read_bytes()
        for n in names
    )


def finished_run(folder):
    """What a run that went to its end gives, as far as `klppo demo` prints it."""
    return SimpleNamespace(
        folder=folder,
        before=SimpleNamespace(mean=1.0, std=0.0),
        after=SimpleNamespace(mean=2.0, std=0.0),
        last=SimpleNamespace(step=10, seconds=1.0),
        finished=True,
    )
