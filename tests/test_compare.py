"""klppo compare: which files have a KL between them, and which parts of one add up."""

import json

import numpy as np
import pytest
import torch
from tensordict.nn import ProbabilisticTensorDictModule
from torch import distributions as td
from torchrl.modules import TanhNormal

from klppo_compile.cli import run
from klppo_compile.exit_codes import ExitCode
from klppo_compile.export import export_loss
from tests.export_cases import loss_of


def gamma(factor):
    """A Gamma of a rate times a factor."""
    return lambda concentration, rate: td.Independent(td.Gamma(concentration, factor * rate), 1)


def heated(temperature):
    """A distribution of logits at a temperature."""
    return lambda logits: td.Categorical(logits=logits / temperature)


DISTRIBUTIONS = {
    "temperature": ("Categorical", heated(1.0), {}, heated(0.2), {}),
    "clamp": ("Categorical", heated(1.0), {}, lambda logits: heated(1)(logits.clamp(-8, 8)), {}),
    "bounds": ("TanhNormal", TanhNormal, {}, TanhNormal, {"low": -2.0, "high": 2.0}),
    "location": ("TanhNormal", TanhNormal, {}, TanhNormal, {"tanh_loc": True, "upscale": 1.0}),
    "rate": ("Gamma", gamma(1.0), {}, gamma(2.0)),
}


def export(folder, name, family, kind=None, constants=None, nudge=0.0):
    """A file of a family, with a distribution of its own."""
    loss, data = loss_of(family)
    if kind is not None:
        (module,) = [
            m for m in loss.actor_network.modules() if isinstance(m, ProbabilisticTensorDictModule)
        ]
        module.distribution_class, module.distribution_kwargs = kind, constants or {}
        loss = type(loss)(loss.get_stateful_net("actor_network"), loss.critic_network)
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.data.add_(nudge * torch.randn(parameter.shape))
    export_loss(loss, data, folder / f"{name}.onnx", checked=False)
    np.savez(folder / "rollout.npz", **{k: x.numpy() for k, x in data.items()})


def compared(folder, old, new, *options):
    files = [str(folder / f"{name}.onnx") for name in (old, new)]
    return run(["compare", *files, "--data", str(folder / "rollout.npz"), *options])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_policies_that_read_one_head_in_two_ways_have_no_kl(name, tmp_path, capsys):
    family, old, constants, new, *others = DISTRIBUTIONS[name]
    export(tmp_path, "old", family, old, constants)
    export(tmp_path, "new", family, new, *others)
    assert compared(tmp_path, "old", "new", "--max-kl=1e-6") == ExitCode.BAD_INPUT
    assert "they make one distribution of a head" in capsys.readouterr().err
    assert compared(tmp_path, "new", "new", "--max-kl=1e-6") == ExitCode.GOOD


def test_one_distribution_compares_whoever_builds_it(tmp_path, capsys):
    export(tmp_path, "class", "Categorical")
    export(tmp_path, "callable", "Categorical", heated(1.0), nudge=0.1)
    assert compared(tmp_path, "class", "callable", "--json") == ExitCode.GOOD
    assert json.loads(capsys.readouterr().out)["report"]["kl_mean"] > 1e-4


def test_the_distribution_of_a_file_is_the_one_in_its_graph(tmp_path, capsys):
    """A trainer has given the actor another since the loss was made."""
    loss, data = loss_of("Categorical")
    names = {"in_keys": ["logits"], "out_keys": ["action"]}
    cool = ProbabilisticTensorDictModule(**names, distribution_class=heated(0.2))
    loss.actor_network.module[-1] = cool
    export_loss(loss, data, tmp_path / "swapped.onnx", checked=False)
    export(tmp_path, "hot", "Categorical", heated(1.0))
    export(tmp_path, "cold", "Categorical", heated(0.2))
    assert compared(tmp_path, "hot", "swapped") == ExitCode.BAD_INPUT
    assert compared(tmp_path, "cold", "swapped") == ExitCode.GOOD
    assert "they make one distribution of a head" in capsys.readouterr().err


def test_parts_of_comparisons_with_two_files_do_not_add_up(tmp_path, capsys):
    parts = []
    for i, name in enumerate(("one", "two", "new")):
        export(tmp_path, name, "Categorical", nudge=0.1 * i)
    for name, rows in (("one", ":24"), ("two", "24:")):
        parts.append(str(tmp_path / f"{name}.json"))
        options = ("--rows", rows, "--out", parts[-1])
        assert compared(tmp_path, name, "new", *options) == ExitCode.GOOD
    assert run(["merge", *parts]) == ExitCode.BAD_INPUT
    assert "must have the same old sha256" in capsys.readouterr().err
