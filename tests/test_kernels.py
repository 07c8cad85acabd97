"""The kernels, interpreted, against the torch text in float64: values, gradients, every input."""

import dataclasses

import pytest
import torch

from klppo_compile import vocabulary
from klppo_compile.distributions import FAMILIES
from klppo_compile.records import Minibatch
from tests.kernel_cases import NUMBERS, batch, conforms, head, sizes, static

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.kernels import operators, tiling
from klppo_compile.kernels import vocabulary as bound

# The interpreter is numpy: forbidden actions' infinite logits cancel to NaN, selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")
SERVED = [name for name, family in FAMILIES.items() if "triton" in family.backends]
CASES = [(name, D, K) for name in SERVED for D, K in sizes(name)]


def test_the_vocabulary_is_the_torch_one():
    assert bound.__all__ == vocabulary.__all__


@pytest.mark.parametrize(("name", "D", "K"), CASES)
def test_it_agrees_with_float64(name, D, K):
    conforms(batch(head(name, 37, D, K)), static())


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_masks_and_reductions(name, reduction, distance):
    forbidden = 0.3 if name == "categorical" else 0.0
    minibatch = batch(head(name, 21, 5, 2, forbidden=forbidden), masks=True)
    conforms(minibatch, static(reduction=reduction, loss_critic_type=distance))


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_half_precision_inputs_are_computed_in_float32(name, dtype, rounding):
    conforms(batch(head(name, 21, 6, dtype=dtype)), static(), gradient=rounding)


@pytest.mark.parametrize("eps", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("D", [18, 5000])
def test_the_kl_of_a_small_update_keeps_its_digits(eps, D):
    conforms(batch(head("categorical", 3, D, eps=eps)), static())


@pytest.mark.parametrize("name", ["normal", "categorical"])
def test_a_loss_without_critic_and_bonus(name):
    full = batch(head(name, 9, 4))
    bare = Minibatch(full.policy, full.old_log_prob, full.advantage)
    absent = ("clipped", "entropy_bonus", "explained_variance", "effective_sample_size")
    conforms(bare, static(**dict.fromkeys(absent, False)))


def test_a_vocabulary_is_split_over_programs():
    steps, programs = tiling.split(8, 131072, tiling.streaming_tile(131072, 16))
    assert (steps, programs) == (2, 32)
    conforms(batch(head("categorical", 2, 9001, 2, forbidden=0.4), masks=True), static())


def test_numbers_may_be_tensors_and_the_ratio_capped():
    numbers = [torch.tensor(x) for x in NUMBERS]
    numbers[3] = torch.tensor(0.05)
    conforms(batch(head("normal", 21, 3, eps=0.2)), static(), numbers)


def test_strides_of_rows_need_no_copy():
    plain = batch(head("normal", 12, 4))
    (policy,) = plain.policy
    wide = torch.cat(policy.new, -1)
    shared = torch.rand(1, 4) + 0.5
    policy = dataclasses.replace(
        policy, new=wide.chunk(2, -1), old=(policy.old[0], shared.expand(12, 4))
    )
    rows = {"advantage": torch.randn(12, 3)[:, 1], "old_log_prob": torch.randn(1).expand(12)}
    minibatch = dataclasses.replace(plain, policy=(policy,), **rows)
    new = tuple(x.detach().requires_grad_() for x in policy.new)
    assert new[1].stride() == (8, 1)
    policy = dataclasses.replace(policy, new=new)
    conforms(dataclasses.replace(minibatch, policy=(policy,)), static())


def test_two_launches_agree_bit_by_bit():
    minibatch = batch(head("normal", 300, 6))
    first, second = (operators.loss(minibatch, NUMBERS, static()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
