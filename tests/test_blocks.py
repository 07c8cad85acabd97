"""How eager mode goes about large minibatches, and small ones, changes nothing."""

import pytest
import torch
from torch.distributions import Distribution

from klppo_compile import (
    KLPENPPOLoss,
    LossConfig,
    Minibatch,
    PolicyHead,
    blocks,
    klpen_ppo_loss,
    passes,
    softmax,
)
from klppo_compile.distributions import FAMILIES
from tests.builders import CASES, GRADIENT_ERROR, NOT_OURS, problem, total

ROWS = (23,)


def outcome(name, elements, monkeypatch, masked, **options):
    """Losses, metrics and gradients where a block has so many elements."""
    monkeypatch.setattr(Distribution, "_validate_args", False)  # as torchrl leaves it
    monkeypatch.setattr(blocks, "ELEMENTS", elements)
    actor, critic, data = problem(name, ROWS, dtype=torch.float64)
    if masked:
        data["mask_of_rows"] = torch.arange(ROWS[0]) % 3 > 0
    loss = KLPENPPOLoss(actor, critic, **options)
    loss.loss_mask_key = "mask_of_rows" if masked else None
    torch.manual_seed(1)  # for what is sampled
    out = loss(data)
    leaves = [p for p in loss.parameters() if p.requires_grad]
    return dict(out.items()), torch.autograd.grad(total(out), leaves)


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "masked"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", CASES)
def test_blocks_change_nothing(name, reduction, masked, monkeypatch):
    taken = []
    split = blocks.split_head
    monkeypatch.setattr(
        "klppo_compile.elements.split_head", lambda *x: taken.append(1) or split(*x)
    )
    whole = outcome(name, 2**17, monkeypatch, masked, reduction=reduction)
    assert not taken
    small = outcome(name, 7, monkeypatch, masked, reduction=reduction)
    torch.testing.assert_close(small, whole, rtol=1e-12, atol=1e-12)
    assert len(taken) == (0 if name in NOT_OURS else 2)


LOGITS = (0.0, -0.0, 1e-39, -1e-39, 1e-310, 0.25, -0.49, 0.51, 3.0, -30.0, 80.0, -100.0, 1e4)


def edge_head(family, dtype):
    """Every logit beside every other, forbidden and NaN too; or scales of every ratio."""
    torch.manual_seed(0)
    edges = torch.tensor((*LOGITS, -torch.inf, torch.nan), dtype=torch.float64).to(dtype)
    if family == "categorical":
        old, new = edges[torch.randint(len(edges), (2, 600, 1, 5))]
        return torch.randint(5, (600, 1)), (old,), (new,)
    if family == "bernoulli":
        old, new = (x.reshape(-1, 1) for x in torch.meshgrid(edges, edges, indexing="ij"))
        return (torch.rand_like(old) < 0.5).to(dtype), (old,), (new,)
    scales = torch.logspace(-3, 3, 15, dtype=dtype)
    old_scale, scale = torch.meshgrid(scales, scales.roll(3), indexing="ij")
    loc, action = torch.randn(2, 15, 15, dtype=dtype).tanh().unbind(0)
    return action, (loc, old_scale), (loc + 0.1 * scale, scale)


def rows_and_gradients(family, action, old, new):
    """KL, log-prob and entropy loss of every row, how many are not finite, and the gradients."""
    leaves = tuple(x.clone().requires_grad_() for x in new)
    noise = {} if family != "tanh_normal" else {"noise": action[None], "weights": torch.ones(1)}
    head = PolicyHead(FAMILIES[family], action, old, leaves, **noise)
    rows = torch.ones(len(action), dtype=new[0].dtype)
    out = klpen_ppo_loss(
        Minibatch((head,), -rows, rows), 0.5, LossConfig(reduction="none"), "torch"
    )
    losses = torch.cat([out.loss_objective, out.loss_entropy]).nan_to_num(posinf=1e9)
    grads = torch.autograd.grad(losses.sum(), leaves)
    return out.kl, out.log_prob, out.loss_entropy, out.nonfinite, *grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal", "tanh_normal"])
def test_intervals_change_nothing(family, dtype, monkeypatch):
    action, old, new = edge_head(family, dtype)
    outcomes = []
    for many in (1, 2**60):
        monkeypatch.setattr(passes, "MANY", many)
        outcomes.append(rows_and_gradients(family, action, old, new))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0, equal_nan=True)
    assert outcomes[0][0].isfinite().sum() > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal", "tanh_normal"])
def test_few_numbers_take_fewer_operators_to_the_same(family, dtype, monkeypatch):
    action, old, new = edge_head(family, dtype)
    # Beside 1e4 a normaliser that is kept has no digits; where it is not, there are some.
    old, new = (tuple(torch.where(x == 1e4, 90.0, x) for x in each) for each in (old, new))
    outcomes = []
    for few in (0, 2**60):
        monkeypatch.setattr(passes, "FEW", few)
        outcomes.append(rows_and_gradients(family, action, old, new))
    single = dtype == torch.float32
    for i, (found, expected) in enumerate(zip(*outcomes, strict=True)):
        error = (1e-6 if i < 4 else GRADIENT_ERROR) if single else 1e-8
        torch.testing.assert_close(found, expected, rtol=error, atol=error, equal_nan=True)


def test_what_is_kept_is_what_would_be_computed_again(monkeypatch):
    action, old, new = edge_head("categorical", torch.float64)
    kept, outcomes, rows = [], [], softmax.rows
    for keep in (True, False):
        monkeypatch.setattr(softmax, "rows", lambda head, _, keep=keep: noted(rows(head, keep)))

        def noted(found):
            kept.append(len(found.kept))
            return found

        outcomes.append(rows_and_gradients("categorical", action, old, new))
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-10, equal_nan=True)
    assert kept == [9, 5]
