"""A minibatch in blocks of rows is the same minibatch."""

import pytest
import torch
from torch.distributions import Distribution

from klppo_compile import KLPENPPOLoss, blocks
from tests.builders import CASES, NOT_OURS, problem, total

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
