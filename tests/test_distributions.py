"""Every family's text against torch.distributions in float64, and its KL against 50 digits."""

import mpmath
import numpy as np
import pytest
import torch
from torch import distributions as td
from torch.distributions import biject_to

from klppo_compile import LossConfig, Minibatch, PolicyHead, klpen_ppo_loss
from klppo_compile.distributions import FAMILIES
from klppo_compile.records import Softmax
from tests.builders import GRADIENT_ERROR, KL_ERROR

ROWS, WIDTH = 64, 6

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def constraint(family, name):
    found = getattr(td, family.distribution).arg_constraints[name]
    return found.base_constraint if isinstance(found, td.constraints.independent) else found


def parameters(family, step=0.0, dtype=torch.float64):
    """Valid parameters drawn unconstrained, then `step` of noise away: old and new."""
    shape = (ROWS, 1, WIDTH) if isinstance(family, Softmax) else (ROWS, WIDTH)
    free = [torch.randn(shape, dtype=torch.float64) for _ in family.parameters]
    moved = [x + step * torch.randn(shape, dtype=torch.float64) for x in free]
    maps = [biject_to(constraint(family, name)) for name in family.parameters]
    return tuple(
        tuple(f(x).to(dtype) for f, x in zip(maps, values, strict=True)) for values in (free, moved)
    )


def distribution(family, params):
    base = getattr(td, family.distribution)(**dict(zip(family.parameters, params, strict=True)))
    if getattr(family, "squashed", False):
        return td.Independent(td.TransformedDistribution(base, td.TanhTransform()), 1)
    return td.Independent(base, 1)


def draw(family, params):
    """An action; a squashed one stays off the bounds, which float32 would reach."""
    action = distribution(family, params).sample()
    return action.clamp(-0.99, 0.99) if getattr(family, "squashed", False) else action


def head(family, old, new, action):
    noise = weights = None
    if getattr(family, "correction", None) is not None:
        noise = torch.randn(3, *new[0].shape, dtype=new[0].dtype)
        weights = noise.new_full((3,), 1 / 3)
    return PolicyHead(family, action, old, new, noise=noise, weights=weights)


def losses(one_head, **config):
    rows = one_head.new[0].shape[0]
    batch = Minibatch((one_head,), torch.zeros(rows).to(one_head.new[0]), torch.ones(rows))
    return klpen_ppo_loss(batch, 1.0, LossConfig(**config))


@every_family
def test_log_prob_and_kl_are_those_of_torch(family):
    old, new = parameters(family, step=0.5)
    action = distribution(family, old).sample()
    out = losses(head(family, old, new, action))
    theirs = distribution(family, new)
    torch.testing.assert_close(out.log_prob, theirs.log_prob(action), rtol=1e-9, atol=1e-9)
    kl = td.kl_divergence(distribution(family, old), theirs)
    torch.testing.assert_close(out.kl, kl, rtol=1e-7, atol=1e-9)


@every_family
def test_entropy_is_that_of_torch(family):
    _, new = parameters(family)
    one_head = head(family, new, new, distribution(family, new).sample())
    out = losses(one_head)
    if one_head.noise is None:
        expected = distribution(family, new).entropy()
    else:
        # the same draws, pushed through torch's own transform
        loc, scale = new
        x = loc + scale * one_head.noise
        slope = td.TanhTransform().log_abs_det_jacobian(x, x.tanh()).mean(0)
        expected = (td.Normal(loc, scale).entropy() + slope).sum(-1)
    torch.testing.assert_close(out.entropy, expected.mean(), rtol=1e-9, atol=1e-9)


@every_family
def test_three_gradients_are_those_of_autograd(family):
    """With separate weights, so that a mix-up of the upstream gradients shows."""
    old, new = parameters(family, step=0.5)
    new = tuple(x.requires_grad_() for x in new)
    one_head = head(family, old, new, distribution(family, old).sample())
    out = losses(one_head, reduction="none", entropy_coeff=0.3)
    g, h = torch.rand(2, ROWS, dtype=torch.float64)
    found = torch.autograd.grad((g * out.loss_objective + h * out.loss_entropy).sum(), new)

    theirs = distribution(family, new)
    kl = td.kl_divergence(distribution(family, old), theirs)
    objective = kl - theirs.log_prob(one_head.action).exp()
    if one_head.noise is None:
        entropy = theirs.entropy()
    else:
        x = new[0] + new[1] * one_head.noise
        slope = td.TanhTransform().log_abs_det_jacobian(x, x.tanh()).mean(0)
        entropy = (td.Normal(*new).entropy() + slope).sum(-1)
    coeff = torch.tensor(0.3).double()
    expected = torch.autograd.grad((g * objective - h * coeff * entropy).sum(), new)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# ---- precision: textbook formulas in 50 digits, float32 inputs taken as they are


def normal_kl(old, new):
    (m, s), (n, t) = old, new
    return mpmath.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - mpmath.mpf(1) / 2


def bernoulli_kl(old, new):
    q, p = (1 / (1 + mpmath.exp(-x[0])) for x in (old, new))
    return q * mpmath.log(q / p) + (1 - q) * mpmath.log((1 - q) / (1 - p))


def categorical_kl(old, new):
    q, p = ([mpmath.exp(x) for x in z] for z in (old, new))
    q, p = ([x / sum(w) for x in w] for w in (q, p))
    return sum(a * mpmath.log(a / b) for a, b in zip(q, p, strict=True) if a)


ELEMENTS = {"Normal": normal_kl, "Bernoulli": bernoulli_kl}


def exact_kl(family, old, new, rows):
    """KL of the first rows in 50 digits."""
    with mpmath.workdps(50):
        numbers = [[p[:rows].flatten(1).tolist() for p in side] for side in (old, new)]
        numbers = [[[list(map(mpmath.mpf, r)) for r in p] for p in side] for side in numbers]
        out = []
        for r in range(rows):
            o, n = ([p[r] for p in side] for side in numbers)
            if isinstance(family, Softmax):
                out.append(categorical_kl(o[0], n[0]))
            else:
                one = ELEMENTS[family.distribution]
                pairs = zip(zip(*o, strict=True), zip(*n, strict=True), strict=True)
                out.append(sum(one(a, b) for a, b in pairs))
        return torch.tensor([float(x) for x in out], dtype=torch.float64)


@pytest.mark.parametrize("step", [1.0, 0.3, 1e-2, 1e-4, 1e-6])
@every_family
def test_small_kl_keeps_its_digits(family, step):
    old, new = parameters(family, step, torch.float32)
    rows = 24
    out = losses(head(family, old, new, draw(family, old)))
    expected = exact_kl(family, old, new, rows)
    error = (out.kl[:rows].double() - expected).abs() / expected
    assert out.kl.min() >= 0
    assert error.max() < KL_ERROR, f"KL {float(expected.mean()):.1e}"


@pytest.mark.parametrize("step", [0.3, 1e-2, 1e-4, 1e-6])
@every_family
def test_small_kl_gradient_keeps_its_digits(family, step):
    """float64 autograd is the oracle: p - q of 1e-6 cancels to ten digits there."""
    old, new = parameters(family, step, torch.float32)
    new = tuple(x.requires_grad_() for x in new)
    one_head = head(family, old, new, draw(family, old))
    batch = Minibatch((one_head,), torch.zeros(ROWS), torch.zeros(ROWS))
    objective = klpen_ppo_loss(batch, 1.0, LossConfig(reduction="sum")).loss_objective
    found = torch.autograd.grad(objective, new)
    fine = tuple(x.detach().double().requires_grad_() for x in new)
    kl = td.kl_divergence(
        distribution(family, tuple(x.double() for x in old)), distribution(family, fine)
    )
    expected = torch.autograd.grad(kl.sum(), fine)
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() < GRADIENT_ERROR * b.norm()


@pytest.mark.parametrize("ratio", [1e-6, 1e-4, 1e-3, 0.5, 0.74, 0.76, 1.24, 1.26, 1e3, 1e6])
def test_a_gaussians_kl_holds_for_any_ratio_of_scales(ratio):
    family = FAMILIES["normal"]
    new = (torch.zeros(1, 1), torch.ones(1, 1))
    old = (torch.full((1, 1), 0.1), torch.full((1, 1), ratio))
    kl = losses(head(family, old, new, torch.zeros(1, 1))).kl
    expected = exact_kl(family, old, new, 1)
    assert (kl.double() - expected).abs() < KL_ERROR * expected


@pytest.mark.parametrize(
    ("before", "after"),
    [(0.1, 1.5), (0.0, -1.1), (-2.0, 2.0), (-0.1, 7.7), (-40.0, -8.0), (-8.0, -40.0), (30.0, -3.0)],
)
def test_a_bernoullis_kl_holds_for_any_logits(before, after):
    family = FAMILIES["bernoulli"]
    old, new = (torch.tensor([[x], [-x]]) for x in (before, after))
    kl = losses(head(family, (old,), (new,), torch.zeros(2, 1))).kl
    expected = exact_kl(family, (old,), (new,), 2)
    assert ((kl.double() - expected).abs() < KL_ERROR * expected).all()


@pytest.mark.parametrize("step", [0.3, -0.3, 2.0, -30.0])
@pytest.mark.parametrize("logit", [-15.0, 0.1, 9.0, 12.0, 18.0, 40.0])
def test_a_bernoullis_kl_gradient_holds_near_certainty(logit, step):
    old, new = torch.full((4, 1), logit), torch.full((4, 1), logit + step, requires_grad=True)
    one_head = head(FAMILIES["bernoulli"], (old,), (new,), torch.ones(4, 1))
    batch = Minibatch((one_head,), torch.zeros(4), torch.zeros(4))
    config = LossConfig(reduction="sum", entropy_bonus=False)
    (found,) = torch.autograd.grad(klpen_ppo_loss(batch, 1.0, config).loss_objective, new)
    side = -1.0 if logit > 0.0 else 1.0  # p - q = (1 - q) - (1 - p)
    exact = side * ((side * new).double().sigmoid() - (side * old).double().sigmoid())
    assert (found.double() - exact).norm() < GRADIENT_ERROR * exact.norm()


def test_a_quadrature_is_of_float32_under_autocast():
    torch.manual_seed(0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    nodes = torch.tensor(nodes, dtype=torch.float32).reshape(-1, 1, 1)
    weights = torch.tensor(weights / weights.sum(), dtype=torch.float32)
    loc, scale = torch.randn(16, 3), torch.rand(16, 3) + 0.3
    found = []
    for enabled in (False, True):
        new = (loc.clone().requires_grad_(), scale.clone().requires_grad_())
        one_head = PolicyHead(
            FAMILIES["tanh_normal"], torch.zeros(16, 3), (loc, scale), new, None, nodes, weights
        )
        batch = Minibatch((one_head,), torch.zeros(16), torch.zeros(16))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = klpen_ppo_loss(batch, 1.0)
            gradients = torch.autograd.grad(out.loss_entropy, new)
        found.append((out.entropy, *gradients))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_negative_scale_is_not_finite(side):
    family = FAMILIES["normal"]
    good, bad = (torch.zeros(3, 2), torch.ones(3, 2)), (torch.zeros(3, 2), -torch.ones(3, 2))
    old, new = (bad, good) if side == "old" else (good, bad)
    assert losses(head(family, old, new, torch.zeros(3, 2))).nonfinite == 3


def test_offset_logits_keep_the_mean_kl():
    family = FAMILIES["categorical"]
    old, (logits,) = parameters(family, 1e-2, torch.float32)
    new = (logits + 30.0,)
    out = losses(head(family, old, new, torch.zeros(ROWS, 1).long()))
    expected = exact_kl(family, old, new, ROWS)
    assert abs(float(out.mean_kl) - float(expected.mean())) < 1e-3 * float(expected.mean())


def forbid(logits, action):
    return logits.index_fill(-1, torch.tensor(action), -torch.inf)


@pytest.mark.parametrize("step", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("mass", [0.0, 1e-9, 1e-4, 0.2])
def test_forbidden_actions_count_right(mass, step):
    """Action 2 is forbidden to the old policy; the new one gives it some mass, or none."""
    family = FAMILIES["categorical"]
    (old,), (new,) = parameters(family, step, torch.float32)
    old, new = forbid(old, 2), forbid(new, 2)
    if mass:
        new[..., 2] = new.logsumexp(-1) + torch.log(torch.tensor(mass))
    new.requires_grad_()
    out = losses(head(family, (old,), (new,), torch.zeros(ROWS, 1).long()))
    expected = exact_kl(family, (old,), (new,), 24)
    error = (out.kl[:24].double() - expected).abs() / expected
    assert error.max() < KL_ERROR
    batch = Minibatch(
        (head(family, (old,), (new,), torch.zeros(ROWS, 1).long()),),
        torch.zeros(ROWS),
        torch.zeros(ROWS),
    )
    objective = klpen_ppo_loss(batch, 1.0, LossConfig(reduction="sum")).loss_objective
    (grad,) = torch.autograd.grad(objective, new)
    q, p = (torch.softmax(x.detach().double(), -1) for x in (old, new))
    assert (grad.double() - (p - q)).norm() < GRADIENT_ERROR * (p - q).norm()


def test_gradient_is_finite_where_the_kl_is_infinite():
    family = FAMILIES["categorical"]
    (old,), (new,) = parameters(family, 0.1, torch.float32)
    new = forbid(new, 2).requires_grad_()
    out = losses(head(family, (old,), (new,), torch.zeros(ROWS, 1).long()), reduction="sum")
    assert out.kl.isinf().all()
    assert out.nonfinite == ROWS
    (grad,) = torch.autograd.grad(out.loss_objective, new)
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_family
def test_sixteen_bits_are_computed_in_thirty_two(family, dtype):
    """Against float64 on the same stored inputs: only the inputs' rounding is lost."""
    old, new = parameters(family, 0.1, dtype)
    action = draw(family, tuple(x.float() for x in old))
    fine = [tuple(x.double() for x in side) for side in (old, new)]
    wide = head(family, *fine, action.double() if action.is_floating_point() else action)
    narrow = PolicyHead(
        family,
        action,
        old,
        new,
        noise=None if wide.noise is None else wide.noise.float(),
        weights=None if wide.weights is None else wide.weights.float(),
    )
    found, expected = losses(narrow), losses(wide)
    for name in ("loss_objective", "kl", "kl_approx", "entropy", "loss_entropy"):
        x = getattr(found, name)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), getattr(expected, name), rtol=2e-5, atol=2e-6)
