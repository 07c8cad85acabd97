"""A trained run, exported: the file takes what the environment gives, and no torch is asked."""

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from tensordict import TensorDict

from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode
from klppo_compile.training.loading import load_run
from klppo_compile.training.normaliser import ObservationNormaliser
from klppo_compile.training.train import train
from tests.training_cases import settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("run") / "cartpole"
    train(settings_for("CartPole-v1"), place)
    return place


def test_a_trained_runs_file_takes_raw_observations(folder, tmp_path):
    path = tmp_path / "policy.onnx"
    words = ["export", str(folder), "--out", str(path), "--graph", "policy", "--checkpoint", "last"]
    assert run(words) == ExitCode.GOOD
    actor = load_run(folder, "last").actor
    (normaliser,) = (m for m in actor.modules() if isinstance(m, ObservationNormaliser))
    assert normaliser.count > 0
    assert not torch.allclose(normaliser.var, torch.ones_like(normaliser.var), atol=0.05)
    with gymnasium.make("CartPole-v1") as environment:
        raw = [environment.reset(seed=0)[0]]
        raw += [environment.step(i % 2)[0] for i in range(8)]
    raw = np.stack(raw).astype(np.float32)
    opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [x.name for x in opened.get_inputs()] == ["observation"]
    (logits,) = opened.run(["logits"], {"observation": raw})
    with torch.no_grad():
        wanted = actor.get_dist_params(TensorDict({"observation": torch.from_numpy(raw)}, [9]))
        standardised = normaliser(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(logits, wanted["logits"].numpy(), rtol=1e-5, atol=1e-6)
    (twice,) = opened.run(["logits"], {"observation": standardised})
    assert np.abs(twice - logits).max() > 1e-3
