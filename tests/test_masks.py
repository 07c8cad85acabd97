"""Rows that don't count: whatever they hold, the loss is that of the others."""

import math
from copy import deepcopy

import pytest
import torch
from torch.distributions import Distribution

from klppo_compile import KLPENPPOLoss
from tests.builders import CASES, gradients, problem, total

MASK = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
# drawn anew for each call
SAMPLED = ("StudentT", "mixture")
VARIANTS = {
    "plain": {},
    "normalised, clipped": {"normalize_advantage": True, "clip_value": 0.2},
}


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """As torchrl leaves it."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


def spoilt(data):
    """The rollout with nonsense in the rows that don't count, but for observations."""
    out = data.clone()
    for key, x in out.items():
        if x.is_floating_point() and key != "observation":
            x[1], x[4] = math.nan, math.inf
    out["collector", "mask"] = MASK
    return out


def results(loss, data):
    torch.manual_seed(0)
    out = loss(data)
    total(out).backward()
    return out, gradients(loss)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("name", [n for n in CASES if n not in SAMPLED])
def test_nonsense_in_masked_rows_is_harmless(name, options, reduction):
    actor, critic, data = problem(name, (6,))
    options = options | {"reduction": reduction, "entropy_bonus": "e" in CASES[name].closed}
    loss, other = (KLPENPPOLoss(deepcopy(actor), deepcopy(critic), **options) for _ in range(2))
    kept = data[MASK]
    kept["shifted_valid"] = torch.ones(4, dtype=torch.bool)
    (out, grads), (expected, expected_grads) = results(loss, spoilt(data)), results(other, kept)
    for key in out.keys():  # noqa: SIM118 - a tensordict iterates over its rows
        rows = key == "kl" or (reduction == "none" and key.startswith("loss"))
        found = out[key][MASK] if rows else out[key]
        torch.testing.assert_close(found, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-6)
    assert loss.beta == other.beta


@pytest.mark.parametrize("name", SAMPLED)
def test_nonsense_is_not_sampled_from(name):
    actor, critic, data = problem(name, (6,))
    out, grads = results(KLPENPPOLoss(actor, critic), spoilt(data))
    assert out["loss_objective"].isfinite()
    assert all(g.isfinite().all() for g in grads.values())


def test_nothing_counts():
    actor, critic, data = problem("Categorical", (6,))
    data["shifted_valid"] = torch.zeros(6, dtype=torch.bool)
    loss = KLPENPPOLoss(actor, critic, **VARIANTS["normalised, clipped"])
    out, grads = results(loss, data)
    assert total(out) == 0
    assert all((g == 0).all() for g in grads.values())
    assert loss.beta == 1.0


@pytest.mark.parametrize("mask", [torch.ones(2), torch.ones(6, 3), torch.ones(5, 1)])
def test_a_mask_that_does_not_fit_is_refused(mask):
    actor, critic, data = problem("Categorical", (6,))
    data.batch_size = []
    data["mine"] = mask.bool()
    loss = KLPENPPOLoss(actor, critic)
    loss.loss_mask_key = "mine"
    with pytest.raises(ValueError, match="cannot be applied to rows of shape"):
        loss(data)
    assert loss.beta == 1.0
