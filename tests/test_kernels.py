"""The kernels, interpreted, against the torch text in float64: values, gradients, every input."""

import dataclasses

import pytest
import torch

from klppo_compile import eager, vocabulary
from klppo_compile.distributions import FAMILIES
from klppo_compile.penalty import adaptive
from klppo_compile.records import Minibatch
from tests.kernel_cases import LOSSES, NUMBERS, batch, head, in_float64, leaves, sizes, static

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.kernels import operators, tiling
from klppo_compile.kernels import vocabulary as bound

# The interpreter is numpy: forbidden actions' infinite logits cancel to NaN, selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")
SERVED = [name for name, family in FAMILIES.items() if "triton" in family.backends]
CASES = [(name, D, K) for name in SERVED for D, K in sizes(name)]


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fill torch.empty with NaN, so that an output nobody writes can't pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def conforms(minibatch, shape, numbers=NUMBERS, gradient=5e-6, value=3e-5):
    """Check every output and gradient; KL row by row, relatively."""
    exact = in_float64(minibatch)
    inputs, exact_inputs = leaves(minibatch), leaves(exact)
    out = operators.loss(minibatch, numbers, shape)
    floats = torch.tensor([float(x) for x in numbers], dtype=torch.float64)
    expected = eager.loss(exact, floats[:5], shape)
    count = expected["kl"].numel() if minibatch.mask is None else minibatch.mask.sum()
    expected["next_beta"] = adaptive(floats[0], expected["mean_kl"], count, *floats[5:])
    assert set(out) == set(expected)
    for name, true in expected.items():
        assert out[name].shape == true.shape, name
        scale = true.detach().abs().max() if true.numel() else 0.0
        if name == "kl_approx":
            # A small difference of log-probs, which float32 has rounded.
            log_prob = expected["log_prob"].detach()
            scale = log_prob.abs().max() if log_prob.numel() else 0.0
        torch.testing.assert_close(
            out[name].double(), true.double(), rtol=value, atol=float(value * scale), msg=name
        )
    torch.testing.assert_close(out["kl"].double(), expected["kl"], rtol=5e-6, atol=1e-15)
    assert bool((out["kl"] >= 0).all())
    names = [name for name in LOSSES if name in expected]
    upstream = [torch.rand_like(expected[name]) for name in names]
    true = torch.autograd.grad([expected[n] for n in names], exact_inputs, upstream)
    found = torch.autograd.grad([out[n] for n in names], inputs, [g.float() for g in upstream])
    for x, y in zip(found, true, strict=True):
        assert x.dtype in {torch.float32, inputs[0].dtype}
        scale = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x.double(), y, rtol=0, atol=gradient * scale)


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


@pytest.mark.parametrize(("name", "D"), [("normal", 3), ("categorical", 5), ("categorical", 5000)])
@pytest.mark.parametrize("N", [0, 1])
def test_no_rows_and_one(name, D, N):
    conforms(batch(head(name, N, D)), static())


@pytest.mark.parametrize("eps", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("D", [18, 5000])
def test_the_kl_of_a_small_update_keeps_its_digits(eps, D):
    conforms(batch(head("categorical", 3, D, eps=eps)), static())


@pytest.mark.parametrize("name", ["normal", "categorical"])
def test_a_loss_without_critic_and_bonus(name):
    full = batch(head(name, 9, 4))
    bare = Minibatch(full.policy, full.old_log_prob, full.advantage)
    changes = {"clipped": False, "entropy_bonus": False, "explained_variance": False}
    conforms(bare, static(**changes))


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


def test_an_action_out_of_range_is_reported_not_read():
    minibatch = batch(head("categorical", 6, 5))
    minibatch.policy[0].action[2] = 5
    minibatch.policy[0].action[4] = -1
    out = operators.loss(minibatch, NUMBERS, static())
    assert out["nonfinite"] == 2
    assert out["log_prob"].isnan().tolist() == [False, False, True, False, True, False]


def test_two_launches_agree_bit_by_bit():
    minibatch = batch(head("normal", 300, 6))
    first, second = (operators.loss(minibatch, NUMBERS, static()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
