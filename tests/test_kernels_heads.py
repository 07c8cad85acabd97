"""Rows of several action heads, unequal in size and kind; critics with rows of their own."""

import dataclasses

import pytest
import torch

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.records import Minibatch
from tests.kernel_cases import NUMBERS, batch, conforms, head, leaves, static

pytest.importorskip("triton", reason="Triton has no wheel here")

# The interpreter is numpy: forbidden actions' infinite logits cancel to NaN, selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")
KINDS = {
    "multi-discrete": lambda N: [head("categorical", N, D) for D in (3, 7, 2)],
    "composite": lambda N: [head("normal", N, 5), head("categorical", N, 4, 2, forbidden=0.3)],
    "wide": lambda N: [head("categorical", N, 5000), head("tanh_normal", N, 2)],
}


def coefficients(*each):
    """The numbers with each head's own entropy coefficient."""
    return (*NUMBERS[:4], *each, *NUMBERS[5:])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_add_up(kind, reduction):
    policy = KINDS[kind](9)
    weights = coefficients(*[0.01 * (i + 1) for i in range(len(policy))])
    minibatch = batch(*policy, masks=reduction == "none")
    conforms(minibatch, static(reduction=reduction), weights)


def test_heads_without_critic_and_bonus():
    full = batch(*KINDS["multi-discrete"](5))
    bare = Minibatch(full.policy, full.old_log_prob, full.advantage)
    changes = {"clipped": False, "entropy_bonus": False, "explained_variance": False}
    conforms(bare, static(**changes), coefficients(0.1, 0.1, 0.1))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_critic_with_rows_of_its_own(reduction, masks):
    minibatch = batch(head("normal", 12, 3), masks=masks, values=(4, 2))
    conforms(minibatch, static(reduction=reduction))


def test_a_critic_without_rows_beside_a_policy_without_rows():
    conforms(batch(head("normal", 0, 3), values=(4,)), static())
    conforms(batch(head("normal", 4, 3), values=(0,)), static())


def test_heads_and_critic_through_the_public_function():
    minibatch = batch(*KINDS["composite"](6), values=(3,))
    inputs = leaves(minibatch)
    config = LossConfig(entropy_coeff=(0.1, torch.tensor(0.2)), clip_value=0.2)
    found = []
    for backend in ("torch", "triton"):
        out = klpen_ppo_loss(minibatch, torch.tensor(1.3), config, backend)
        total = out.loss_objective + out.loss_entropy + out.loss_critic
        found.append((total, out.next_beta, *torch.autograd.grad(total, inputs)))
    torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=1e-6)


def test_the_volume_of_a_unit_may_differ_by_row():
    policy = dataclasses.replace(head("tanh_normal", 7, 3), log_volume=torch.randn(7))
    conforms(batch(policy), static(reduction="none"))
