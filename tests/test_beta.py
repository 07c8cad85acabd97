"""When beta moves, where it rests, and what may be assigned to it."""

import math
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from klppo_compile import KLPENPPOLoss
from tests.builders import problem, total

NORMAL = "Independent(Normal)"


def loss_of(name=NORMAL, **kwargs):
    actor, critic, data = problem(name)
    return KLPENPPOLoss(actor, critic, **{"dtarg": 1e-6} | kwargs), data


def test_training_moves_beta_up_and_down():
    loss, data = loss_of()
    loss(data)
    assert loss.beta == 2.0
    loss.dtarg = 100.0
    loss(data)
    loss(data)
    assert loss.beta == 0.5


@pytest.mark.parametrize("where", ["eval", "no_grad", "inference_mode", "manual"])
def test_beta_rests_outside_training(where):
    loss, data = loss_of(beta_update="manual" if where == "manual" else "forward")
    if where == "eval":
        loss.eval()
    guards = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with guards.get(where, torch.enable_grad)():
        loss(data)
    assert loss.beta == 1.0


def test_beta_rests_when_nothing_can_be_told():
    loss, data = loss_of("Categorical")
    spoilt = data.clone()
    spoilt["logits"][0] = torch.nan
    assert loss(spoilt)["nonfinite"] == 1
    assert loss.beta == 1.0
    data["collector", "mask"] = torch.zeros(8, dtype=torch.bool)
    loss(data)
    assert loss.beta == 1.0


def test_masked_rows_do_not_move_beta():
    loss, data = loss_of(dtarg=0.5)
    data["loc"][0] += 1e3
    data["collector", "mask"] = torch.arange(8) > 0
    loss(data)
    assert loss.beta == 0.5


def test_a_call_that_raises_leaves_beta_alone():
    loss, data = loss_of(clip_value=0.2)
    with pytest.raises(KeyError, match="state_value"):
        loss(data.exclude("state_value"))
    assert loss.beta == 1.0


def test_value_and_gradient_share_one_beta():
    """torchrl differentiates with the next beta: its gradient would be 1000 times too large."""
    loss, data = loss_of(increment=1000.0, entropy_bonus=False)
    still, _ = loss_of(increment=1.0, decrement=1.0, entropy_bonus=False)
    still.actor_network_params.data.update_(loss.actor_network_params.data)
    leaves = [list(x.actor_network_params.parameters()) for x in (loss, still)]
    first = loss(data)["loss_objective"]
    loss(data)  # a second forward must not reach into the first one's gradient
    found = torch.autograd.grad(first, leaves[0])
    expected = torch.autograd.grad(still(data)["loss_objective"], leaves[1])
    torch.testing.assert_close(found, expected)


def test_a_recomputation_moves_nothing_and_repeats_its_forward():
    loss, data = loss_of()
    plain, _ = loss_of()
    leaves = [list(x.actor_network_params.parameters()) for x in (loss, plain)]
    out = checkpoint(lambda: total(loss(data)), use_reentrant=False)
    found = torch.autograd.grad(out, leaves[0])
    torch.testing.assert_close(found, torch.autograd.grad(total(plain(data)), leaves[1]))
    assert loss.beta == plain.beta == 2.0


CALLS = {
    "a tensordict made inside": lambda loss, data, i: total(loss(data[i : i + 4])),
    "the same tensordict": lambda loss, data, _: total(loss(data)),
    "keywords": lambda loss, data, i: loss(**dict(data[i : i + 4].items()))[0],
    "two calls": lambda loss, data, i: sum(total(loss(data[j : j + 2])) for j in (i, i + 2)),
    "a checkpoint inside": lambda loss, data, i: checkpoint(
        lambda: total(loss(data[i : i + 4])), use_reentrant=False
    ),
}


@pytest.mark.parametrize("twice", [False, True], ids=["one backward", "two backwards"])
@pytest.mark.parametrize("calls", CALLS)
def test_recomputations_of_several_calls_read_each_its_own_beta(calls, twice):
    found = []
    for run in (lambda part, i: part(i), partial(checkpoint, use_reentrant=False)):
        loss, data = loss_of(increment=10.0, entropy_bonus=False)
        loss.select_out_keys("loss_objective", "loss_critic")
        part = partial(CALLS[calls], loss, data)
        out = sum(run(part, i) for i in (0, 4))
        if twice:
            out.backward(retain_graph=True)
        out.backward()
        found.append([loss.beta, *(p.grad for p in loss.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found)


def test_a_reentrant_checkpoint_reads_the_beta_of_its_time():
    loss, data = loss_of(increment=10.0, entropy_bonus=False)
    total(checkpoint(lambda: loss(data), use_reentrant=False)).backward()
    loss(data)
    leaves = [p for p in loss.parameters() if p.requires_grad]
    loss.zero_grad()
    x = torch.zeros((), requires_grad=True)
    checkpoint(lambda x: total(loss(data)) + x, x, use_reentrant=True).backward()
    loss.beta_update = "manual"
    expected = torch.autograd.grad(total(loss(data)), leaves)
    torch.testing.assert_close([p.grad for p in leaves], list(expected))


def test_beta_moves_though_it_requires_a_gradient():
    loss, data = loss_of()
    loss.beta.requires_grad_()
    loss(data)
    assert loss.beta == 2.0


def test_a_bound_of_its_own_is_a_beta():
    loss, _ = loss_of(beta_min=1e-3, beta_max=0.7, beta=0.7)
    loss.beta = 1e-3
    loss.beta = 0.7
    assert loss.beta == torch.tensor(0.7)


def test_clamps_and_recovery():
    loss, data = loss_of(beta_min=0.25, beta_max=4.0)
    for _ in range(5):
        loss(data)
    assert loss.beta == 4.0
    loss.dtarg = 100.0
    for _ in range(10):
        loss(data)
    assert loss.beta == 0.25


def test_zero_switches_the_penalty_off_for_good():
    loss, data = loss_of(beta=0.0)
    out = loss(data)
    assert loss.beta == 0.0
    assert out["loss_objective"].isfinite()


def test_a_kl_per_row_moves_no_beta():
    loss, _ = loss_of(beta_update="manual")
    with pytest.raises(ValueError, match=r"one number; got shape \[8\]. Pass its mean"):
        loss.update_beta(torch.ones(8))


def test_update_beta_moves_it_by_the_same_rule():
    loss, _ = loss_of(beta_update="manual", dtarg=0.01)
    for kl, expected in ((0.02, 2.0), (torch.tensor(0.001), 1.0), (0.01, 1.0), (math.nan, 1.0)):
        loss.update_beta(kl)
        assert loss.beta == expected


@pytest.mark.parametrize("beta", [1, 1.0, torch.tensor(1.0), torch.tensor([1])])
def test_reset_restores_any_kind_of_initial_beta(beta):
    loss, data = loss_of(beta=beta, decrement=0.3)
    for _ in range(2):
        loss(data)
        loss.reset()
        assert loss.beta == 1.0
        assert loss.beta.dtype == torch.float32


def test_assignment_keeps_the_storage():
    loss, _ = loss_of(clip_value=0.2, max_importance_ratio=10.0)
    numbers = "beta entropy_coeff critic_coeff clip_value max_importance_ratio dtarg increment"
    for name in numbers.split():
        before = getattr(loss, name).data_ptr()
        setattr(loss, name, 1.5)
        assert getattr(loss, name) == 1.5
        assert getattr(loss, name).data_ptr() == before
    loss.beta = torch.tensor(0.3)
    assert float(loss.beta) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("beta", 1e7, ValueError, r"within \[beta_min, beta_max\] = \[1e-06, 1e\+06\], got 1e\+07"),
        ("beta", -1.0, ValueError, "beta must be >= 0"),
        ("beta", math.nan, ValueError, "beta must be finite"),
        ("beta", None, TypeError, "Pass a float"),
        ("beta_min", 2e6, ValueError, "beta_min must not exceed beta_max"),
        ("beta_max", 1e-7, ValueError, "beta_min must not exceed beta_max"),
        ("beta", torch.nn.Parameter(torch.ones(())), TypeError, "Pass a float"),
        ("dtarg", 0.0, ValueError, "dtarg must be > 0"),
        ("increment", 0.5, ValueError, "increment should be >= 1.0 in KLPENPPOLoss, got 0.5000"),
        ("decrement", 1.5, ValueError, "decrement should be <= 1.0 in KLPENPPOLoss, got 1.5000"),
        ("clip_value", 0.2, ValueError, "clip_value was None when the loss was built"),
    ],
)
def test_what_can_not_be_assigned(name, value, error, words):
    loss, _ = loss_of()
    with pytest.raises(error, match=words):
        setattr(loss, name, value)
    assert loss.beta == 1.0


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_numbers_stay_float32(cast):
    loss, _ = loss_of(clip_value=0.2)
    getattr(loss, cast)()
    for name in ("beta", "entropy_coeff", "critic_coeff", "clip_value", "dtarg"):
        assert getattr(loss, name).dtype == torch.float32
