"""Short rows compiled for a CPU: the numbers of float64, and loops of many rows at once."""

import dataclasses
import re

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_cpp_code

from klppo_compile import Minibatch, PolicyHead, klpen_ppo_loss
from klppo_compile.compiling import FUSED_MULTIPLY_ADD
from tests.kernel_cases import batch, head, in_float64

ROWS = 4000
FEW = [(1, 2), (1, 3), (1, 8), (2, 2), (3, 6), (7, 3)]  # heads, actions
LEFT_OVER = [(1, 9), (3, 11), (2, 12), (1, 17), (2, 18), (1, 20), (3, 34)]  # by whole vectors
SHAPES = FEW + LEFT_OVER


def total_and_rows(minibatch, beta, new):
    (policy,) = minibatch.policy
    heads = (PolicyHead(policy.family, policy.action, policy.old, new),)
    rows = Minibatch(heads, minibatch.old_log_prob, minibatch.advantage)
    out = klpen_ppo_loss(rows, beta)
    return out.loss_objective + out.loss_entropy, out.kl, out.log_prob, out.nonfinite


def losses(minibatch, compiled, dynamic=None):
    """Loss, rows and gradients."""
    leaves = tuple(x.detach().clone().requires_grad_() for x in minibatch.policy[0].new)
    step = total_and_rows
    if compiled:
        torch.compiler.reset()
        step = torch.compile(step, fullgraph=True, dynamic=dynamic, options=FUSED_MULTIPLY_ADD)
    loss, *rows = step(minibatch, torch.ones((), dtype=minibatch.advantage.dtype), leaves)
    return loss, *rows, *torch.autograd.grad(loss, leaves)


def assert_close(found, exact):
    for x, y in zip(found, exact, strict=True):
        size = y.double().abs().nan_to_num(0, 0, 0).max().item()
        torch.testing.assert_close(
            x.double(), y.double(), rtol=3e-5, atol=1e-5 * size, equal_nan=True
        )


@pytest.mark.parametrize(("heads", "actions"), SHAPES)
def test_few_actions_are_those_of_float64(heads, actions):
    torch.manual_seed(actions)
    given = batch(head("categorical", 300, actions, heads, eps=0.3, forbidden=0.2))
    exact = losses(in_float64(given), compiled=False)
    assert_close(losses(given, compiled=True), exact)
    assert_close(losses(given, compiled=False), exact)


@pytest.mark.parametrize("seed", range(3))
def test_actions_left_over_may_be_all_or_none_that_are_allowed(seed):
    torch.manual_seed(seed)
    policy = head("categorical", 300, 18, eps=0.3)
    (old,), (new,) = policy.old, policy.new
    old[:100, :, :16], old[100:200, :, 16:] = -torch.inf, -torch.inf
    new[:100, :, :16], new[100:200, :, 16:] = -torch.inf, -torch.inf
    new[::3, :, 17] += 30 * torch.randn(100, 1)  # the largest, and the rarest
    policy.action[:100], policy.action[100:200] = 17, 5
    given = batch(policy)
    assert_close(losses(given, compiled=True), losses(in_float64(given), compiled=False))


@pytest.mark.parametrize("actions", [4, 18])
def test_an_action_out_of_range_is_nan_and_counted_when_compiled(actions):
    torch.manual_seed(actions)
    policy = head("categorical", 50, actions)
    policy.action[3], policy.action[5] = actions, -1
    given = batch(dataclasses.replace(policy, action=policy.action.clamp(0, actions - 1)))
    given = dataclasses.replace(given, policy=(policy,))
    _, kl, log_prob, nonfinite, gradient = losses(given, compiled=True)
    assert nonfinite == 2
    assert log_prob[[3, 5]].isnan().all()
    assert kl.isfinite().all()
    assert gradient[[3, 5]].isnan().all()


def generated(actions, dynamic=None):
    """Inductor's code for a softmax."""
    torch.manual_seed(actions)
    given = batch(head("categorical", ROWS, actions))
    with fresh_cache():  # what is cached is not generated
        return run_and_get_cpp_code(losses, given, compiled=True, dynamic=dynamic)[1]


@pytest.mark.parametrize("actions", [2, 4, 8])
def test_rows_of_few_actions_are_computed_in_vectors(actions):
    code = generated(actions)
    loops = re.findall(
        r"x\d+<static_cast<int64_t>\((\d+)L\); x\d+\+=static_cast<\w+>\((\d+)L", code
    )
    steps = {int(step) for bound, step in loops if int(bound) >= ROWS}
    assert steps
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert 1 not in steps


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="vectors of 8 or 16"
)
@pytest.mark.parametrize(("actions", "left"), [(18, 2), (22, 6)])
def test_actions_left_over_take_no_vector_a_row_where_they_are_few(actions, left):
    # The 6 of 22 are too many for loops of their own.
    loads = re.findall(rf"loadu\([^;]*static_cast<int64_t>\({left}L\)\)", generated(actions))
    assert bool(loads) == (left == 6)


def test_rows_may_be_a_symbol_in_the_code_and_actions_not():
    # Whole words: the name of the file it is written to may have ks6 in its hash.
    assert set(re.findall(r"\bks\d+\b", generated(4, dynamic=True))) == {"ks0"}
