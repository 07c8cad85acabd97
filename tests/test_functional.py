"""The whole loss on tensors, against the same thing said plainly in torch and float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import distributions as td
from torch.nn import functional

from klppo_compile import LossConfig, Minibatch, PolicyHead, klpen_ppo_loss
from klppo_compile.distributions import FAMILIES
from klppo_compile.records import Rows

DISTANCES = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}


def problem(rows=40, events=3, **given):
    """A Gaussian minibatch in float64 and its differentiable leaves."""
    old = (torch.randn(rows, events).double(), torch.rand(rows, events).double() + 0.5)
    new = tuple((x + 0.1 * torch.rand_like(x)).requires_grad_() for x in old)
    action = td.Normal(*old).sample()
    value = torch.randn(rows).double().requires_grad_()
    fields = {
        "old_log_prob": td.Normal(*old).log_prob(action).sum(-1),
        "advantage": torch.randn(rows).double(),
        "value": value,
        "value_target": 3 * torch.randn(rows).double() + 100,
        "old_value": value.detach() + 0.3 * torch.randn(rows).double(),
    }
    fields["value_target"] = fields["value_target"] - 100 + value.detach()
    head = PolicyHead(FAMILIES["normal"], action, old, new)
    return Minibatch((head,), **fields | given), [*new, value]


def plainly(batch, beta, config, mask):
    """The definition, rows selected by indexing, autograd for the gradient."""
    head = batch.policy[0]
    new, old = td.Normal(*head.new), td.Normal(*head.old)
    log_prob = new.log_prob(head.action).sum(-1)
    log_ratio = log_prob - batch.old_log_prob
    ratio = log_ratio.exp()
    if config.max_importance_ratio is not None:
        # value capped, gradient that of the rescaled ratio
        scale = (config.max_importance_ratio / ratio).clamp(max=1.0).detach()
        ratio = ratio * scale
    kl = td.kl_divergence(old, new).sum(-1)
    entropy = new.entropy().sum(-1)
    distance = DISTANCES[config.loss_critic_type]
    critic = distance(batch.value, batch.value_target, reduction="none")
    out = {}
    if config.clip_value is not None:
        step = batch.value - batch.old_value
        clipped = step.clamp(-config.clip_value, config.clip_value)
        critic = torch.maximum(
            critic, distance(batch.old_value + clipped, batch.value_target, reduction="none")
        )
        out["value_clip_fraction"] = (step != clipped)[mask].double().mean()
    rows = {
        "loss_objective": beta * kl - ratio * batch.advantage,
        "loss_entropy": -0.01 * entropy,
        "loss_critic": config.critic_coeff * critic,
    }
    for name, x in rows.items():
        if config.reduction == "none":
            out[name] = torch.where(mask, x, 0.0)
        else:
            out[name] = x[mask].mean() if config.reduction == "mean" else x[mask].sum()
    error, target = (batch.value - batch.value_target)[mask], batch.value_target[mask]
    return out | {
        "kl": kl,
        "mean_kl": kl[mask].mean(),
        "kl_approx": -log_ratio[mask].mean(),
        "entropy": entropy[mask].mean(),
        "effective_sample_size": ratio[mask].sum() ** 2 / ratio[mask].square().sum(),
        "explained_variance": (1 - error.var(correction=0) / target.var(correction=0)).reshape(1),
    }


def total(out):
    """Different weights, so that a mix-up of the upstream gradients shows."""
    get = out.get if isinstance(out, dict) else lambda name: getattr(out, name)
    weights = {"loss_objective": 1.0, "loss_entropy": 0.7, "loss_critic": 2.0}
    return sum(w * get(name).sum() for name, w in weights.items())


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "masked"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("cap", [None, 1.1])
@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("distance", DISTANCES)
def test_losses_metrics_and_gradients_are_the_definitions(distance, clip, cap, reduction, masked):
    mask = torch.rand(40) < 0.6 if masked else None
    batch, leaves = problem(mask=mask, value_mask=mask)
    config = LossConfig(
        loss_critic_type=distance,
        clip_value=clip,
        max_importance_ratio=cap,
        reduction=reduction,
        critic_coeff=0.5,
    )
    out = klpen_ppo_loss(batch, 1.3, config)
    # float32 hyper-parameters, as torchrl's buffers are
    exact = {n: float(torch.tensor(v)) for n, v in (("clip_value", clip), ("cap", cap)) if v}
    plain_config = LossConfig(
        loss_critic_type=distance,
        clip_value=exact.get("clip_value"),
        max_importance_ratio=exact.get("cap"),
        reduction=reduction,
        critic_coeff=0.5,
    )
    valid = torch.ones(40, dtype=torch.bool) if mask is None else mask
    expected = plainly(batch, float(torch.tensor(1.3)), plain_config, valid)
    for name, x in expected.items():
        torch.testing.assert_close(getattr(out, name), x, rtol=1e-6, atol=1e-8, msg=name)
    found, theirs = (torch.autograd.grad(total(o), leaves) for o in (out, expected))
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


def test_nan_in_masked_rows_reaches_nothing():
    mask = torch.arange(40) % 3 > 0
    batch, leaves = problem(mask=mask, value_mask=mask)
    clean = klpen_ppo_loss(batch, 1.0)
    clean_grads = torch.autograd.grad(total(clean), leaves)
    bad, head = ~mask, batch.policy[0]

    def spoil(x):
        return x.detach().clone().index_fill_(0, bad.nonzero().squeeze(-1), torch.nan)

    new = tuple(spoil(x).requires_grad_() for x in head.new)
    value = spoil(batch.value).requires_grad_()
    spoilt = Minibatch(
        (PolicyHead(head.family, spoil(head.action), tuple(map(spoil, head.old)), new),),
        spoil(batch.old_log_prob),
        spoil(batch.advantage),
        value,
        spoil(batch.value_target),
        mask=mask,
        value_mask=mask,
    )
    out = klpen_ppo_loss(spoilt, 1.0)
    assert out.nonfinite == 0
    for name in ("loss_objective", "loss_critic", "mean_kl", "entropy", "explained_variance"):
        assert torch.equal(getattr(out, name), getattr(clean, name)), name
    grads = torch.autograd.grad(total(out), [*new, value])
    torch.testing.assert_close(grads, clean_grads)
    assert all((g[bad] == 0).all() for g in grads)


def test_gradients_of_gradients_are_refused():
    torch.manual_seed(0)
    batch, leaves = problem()
    inputs = [(2 * x).requires_grad_() for x in leaves]
    head = batch.policy[0]
    new = tuple(x * x for x in inputs[:2])
    through = replace(batch, policy=(replace(head, new=new),), value=inputs[2] * inputs[2])
    loss = total(klpen_ppo_loss(through, 1.0))
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    torch.testing.assert_close(plain, gradients)
    with pytest.raises(RuntimeError, match="provides no gradients of gradients"):
        torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)


@pytest.mark.parametrize("field", ["old_log_prob", "advantage", "value_target"])
def test_nonfinite_counts_the_rows_whose_inputs_are(field):
    batch, _ = problem()
    x = getattr(batch, field).clone()
    x[[3, 7]] = torch.tensor([math.nan, math.inf]).double()
    spoilt = Minibatch(**{**batch.__dict__, field: x})
    assert klpen_ppo_loss(batch, 1.0).nonfinite == 0
    assert klpen_ppo_loss(spoilt, 1.0).nonfinite == 2


def test_an_action_out_of_range_is_nan_and_counted():
    logits = torch.randn(4, 1, 5)
    head = PolicyHead(
        FAMILIES["categorical"], torch.tensor([[0], [5], [-1], [4]]), (logits,), (logits,)
    )
    out = klpen_ppo_loss(Minibatch((head,), torch.zeros(4), torch.ones(4)), 1.0)
    assert out.nonfinite == 2
    assert out.log_prob.isnan().tolist() == [False, True, True, False]


def test_two_heads_add_up_and_weigh_their_own_entropy():
    batch, leaves = problem(value=None, value_target=None, old_value=None)
    logits = torch.randn(40, 1, 5).double()
    new = (logits + 0.1).requires_grad_()
    other = PolicyHead(FAMILIES["categorical"], torch.zeros(40, 1).long(), (logits,), (new * 1.1,))
    both = Minibatch((*batch.policy, other), batch.old_log_prob, batch.advantage)
    out = klpen_ppo_loss(both, 1.0, LossConfig(entropy_coeff=(0.5, 0.25)))
    alone = [
        klpen_ppo_loss(Minibatch((h,), batch.old_log_prob, batch.advantage), 1.0)
        for h in both.policy
    ]
    torch.testing.assert_close(out.kl, alone[0].kl + alone[1].kl)
    torch.testing.assert_close(out.log_prob, alone[0].log_prob + alone[1].log_prob)
    expected = -0.5 * alone[0].entropy - 0.25 * alone[1].entropy
    torch.testing.assert_close(out.loss_entropy, expected)
    grads = torch.autograd.grad(out.loss_objective + out.loss_entropy, [*leaves[:2], new])
    assert all(g.abs().sum() > 0 for g in grads)


def test_ready_rows_differentiate_by_autograd():
    rows = [torch.randn(6).double().requires_grad_() for _ in range(3)]
    batch = Minibatch(
        (PolicyHead(Rows(), None, (), tuple(rows)),),
        torch.zeros(6).double(),
        torch.ones(6).double(),
    )
    out = klpen_ppo_loss(batch, 2.0)
    found = torch.autograd.grad(out.loss_objective + out.loss_entropy, rows)
    expected = (-rows[0].exp() / 6, torch.full((6,), 2 / 6), torch.full((6,), -0.01 / 6))
    torch.testing.assert_close(found, tuple(x.double() for x in expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("kl", "beta", "expected"),
    [
        (0.016, 1.0, 2.0),
        (0.015, 1.0, 1.0),
        (0.0067, 1.0, 1.0),
        (0.0066, 1.0, 0.5),
        (0.1, 8e5, 1e6),
        (0.0, 1.5e-6, 1e-6),
        (0.1, 0.0, 0.0),
        (math.nan, 1.0, 1.0),
        (math.inf, 1.0, 1.0),
    ],
)
def test_beta_follows_the_kl(kl, beta, expected):
    head = PolicyHead(Rows(), None, (), (torch.zeros(4), torch.full((4,), kl), torch.zeros(4)))
    batch = Minibatch((head,), torch.zeros(4), torch.zeros(4))
    next_beta = klpen_ppo_loss(batch, beta).next_beta
    assert next_beta.dtype == torch.float32
    assert float(next_beta) == pytest.approx(expected)


@pytest.mark.parametrize("mask", [None, torch.zeros(4, dtype=torch.bool)])
def test_without_a_row_that_counts_beta_rests_and_losses_are_zero(mask):
    rows = 0 if mask is None else 4
    batch, leaves = problem(rows, mask=mask, value_mask=mask)
    out = klpen_ppo_loss(batch, 1.0)
    assert (out.loss_objective, out.loss_critic, out.next_beta) == (0, 0, 1)
    grads = torch.autograd.grad(total(out), leaves)
    assert all((g == 0).all() for g in grads)


def test_an_infinite_kl_is_no_penalty_when_beta_is_zero():
    head = PolicyHead(
        Rows(), None, (), (torch.zeros(2), torch.full((2,), math.inf), torch.zeros(2))
    )
    out = klpen_ppo_loss(Minibatch((head,), torch.zeros(2), torch.ones(2)), 0.0)
    assert out.loss_objective == -1


def test_explained_variance_survives_an_offset():
    """One-pass sums of squares would lose all digits here, in float32."""
    target = 1e4 + torch.randn(1000)
    value = target + 0.1 * torch.randn(1000)
    head = PolicyHead(Rows(), None, (), (torch.zeros(1000),) * 3)
    batch = Minibatch((head,), torch.zeros(1000), torch.zeros(1000), value, target)
    expected = 1 - (value - target).double().var() / target.double().var()
    found = klpen_ppo_loss(batch, 1.0).explained_variance
    torch.testing.assert_close(found.double(), expected.reshape(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "shape", "words"),
    [
        ("old_log_prob", (40, 1), r"'old_log_prob' must have the shape .* Use .squeeze\(-1\)"),
        ("advantage", (40, 1), r"'advantage' .* would broadcast to \[40, 40\]"),
        ("value_target", (40, 1), r"'value_target' must have the shape of the value, \[40\]"),
        ("mask", (40, 1), r"'mask' must have the shape"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(field, shape, words):
    batch, _ = problem()
    dtype = torch.bool if field == "mask" else torch.float64
    spoilt = Minibatch(**{**batch.__dict__, field: torch.ones(shape, dtype=dtype)})
    with pytest.raises(ValueError, match=words):
        klpen_ppo_loss(spoilt, 1.0)


def test_heads_that_do_not_fit_are_refused():
    batch, _ = problem()
    head = batch.policy[0]
    wide = PolicyHead(head.family, head.action, (head.old[0][:, :1], head.old[1]), head.new)
    with pytest.raises(ValueError, match=r"'old loc' must have the shape of new loc, \[40, 3\]"):
        klpen_ppo_loss(Minibatch((wide,), batch.old_log_prob, batch.advantage), 1.0)
    short = PolicyHead(head.family, head.action, head.old, head.new[:1])
    with pytest.raises(ValueError, match="takes an action and"):
        klpen_ppo_loss(Minibatch((short,), batch.old_log_prob, batch.advantage), 1.0)


def test_words_that_are_no_choice_are_refused():
    with pytest.raises(
        ValueError, match="reduction must be one of 'mean', 'sum', 'none'; got 'avg'"
    ):
        LossConfig(reduction="avg")
    with pytest.raises(ValueError, match="loss_critic_type must be one of"):
        LossConfig(loss_critic_type="huber")


class Dropped(torch.autograd.Function):
    """A sum that hands nothing back to its second summand."""

    @staticmethod
    def forward(_ctx, a, b):
        return a + b

    @staticmethod
    def backward(_ctx, g):
        return g, None


def test_a_loss_that_gets_no_gradient_has_none():
    batch, (loc, scale, value) = problem()
    out = klpen_ppo_loss(batch, 1.0)
    Dropped.apply(out.loss_objective, out.loss_critic).backward()
    assert value.grad is None
    assert all((x.grad != 0).any() for x in (loc, scale))


def test_the_gradient_of_l1_keeps_the_digits_of_its_factors():
    batch, _ = problem()
    out = klpen_ppo_loss(batch, 1.0, LossConfig(loss_critic_type="l1"))
    (g,) = torch.autograd.grad(0.1 * out.loss_critic, [batch.value])
    expected = 0.1 * (batch.value - batch.value_target).sign() / batch.value.numel()
    torch.testing.assert_close(g, expected.detach(), rtol=1e-15, atol=0)
