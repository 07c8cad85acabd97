"""A family in one file and one line: kernels, gradients and report serve it as it is."""

import dataclasses
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
from tests.bits import BIT
from tests.bits import FAMILY as BITS
from tests.exponential import FAMILY
from tests.house import ROOT
from tests.kernel_cases import NUMBERS, batch, conforms, head, static

pytest.importorskip("triton", reason="Triton has no wheel here")

# The interpreter is numpy: forbidden actions' infinite logits cancel to NaN, selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")

REPORT = """
from klppo_compile.distributions import FAMILIES
from tests import bits, exponential

FAMILIES["exponential"], FAMILIES["bits"] = exponential.FAMILY, bits.FAMILY
from klppo_compile.kernels.cases import Case, cases
from klppo_compile.kernels.compiled_cost import measure

assert FAMILIES.keys() == {case.family for case in cases()}
for name, D in (("exponential", 6), ("bits", 6), ("bits", 131072)):
    for row in measure(Case(name, 4096, D, masks=True), "sm_90"):
        assert not row.cost.spills
        print(name, row.kernel, sep=":")
"""
LAUNCHED = """
exponential:factorised_forward exponential:finalize exponential:factorised_backward
bits:softmax_forward bits:finalize bits:softmax_backward
bits:streaming_softmax bits:streaming_again bits:streaming_close bits:finalize
bits:softmax_backward
"""


def exponential(N, D, dtype=torch.float32, eps=0.1):
    old = (torch.rand(N, D) + 0.5).to(dtype)
    new = (old * (1 + eps * torch.randn(N, D))).to(dtype)
    return PolicyHead(FAMILY, torch.rand(N, D) * 2, (old,), (new,))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "exponential", FAMILY)
    monkeypatch.setitem(FAMILIES, "bits", BITS)


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


@pytest.mark.parametrize(("D", "K"), [(2, 1), (7, 3), (70, 1), (5000, 1), (5000, 2)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_kernels_serve_a_softmax_family(D, K, reduction):
    minibatch = batch(head("bits", 5, D, K, forbidden=0.1 if K == 1 else 0.0), masks=True)
    assert choose(minibatch, "triton").backend == "triton"
    conforms(minibatch, static(reduction=reduction))


def test_a_softmax_family_beside_others():
    heads = head("bits", 6, 4, 2), exponential(6, 3), head("categorical", 6, 5)
    numbers = (*NUMBERS[:4], 0.01, 0.02, 0.03, *NUMBERS[5:])
    conforms(batch(*heads, masks=True), static(), numbers, gradient=2e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_softmax_family_is_computed_by_its_own_text(backend):
    minibatch = batch(head("bits", 6, 7))
    (h,) = minibatch.policy
    twin = dataclasses.replace(h, family=FAMILIES["categorical"])
    plain = dataclasses.replace(minibatch, policy=(twin,))
    found, other = (klpen_ppo_loss(b, 1.0, LossConfig(), backend) for b in (minibatch, plain))
    torch.testing.assert_close(found.kl * BIT, other.kl, rtol=3e-6, atol=0.0)
    torch.testing.assert_close(found.log_prob, other.log_prob)


def test_a_text_that_older_tritons_refuse_is_refused_by_all():
    from klppo_compile.kernels.specialise import device_function

    def vjp(g_log_prob, *rest):
        return g_log_prob

    with pytest.raises(TypeError, match=r"must name its parameters; vjp takes any number by \*"):
        device_function(vjp)


def test_the_report_compiles_them():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == LAUNCHED.split()
