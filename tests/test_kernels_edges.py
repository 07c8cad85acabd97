"""Where kernels break: sizes from one column to the largest, far offsets, tiny KLs, bad numbers."""

import dataclasses

import pytest
import torch

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.distributions import FAMILIES
from klppo_compile.records import Minibatch, PolicyHead
from tests.kernel_cases import NUMBERS, batch, conforms, head, static

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.kernels import launch, operators, tiling

# The interpreter is numpy: forbidden actions' infinite logits cancel to NaN, selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")
SERVED = [name for name, family in FAMILIES.items() if "triton" in family.backends]
WIDE = tiling.WIDE + 904  # streamed, its last chunk not full


@pytest.mark.parametrize("D", [2, 3, 5, 33, 100, 511, 512])
def test_elements_from_1_to_512(D):
    # A log-prob of many elements is large, and the ratio takes over its rounding.
    digits = max(1, D // 16)
    conforms(batch(head("normal", 5, D)), static(), gradient=5e-6 * digits, value=3e-5 * digits)


@pytest.mark.parametrize("D", [1, 3, 33, 100, tiling.WIDE, tiling.WIDE + 1])
def test_actions_where_the_tile_changes(D):
    conforms(batch(head("categorical", 3, D)), static())


@pytest.mark.parametrize("step", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("D", [18, 300, WIDE])
def test_a_rare_action_alone_may_move(D, step):
    """A uniform policy's first update: what is the new maximum says nothing of the others."""
    old = torch.zeros(2, 1, D)
    new = old.index_fill(-1, torch.tensor(0), step)
    action = torch.tensor([[0], [D - 1]])
    policy = PolicyHead(FAMILIES["categorical"], action, (old,), (new.requires_grad_(),))
    conforms(batch(policy), static())


@pytest.mark.parametrize("top", [9.0, 11.0, 13.0])
def test_the_action_may_be_rare_and_the_common_one_move(top):
    """Its chunk says nothing of the rest of the row, which is read again."""
    old = torch.randn(2, 1, WIDE) * 0.5
    old[..., 100] = top
    new = old.clone()
    new[..., 100] += 0.3
    action = torch.tensor([[100], [WIDE - 1]])
    policy = PolicyHead(FAMILIES["categorical"], action, (old,), (new.requires_grad_(),))
    conforms(batch(policy), static())


def test_the_largest_action_space():
    conforms(batch(head("categorical", 1, 262_144, dtype=torch.bfloat16)), static(), gradient=8e-3)


def test_many_blocks_are_merged_in_steps(monkeypatch):
    monkeypatch.setattr(launch, "FOLD", 2)
    conforms(batch(head("categorical", 20, 1000), masks=True), static())  # a block per row


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("N", [0, 1])
def test_no_rows_and_one(name, N):
    conforms(batch(head(name, N, 4)), static())


@pytest.mark.parametrize(("name", "D"), [("normal", 3), ("categorical", 4), ("categorical", WIDE)])
def test_offsets_beyond_32_bits(name, D, tmp_path):
    # The last row lies 2^31 elements behind the first; on a CPU in a file without a block on disk.
    stride, kind = 2**30 + 8, {"dtype": torch.bfloat16}
    if torch.get_default_device().type == "cpu":
        memory = torch.from_file(str(tmp_path / "rows"), True, 2 * stride + 2**16, **kind)
    else:
        memory = torch.empty(2 * stride + 2**16, **kind)
    at = iter(range(0, 2**16, 2**13))

    def apart(x):
        return memory.as_strided(x.shape, (stride, *x.stride()[1:]), next(at)).copy_(x)

    plain = batch(head(name, 3, D, dtype=torch.bfloat16))
    (h,) = plain.policy
    far = {"old": tuple(map(apart, h.old)), "new": tuple(map(apart, h.new))}
    rows = {x: apart(getattr(plain, x)) for x in ("advantage", "value_target")}
    minibatch = dataclasses.replace(plain, policy=(dataclasses.replace(h, **far),), **rows)
    conforms(minibatch, static(), gradient=8e-3)


def wide_rows(eps):
    """A row per case: a plain one, a rare action taken, an action that the old policy forbids."""
    old = 2 * torch.randn(3, 1, WIDE)
    new = old + eps * torch.randn(3, 1, WIDE)
    action = torch.randint(WIDE, (3, 1))
    old[1, 0, action[1]], new[1, 0, action[1]] = -18.0, -18.0 + eps
    forbidden = torch.randperm(WIDE)[:700]
    old[2, 0, forbidden] = -torch.inf
    # What the old policy forbids, the new one allows as often as the KL is to be large.
    new[2, 0, forbidden] += 2 * torch.tensor(eps).log()
    action[2] = old[2, 0].argmax()
    return action, old, new


def test_a_streamed_kl_keeps_its_digits():
    parts = [wide_rows(eps) for eps in (0.4, 1e-2, 1e-3, 1e-6)]
    action, old, new = (torch.cat(x) for x in zip(*parts, strict=True))
    policy = PolicyHead(FAMILIES["categorical"], action, (old,), (new,))
    out, _ = conforms(batch(policy), static())
    assert out["kl"].min() < 2e-12
    assert out["kl"].max() > 0.05


def test_a_streamed_kl_in_bfloat16_keeps_its_digits():
    old = (2 * torch.randn(6, 1, WIDE)).bfloat16()
    action = torch.randint(WIDE, (6, 1))
    new = old.clone()
    for row, rare in enumerate([0.0, -4.0, -8.0, -12.0, -16.0, -20.0]):
        # One action moves by a few units in the last place, taken or not.
        old[row, 0, 7], new[row, 0, 7] = rare, rare + 2.0 ** (-4 + row % 2)
        action[row] = 7 if row % 2 else action[row]
    policy = PolicyHead(FAMILIES["categorical"], action, (old,), (new,))
    out, _ = conforms(batch(policy), static(), gradient=8e-3)
    assert out["kl"].min() < 1e-14
    assert out["kl"].max() > 1e-8


def test_logits_and_actions_that_are_parts_of_wider_tensors():
    plain = batch(head("categorical", 6, 4, 2))
    (h,) = plain.policy
    wide = torch.cat([*h.old, *h.new], 1)  # [6, 4, 4]: a row's heads side by side
    shared = torch.stack([h.action, h.action], -1).int()
    old, new = wide[:, :2], wide[:, 2:].detach().requires_grad_()
    h = dataclasses.replace(h, action=shared[..., 0], old=(old,), new=(new,))
    assert old.stride() == new.stride() == (16, 4, 1)
    conforms(dataclasses.replace(plain, policy=(h,)), static(reduction="none"))


def test_batch_dimensions_that_no_single_stride_reaches():
    plain = batch(head("normal", 6, 3))
    (h,) = plain.policy

    def swapped(x):
        return x.reshape(2, 3, *x.shape[1:]).transpose(0, 1)

    rows = ("old_log_prob", "advantage", "value", "value_target", "old_value")
    h = dataclasses.replace(
        h,
        action=swapped(h.action),
        old=tuple(map(swapped, h.old)),
        new=tuple(map(swapped, h.new)),
    )
    changed = {name: swapped(getattr(plain, name)) for name in rows}
    minibatch = dataclasses.replace(plain, policy=(h,), **changed)
    out, grads = conforms(minibatch, static(reduction="none"))
    assert out["kl"].shape == (3, 2)
    assert grads[0].shape == (3, 2, 3)


@pytest.mark.parametrize("D", [5, WIDE])
def test_an_action_out_of_range_is_reported_not_read(D):
    minibatch = batch(head("categorical", 6, D))
    minibatch.policy[0].action[[1, 2, 4], 0] = torch.tensor([2**40, D, -1])
    out = operators.loss(minibatch, NUMBERS, static())
    assert out["nonfinite"] == 3
    assert out["log_prob"].isnan().tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_action_is_an_integer_of_any_size(backend):
    minibatch = batch(head("categorical", 6, 4))
    (h,) = minibatch.policy

    def loss(dtype):
        policy = (dataclasses.replace(h, action=h.action.to(dtype)),)
        now = dataclasses.replace(minibatch, policy=policy)
        return klpen_ppo_loss(now, 1.0, LossConfig(), backend).loss_objective

    assert loss(torch.uint8) == loss(torch.int16) == loss(torch.int64)
    with pytest.raises(ValueError, match="must hold integer indices"):
        loss(torch.float32)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_ratio_that_overflows_is_reported(backend):
    minibatch = batch(head("normal", 5, 3))
    minibatch.old_log_prob[2] -= 100.0
    out = klpen_ppo_loss(minibatch, 1.0, LossConfig(), backend)
    assert out.ratio[2].isinf()
    assert out.nonfinite == 1
    others = torch.arange(5) != 2
    masked = dataclasses.replace(minibatch, mask=others)
    assert klpen_ppo_loss(masked, 1.0, LossConfig(), backend).nonfinite == 0


def test_a_loss_without_rows_has_no_gradient():
    empty = batch(head("normal", 0, 3))
    leaf = empty.policy[0].new[0].requires_grad_()
    rows = Minibatch(empty.policy, empty.old_log_prob, empty.advantage)
    out = klpen_ppo_loss(rows, 1.0, LossConfig(), "triton")
    assert out.loss_objective == 0.0
    (grad,) = torch.autograd.grad(out.loss_objective, leaf)
    assert grad.shape == (0, 3)
