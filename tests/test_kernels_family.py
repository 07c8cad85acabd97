"""A family in one file and one line: kernels, gradients and report serve it as it is."""

import os
import subprocess
import sys

import pytest
import torch
from torch.distributions import Exponential, kl_divergence

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.backends import choose
from klppo_compile.distributions import FAMILIES
from klppo_compile.records import PolicyHead
from tests.exponential import FAMILY
from tests.house import ROOT
from tests.kernel_cases import batch, conforms, static

pytest.importorskip("triton", reason="Triton has no wheel here")

REPORT = """
from klppo_compile.distributions import FAMILIES
from tests.exponential import FAMILY

FAMILIES["exponential"] = FAMILY
from klppo_compile.kernels import report

assert "exponential" in {case.family for case in report.cases()}
for row in report.measure(report.Case("exponential", 4096, 6, masks=True), "sm_90"):
    assert not row.cost.spills
    print(row.kernel)
"""


def exponential(N, D, dtype=torch.float32, eps=0.1):
    old = (torch.rand(N, D) + 0.5).to(dtype)
    new = (old * (1 + eps * torch.randn(N, D))).to(dtype)
    return PolicyHead(FAMILY, torch.rand(N, D) * 2, (old,), (new,))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "exponential", FAMILY)


@pytest.mark.parametrize("D", [1, 6, 40])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_kernels_serve_it(D, reduction):
    minibatch = batch(exponential(9, D), masks=True)
    assert choose(minibatch, "triton").backend == "triton"
    conforms(minibatch, static(reduction=reduction), gradient=2e-5)


def test_it_is_the_distribution_of_its_name():
    head = exponential(8, 1, torch.float64)
    (old,), (new,) = head.old, head.new
    out = klpen_ppo_loss(batch(head), 1.0, LossConfig(), "torch")
    exact = kl_divergence(Exponential(old), Exponential(new)).sum(-1)
    torch.testing.assert_close(out.kl, exact)
    torch.testing.assert_close(out.entropy, Exponential(new).entropy().sum(-1).mean())
    torch.testing.assert_close(out.log_prob, Exponential(new).log_prob(head.action).sum(-1))


def test_the_report_compiles_it():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["factorised_forward", "finalize", "factorised_backward"]
