"""Which backend serves a minibatch, and the reason."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.backends import choose
from klppo_compile.records import Factorised, PolicyHead, Rows
from tests.kernel_cases import batch, head


def wrong(change):
    minibatch = batch(head("normal", 4, 3))
    (h,) = minibatch.policy
    stranger = Factorised("normal", "Normal", ("loc", "scale"), *[h.family.kl] * 4)
    return {
        "float64": lambda: dataclasses.replace(minibatch, advantage=torch.randn(4).double()),
        "distribution": lambda: dataclasses.replace(
            minibatch, policy=(h, PolicyHead(Rows(), None, (), (torch.randn(4),) * 3))
        ),
        "family": lambda: dataclasses.replace(
            minibatch, policy=(dataclasses.replace(h, family=stranger),)
        ),
        "elements": lambda: batch(head("normal", 4, 600)),
        "actions": lambda: batch(head("categorical", 1, 262_145)),
    }[change]()


def test_auto_on_the_cpu_is_torch():
    choice = choose(batch(head("normal", 4, 3)))
    assert choice.backend == "torch"
    assert "cpu" in choice.reason


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_backend_that_is_asked_for(backend):
    pytest.importorskip("triton", reason="Triton has no wheel here")
    minibatch = batch(head("normal", 4, 3))
    assert choose(minibatch, backend) == (backend, "it was asked for")
    out = klpen_ppo_loss(minibatch, 1.0, LossConfig(), backend)
    other = klpen_ppo_loss(minibatch, 1.0, LossConfig(), "torch")
    torch.testing.assert_close(out.loss_objective, other.loss_objective)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("float64", "float64 is computed by PyTorch"),
        ("distribution", "'rows' has no text of ours"),
        ("family", "'normal' has no text of ours"),
        ("elements", "up to 512 elements"),
        ("actions", "up to 262144 actions"),
    ],
)
def test_a_forced_backend_that_cannot_serve_is_refused(change, reason):
    pytest.importorskip("triton", reason="Triton has no wheel here")
    with pytest.raises(ValueError, match=reason):
        choose(wrong(change), "triton")


def test_without_the_interpreter_the_cpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"TRITON_INTERPRET=1|not installed"):
        choose(batch(head("normal", 4, 3)), "triton")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"'auto', 'torch', 'triton'; got 'cuda'"):
        choose(batch(head("normal", 4, 3)), "cuda")


def test_torch_alone_loads_no_triton():
    code = (
        "import sys, torch\n"
        "from tests.kernel_cases import batch, head\n"
        "from klppo_compile import klpen_ppo_loss\n"
        "klpen_ppo_loss(batch(head('normal', 4, 3)), 1.0)\n"
        "assert 'triton' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
