"""The surface that trainers touch: keys, calls, counts of work, and the seed page's arguments."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.objectives import KLPENPPOLoss as TorchrlLoss

from klppo_compile import KLPENPPOLoss
from tests.builders import CASES, NOT_OURS, actor_of, critic_of, problem, rollout, total

CATEGORICAL = "Categorical"


class CountSyncs(TorchDispatchMode):
    """Counts reads of a tensor on the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _no_validation(monkeypatch):
    """As torchrl leaves it: its own distributions don't stand torch's checks."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


@pytest.mark.usefixtures("_no_validation")
@pytest.mark.parametrize("name", [n for n in CASES if n not in NOT_OURS and "Ordinal" not in n])
def test_a_call_reads_nothing_on_the_host(name):
    actor, critic, data = problem(name)
    loss = KLPENPPOLoss(actor, critic, clip_value=0.2, max_importance_ratio=5.0)
    with CountSyncs() as syncs:
        total(loss(data)).backward()
    assert syncs.count == 0


def test_actor_and_critic_run_once():
    actor, critic, data = problem(CATEGORICAL)
    calls = {"actor": 0, "critic": 0}
    for who, module in (("actor", actor.module[0].module), ("critic", critic.module)):
        module.register_forward_hook(lambda *_, who=who: calls.__setitem__(who, calls[who] + 1))
    KLPENPPOLoss(actor, critic, functional=False)(data)
    assert calls == {"actor": 1, "critic": 1}


def test_the_input_is_left_as_it_was():
    actor, critic, data = problem(CATEGORICAL)
    before, state = data.clone(), torch.get_rng_state()
    KLPENPPOLoss(actor, critic, normalize_advantage=True)(data.lock_())
    assert (data == before).all()
    assert list(data.keys()) == list(before.keys())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.usefixtures("_no_validation")
@pytest.mark.parametrize("batch", [(), (1,), (0,), (4, 3)])
def test_any_batch_shape(batch):
    actor, critic, data = problem(CATEGORICAL, batch)
    out = KLPENPPOLoss(actor, critic)(data)
    assert out["kl"].shape == (*batch, 1)
    assert out["explained_variance"].shape == (1,)
    assert out.batch_size == ()
    assert out["loss_objective"].isfinite()


def test_calls_with_keyword_arguments_return_the_out_keys():
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic, clip_value=0.2).eval()
    expected = loss(data)
    keys = [
        "observation",
        "action",
        "action_log_prob",
        "logits",
        "advantage",
        "value_target",
        "state_value",
    ]
    outs = loss(**{key: data[key] for key in keys})
    assert loss.out_keys == [
        "loss_objective",
        "kl",
        "entropy",
        "loss_entropy",
        "loss_critic",
        "value_clip_fraction",
    ]
    for key, x in zip(loss.out_keys, outs, strict=True):
        torch.testing.assert_close(x, expected[key])


def test_out_keys_can_be_selected_and_reset():
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic)
    everything = set(loss(data).keys())
    assert loss.select_out_keys("kl_approx", "kl") is loss
    assert set(loss(data).keys()) == {"kl_approx", "kl"}
    assert loss.reset_out_keys() is loss
    assert set(loss(data).keys()) == everything
    with pytest.raises(ValueError, match="select_out_keys takes keys that the loss writes"):
        loss.select_out_keys("loss_clip")


def test_without_a_critic_no_critic_keys():
    actor, _, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, None, critic_coeff=0)
    assert loss.out_keys == ["loss_objective", "kl", "entropy", "loss_entropy"]
    assert not {"loss_critic", "explained_variance"} & set(loss(data).keys())


def test_in_keys_are_torchrls_in_one_order():
    actor, critic, _ = problem(CATEGORICAL)
    ours, theirs = KLPENPPOLoss(actor, critic), TorchrlLoss(actor, critic)
    assert set(ours.in_keys) == set(theirs.in_keys)
    code = (
        "from tests.builders import problem\nfrom klppo_compile import KLPENPPOLoss\n"
        "print(KLPENPPOLoss(*problem('Categorical')[:2]).in_keys)"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(orders) == 1


def test_keys_can_be_named():
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic).eval()
    expected = loss(data)
    loss.set_keys(advantage=("nested", "adv"), value_target="returns", action="act")
    named = data.rename_key_("value_target", "returns").rename_key_("action", "act")
    named["nested", "adv"] = named.pop("advantage")
    torch.testing.assert_close(loss(named)["loss_objective"], expected["loss_objective"])
    loss.set_keys(advantage=None)
    assert loss.tensor_keys.advantage == "advantage"
    with pytest.raises(ValueError, match="target is not an accepted tensordict key"):
        loss.set_keys(target="x")
    loss.set_keys(action=["act"])  # as an actor of one key lists it
    assert loss(named.rename_key_(("nested", "adv"), "advantage"))["kl"].equal(expected["kl"])


def test_numbers_may_be_numpys():
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(
        actor,
        critic,
        dtarg=np.float32(0.02),
        beta=np.array(0.5),
        increment=np.int64(3),
        entropy_coeff=np.array(0.25),
        samples_mc_kl=np.int64(2),
    )
    loss.decrement = np.float64(0.25)
    found = (loss.dtarg, loss.beta, loss.increment, loss.entropy_coeff, loss.decrement)
    assert [round(float(x), 6) for x in found] == [0.02, 0.5, 3.0, 0.25, 0.25]
    assert type(loss.samples_mc_kl) is int
    for wrong in (np.bool_(True), np.ones(2), np.float32("nan"), np.timedelta64(3), data):
        with pytest.raises(ValueError, match="dtarg must be"):
            KLPENPPOLoss(actor, critic, dtarg=wrong)


@pytest.mark.parametrize("name", ["make_value_estimator", "value_estimator", "loss_critic"])
def test_what_torchrls_losses_have_besides_is_said_to_be_absent(name):
    loss = KLPENPPOLoss(*problem(CATEGORICAL)[:2])
    assert not hasattr(loss, name)
    loss.register_module(name, nn.Identity())  # by somebody who needs one
    assert isinstance(getattr(loss, name), nn.Identity)
    delattr(loss, name)
    with pytest.raises(AttributeError, match=f"has no {name}: .*(GAE|Call the loss)"):
        getattr(loss, name)


def test_the_pages_spellings_work():
    actor, critic, data = problem(CATEGORICAL)
    data["adv"], data["ret"] = data["advantage"], data["value_target"]
    with pytest.warns(DeprecationWarning, match=r"is deprecated; use loss.set_keys\(") as warned:
        page = KLPENPPOLoss(
            actor,
            critic,
            entropy_coef=0.1,
            critic_coef=0.5,
            advantage_key="adv",
            value_target_key="ret",
            value_key="state_value",
        )
    assert len(warned) == 3
    assert page.tensor_keys.advantage == "adv"
    same = KLPENPPOLoss(actor, critic, entropy_coeff=0.1, critic_coeff=0.5)
    out, expected = page(data), same(data)
    for key in ("loss_entropy", "loss_critic", "loss_objective"):
        torch.testing.assert_close(out[key], expected[key])


def test_networks_have_two_names():
    actor, critic, _ = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor=actor, critic=critic)
    assert loss.actor_network is actor
    assert loss.critic_network is critic


def trunk_and_heads(head_only):
    """The page's note: one trunk; the critic is its head, or runs the trunk again."""
    trunk = TensorDictModule(nn.Linear(4, 4), ["observation"], ["hidden"])
    case = CASES[CATEGORICAL]
    actor = actor_of(case, ["hidden"])
    actor = type(actor)(trunk, *actor.module)
    head = critic_of(["hidden"], 4)
    critic = head if head_only else type(actor).__mro__[1](trunk, head)
    return trunk, head, actor, critic, rollout(case, actor)


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("head_only", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_a_shared_trunk_gets_the_critics_gradient_only_if_asked(functional, head_only, separate):
    trunk, head, actor, critic, data = trunk_and_heads(head_only)
    loss = KLPENPPOLoss(actor, critic, functional=functional, separate_losses=separate)
    loss(data)["loss_critic"].backward()
    assert head.module.weight.grad.abs().sum() > 0
    got = trunk.module.weight.grad
    assert (got is None or got.abs().sum() == 0) == separate


def test_the_sampled_kl_says_so_once(caplog):
    actor, critic, data = problem("mixture")
    loss = KLPENPPOLoss(actor, critic, samples_mc_kl=4)
    loss(data)
    loss(data)
    said = [r for r in caplog.records if "No closed-form KL" in r.message]
    assert len(said) <= 1
    assert loss(data)["loss_objective"].isfinite()


@pytest.mark.usefixtures("_no_validation")
def test_quadrature_is_the_limit_of_sampling():
    actor, critic, data = problem("TanhNormal")
    exact = KLPENPPOLoss(actor, critic, entropy_method="quadrature")
    sampled = KLPENPPOLoss(actor, critic, samples_mc_entropy=20_000)
    a, b = exact(data), sampled(data)
    torch.testing.assert_close(a["entropy"], b["entropy"], rtol=0, atol=0.02)
    assert exact(data)["entropy"] == a["entropy"]
    fine = KLPENPPOLoss(actor.double(), critic.double(), entropy_method="quadrature")
    expected = fine(data.double())["entropy"]
    torch.testing.assert_close(a["entropy"].double(), expected, rtol=1e-6, atol=4e-6)


def test_action_and_location_may_be_one_tensor():
    actor, critic, data = problem("independent normal")
    data = TensorDict({**data, "action": data["loc"]}, data.batch_size)
    assert KLPENPPOLoss(actor, critic)(data)["loss_objective"].isfinite()
