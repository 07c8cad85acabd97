"""Actions that are no index of an action: never read, never a number, on any path."""

import dataclasses

import pytest
import torch

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.backends import INSTALLED
from tests.kernel_cases import LOSSES, batch, head, leaves

WIDE = 5000  # streamed
# The interpreter is numpy: what lies beyond the last column cancels to NaN, selected away later.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning"),
    pytest.mark.skipif(not INSTALLED, reason="Triton has no wheel here"),
]
PATHS = {
    "one softmax": ((5, 1),),
    "two actions": ((2, 1),),
    "several softmaxes": ((5, 3),),
    "a vocabulary": ((WIDE, 1),),
    "unequal heads": ((3, 1), (70, 1)),
    "vocabularies beside a head": ((3, 2), (WIDE, 2)),
}
# Beyond either end; None is the number of actions. The lowest 32 bits of one are a valid index.
BEYOND = (-1, None, 2**32 + 1, -(2**63), 2**63 - 1)


def spoilt(sizes, masked):
    """Rows 0 to 4 hold an action out of range in the last head; row 4 may be masked."""
    heads = [head("categorical", 6, D, K) for D, K in sizes]
    action = heads[-1].action
    minibatch = batch(*heads)
    for row, index in enumerate(BEYOND):
        action[row, -1] = sizes[-1][0] if index is None else index
    counts = torch.tensor([1, 1, 1, 1, 0, 1]).bool() if masked else None
    return dataclasses.replace(minibatch, mask=counts, value_mask=counts)


def loss_and_gradients(minibatch, reduction, backend):
    config = LossConfig(clip_value=0.2, reduction=reduction)
    out = klpen_ppo_loss(minibatch, 1.3, config, backend)
    total = sum(getattr(out, name).sum() for name in LOSSES)
    return out, torch.autograd.grad(total, leaves(minibatch))


@pytest.mark.parametrize(("reduction", "masked"), [("mean", False), ("none", True)])
@pytest.mark.parametrize("path", PATHS)
def test_it_is_nan_and_counted_forward_and_backward(path, reduction, masked):
    minibatch = spoilt(PATHS[path], masked)
    leaves(minibatch)
    bad = torch.arange(6) < 5
    counted = bad if minibatch.mask is None else bad & minibatch.mask
    found = {b: loss_and_gradients(minibatch, reduction, b) for b in ("torch", "triton")}
    for out, (*d_new, d_value) in found.values():
        assert out.nonfinite == counted.sum()
        assert out.log_prob.isnan().equal(bad)
        assert out.kl.isfinite().all()
        rows = counted if reduction == "none" else torch.tensor(True)
        assert out.loss_objective.isnan().equal(rows)
        for d in d_new:
            assert d.isnan().flatten(1).all(1).equal(counted)
            assert d.isnan().flatten(1).any(1).equal(counted)
        assert d_value.isfinite().all()
    (ours, our_grads), (theirs, their_grads) = found["triton"], found["torch"]
    for name in ("loss_objective", "entropy", "mean_kl", "next_beta", "ratio"):
        a, b = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    torch.testing.assert_close(our_grads, their_grads, rtol=1e-5, atol=1e-6, equal_nan=True)
