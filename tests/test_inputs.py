"""Tensordicts of every kind, nested keys, and dtypes."""

import pytest
import torch
from tensordict import TensorDict, lazy_stack
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch.distributions import Categorical
from torchrl.objectives import SoftUpdate

from klppo_compile import KLPENPPOLoss
from tests.builders import problem, total

KINDS = {
    "lazy stack": lambda data, _: lazy_stack(list(data.unbind(0))),
    "locked": lambda data, _: data.clone().lock_(),
    "memmap": lambda data, folder: data.clone().memmap_(folder),
    "without batch dimensions": lambda data, _: TensorDict(dict(data.items()), []),
    "not contiguous": lambda data, _: torch.stack([data, data], 1)[:, 0],
    "named": lambda data, _: data.clone().refine_names("time"),
    "with strangers": lambda data, _: data.clone().set_non_tensor("note", "hello"),
    "expanded": lambda data, _: data[None].expand(1, 8)[0],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_any_kind_of_tensordict(kind, tmp_path):
    actor, critic, data = problem("Categorical")
    expected = KLPENPPOLoss(actor, critic)(data)
    given = kind(data, tmp_path)
    torch.testing.assert_close(KLPENPPOLoss(actor, critic)(given), expected)


@pytest.mark.parametrize("name", ["Independent(Normal)", "Categorical", "Gamma"])
def test_one_row_without_a_batch(name):
    actor, critic, data = problem(name)
    one, batch = (KLPENPPOLoss(actor, critic)(x) for x in (data[0], data[:1]))
    torch.testing.assert_close(one["loss_objective"], batch["loss_objective"])
    assert one["kl"].shape == (1,)


@pytest.mark.parametrize(
    "name", ["Independent(Normal)", "squashed Normal", "Categorical", "Bernoulli"]
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_empty_batch_moves_nothing(name, reduction):
    actor, critic, data = problem(name)
    loss = KLPENPPOLoss(actor, critic, reduction=reduction, normalize_advantage=True)
    out = loss(data[:0])
    total(out).backward()
    assert total(out) == 0
    assert loss.beta == 1.0


def test_nested_keys():
    actor, critic, data = problem("Categorical")
    expected = KLPENPPOLoss(actor, critic, clip_value=0.2)(data)
    nested = TensorDict({("agents", key): x for key, x in data.items()}, data.batch_size)
    key = {name: ("agents", name) for name in data.keys()}  # noqa: SIM118 - not its rows
    inner = ProbabilisticTensorDictSequential(
        TensorDictModule(actor.module[0].module, [key["observation"]], [key["logits"]]),
        ProbabilisticTensorDictModule(
            [key["logits"]],
            [key["action"]],
            distribution_class=Categorical,
            return_log_prob=True,
            log_prob_key=key["action_log_prob"],
        ),
    )
    value = TensorDictModule(critic.module, [key["observation"]], [key["state_value"]])
    loss = KLPENPPOLoss(inner, value, clip_value=0.2)
    loss.set_keys(
        advantage=key["advantage"], value_target=key["value_target"], value=key["state_value"]
    )
    torch.testing.assert_close(loss(nested), expected)


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["Independent(Normal)", "squashed Normal", "Categorical", "Bernoulli"]
)
def test_metrics_of_sixteen_bit_networks_are_float32(name, cast):
    actor, critic, data = problem(name)
    loss = getattr(KLPENPPOLoss(actor, critic, entropy_method="quadrature"), cast)()
    kept = data["action"]
    data = getattr(data, cast)()
    data["action"] = kept if not kept.is_floating_point() else data["action"]
    out = loss(data)
    total(out).backward()
    assert {x.dtype for x in out.values()} == {torch.float32, torch.int64}
    assert all(x.isfinite().all() for x in out.values())
    assert loss._node_weights.dtype == torch.float64  # a cast would cost the quadrature its digits


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_an_advantage_of_sixteen_bits_is_normalised_in_float32(cast, masked):
    actor, critic, data = problem("Categorical", (4096,))
    data["advantage"] = getattr(10.0 * data["advantage"], cast)()
    if masked:
        data["shifted_valid"] = torch.arange(4096) % 5 > 0
    loss = KLPENPPOLoss(actor, critic, normalize_advantage=True)
    found = loss(data)["loss_objective"]
    data["advantage"] = data["advantage"].float()
    torch.testing.assert_close(found, loss(data)["loss_objective"], rtol=1e-5, atol=1e-7)


def test_the_proximal_log_prob_of_sixteen_bits_is_computed_in_float32():
    actor, critic, data = problem("Independent(Normal)")
    loss = KLPENPPOLoss(actor, critic, delay_actor=True).bfloat16()
    SoftUpdate(loss, eps=0.5)
    assert loss(data.bfloat16())["kl_approx"] == 0.0


def test_a_one_hot_action_may_be_of_booleans():
    actor, critic, data = problem("OneHotCategorical")
    loss = KLPENPPOLoss(actor, critic)
    expected = loss(data)["loss_objective"]
    data["action"] = data["action"].bool()
    assert loss(data)["loss_objective"] == expected
