"""A categorical policy of which one rare action moves: its KL against float64 and 50 digits."""

import mpmath
import pytest
import torch

from klppo_compile import Minibatch, PolicyHead, klpen_ppo_loss
from klppo_compile.compiling import FUSED_MULTIPLY_ADD
from klppo_compile.distributions import FAMILIES
from klppo_compile.series import psi
from tests.builders import GRADIENT_ERROR, KL_ERROR


def head(old, new, action):
    """A categorical head of logits [N, 1, A]."""
    return PolicyHead(FAMILIES["categorical"], action, (old,), (new,))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("actions", "spread"), [(3, 6.0), (6, 10.0), (18, 5.0)])
def test_a_rare_action_that_jumps_keeps_its_digits(actions, spread, compiled):
    """Its q (psi(u) - u) cancels: where it is all of the KL, q and r have to be wrong alike."""
    torch.manual_seed(0)
    old = spread * torch.randn(4000, 1, actions)
    jump = torch.rand(4000, 1, 1) * 4 - 2
    new = old.scatter_add(-1, old.argmin(-1, True), jump)
    found = rows_kl(old, new, compiled)
    x, y = old.double().log_softmax(-1), new.double().log_softmax(-1)
    exact = (x.exp() * psi(x - y)).sum((-2, -1))
    seen = exact > 1e-12
    assert seen.double().mean() > 0.5
    assert ((found.double() - exact).abs() < KL_ERROR * exact)[seen].all()


def rows_kl(old, new, compiled):
    """The KL of rows of logits [N, 1, A], eager or as `compile_loss` compiles it."""
    rows = len(old)
    moved = head(old, new, torch.zeros(rows, 1).long())

    def kl(one_head):
        return klpen_ppo_loss(Minibatch((one_head,), *torch.zeros(2, rows)), 1.0).kl

    if compiled:
        torch.compiler.reset()
        kl = torch.compile(kl, fullgraph=True, options=FUSED_MULTIPLY_ADD)
    return kl(moved)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_what_was_all_but_impossible_keeps_its_digits(compiled):
    """One of two actions, from e^-30 to e^-80 before, rises: the KL is its new probability."""
    torch.manual_seed(0)
    old = 2 * torch.rand(8192, 1, 2)
    old[..., 1] = -30 - 50 * torch.rand(8192, 1)
    new = old.clone()
    new[..., 1] = -3 - 20 * torch.rand(8192, 1)
    found = rows_kl(old, new, compiled)
    x, y = old.double().log_softmax(-1), new.double().log_softmax(-1)
    exact = (x.exp() * psi(x - y)).sum((-2, -1))
    seen = (exact > 1e-12) & (exact < 0.1)
    assert seen.double().mean() > 0.5
    assert ((found.double() - exact).abs() < KL_ERROR * exact)[seen].all()


@pytest.mark.parametrize("step", [1e-3, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("actions", [18, 5000, 131072])
def test_a_rare_action_alone_may_move(actions, step):
    """A uniform policy's first update: what is the new maximum says nothing of the others."""
    new = raised(actions, step)
    batch = moved_alone(new)
    out = klpen_ppo_loss(batch, 1.0)
    assert float(out.kl[0]) == pytest.approx(kl_of_raised(new[0, 0, 0], actions), rel=KL_ERROR)
    (found,) = torch.autograd.grad(out.loss_objective, new)
    true = torch.softmax(new.detach().double(), -1) - 1 / actions
    assert (found.double() - true).norm() < GRADIENT_ERROR * true.norm()


def test_a_rare_action_alone_may_move_when_compiled():
    """The constants have other weights there. (Sums of wide rows are plain ones in vectors.)"""
    torch.compiler.reset()
    compiled = torch.compile(lambda new: klpen_ppo_loss(moved_alone(new), 1.0).kl, fullgraph=True)
    for step in (0.01, 1.0):
        new = raised(256, step)
        expected = kl_of_raised(new[0, 0, 0], 256)
        assert float(compiled(new)[0]) == pytest.approx(expected, rel=KL_ERROR)


def raised(actions, step):
    """One row of logits, all 0 but the first."""
    return torch.zeros(1, 1, actions).index_fill(-1, torch.tensor(0), step).requires_grad_()


def moved_alone(new):
    """A minibatch of one row whose old policy is uniform."""
    old, action = torch.zeros_like(new), torch.ones(1, 1).long()
    one_head = head(old, new, action)
    return Minibatch((one_head,), torch.zeros(1), torch.zeros(1))


def kl_of_raised(step, actions):
    """KL of the uniform policy to the one with one logit raised, in 50 digits."""
    with mpmath.workdps(50):
        d = mpmath.mpf(float(step.detach()))
        return float(mpmath.log1p(mpmath.expm1(d) / actions) - d / actions)
