"""State dicts, copies, target policies, and what torchrl's tools need of the class."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch.distributions import Distribution
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives import KLPENPPOLoss as TorchrlLoss
from torchrl.objectives.common import LossModule

from klppo_compile import KLPENPPOLoss
from tests.builders import problem, total

CATEGORICAL = "Categorical"


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """As torchrl leaves it: its own distributions don't stand torch's checks."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


def assert_same_outputs(one, other, data):
    a, b = one(data), other(data)
    for key in a.keys():  # noqa: SIM118 - a TensorDict iterates over its batch
        torch.testing.assert_close(a[key], b[key], msg=key)


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_value": 0.2, "max_importance_ratio": 5.0}, {"functional": False}],
    ids=["plain", "scalars", "not functional"],
)
def test_state_dicts_load_both_ways(options):
    actor, critic, _ = problem(CATEGORICAL)
    ours, theirs = KLPENPPOLoss(actor, critic, **options), TorchrlLoss(actor, critic, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.beta.fill_(0.25)
    ours.load_state_dict(theirs.state_dict())
    assert ours.beta == 0.25


def test_an_estimators_numbers_are_tolerated():
    actor, critic, _ = problem(CATEGORICAL)
    ours, theirs = KLPENPPOLoss(actor, critic), TorchrlLoss(actor, critic)
    theirs.make_value_estimator()
    assert any(key.startswith("_value_estimator.") for key in theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", float("nan")), ("beta", -5.0), ("beta", float("inf")), ("entropy_coeff", -0.1)],
)
def test_a_checkpoint_with_a_bad_number_is_refused_and_changes_nothing(name, value):
    actor, critic, _ = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic)
    before = {key: x.clone() for key, x in loss.state_dict().items()}
    state = {key: x + 1 for key, x in before.items()} | {name: torch.tensor(value)}
    with pytest.raises(RuntimeError, match=f"this state dict can't be loaded: {name} must be"):
        loss.load_state_dict(state)
    torch.testing.assert_close(dict(loss.state_dict()), before, rtol=0, atol=0)


def test_a_beta_that_torchrl_has_let_fall_out_of_bounds_is_taken_as_the_nearest():
    actor, critic, data = problem(CATEGORICAL, moved=0.0)
    theirs = TorchrlLoss(actor, critic)
    for _ in range(21):  # the first minibatch of as many rollouts: a KL of 0
        theirs(data)
    assert theirs.beta < 1e-6
    ours, state = KLPENPPOLoss(actor, critic), theirs.state_dict()
    with pytest.warns(UserWarning, match=r"outside \[beta_min, beta_max\] = \[1e-06, 1e\+06\]"):
        ours.load_state_dict(state)
    assert ours.beta == torch.tensor(1e-6)
    assert state["beta"] == theirs.beta  # the caller's is left alone
    with pytest.warns(UserWarning, match="outside"):
        ours.load_state_dict(state | {"beta": torch.tensor(1e9)})
    assert ours.beta == 1e6
    ours.load_state_dict(state | {"beta": torch.tensor(0.0)})
    assert ours.beta == 0.0
    for dtype in (torch.bfloat16, torch.float16):  # what has no 1e-6 of its own
        with pytest.warns(UserWarning, match="outside"):
            ours.load_state_dict(state | {"beta": torch.tensor(1e-7, dtype=dtype)})
        assert ours.beta == torch.tensor(1e-6)


@pytest.mark.parametrize("name", [CATEGORICAL, "TanhNormal bounds", "MaskedCategorical"])
def test_copies_compute_the_same_and_live_apart(name):
    actor, critic, data = problem(name)
    loss = KLPENPPOLoss(actor, critic, entropy_bonus=False, dtarg=1e-9)
    loss(data)
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(loss), torch.load(buffer, weights_only=False)):
        assert other.beta == loss.beta == 2.0
        loss.beta = other.beta
        assert_same_outputs(loss.eval(), other.eval(), data)
        other.train()(data)
        assert (other.beta, loss.beta) == (4.0, 2.0)


@pytest.mark.parametrize("functional", [True, False])
def test_stateful_nets(functional):
    actor, critic, _ = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic, functional=functional)
    net = loss.get_stateful_net("actor_network")
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.5)
    loss.from_stateful_net("actor_network", net)
    params = dict(loss.named_parameters())
    assert all((p == 0.5).all() for n, p in params.items() if n.startswith("actor_network"))
    if functional:
        other = problem("Independent(Normal)")[1]
        with pytest.raises(RuntimeError, match="keys of params and provided module differ"):
            loss.from_stateful_net("actor_network", other)
    else:
        with pytest.raises(RuntimeError, match="Cannot copy module in non-functional mode"):
            loss.get_stateful_net("actor_network", copy=True)
    loss.reset_parameters_recursive()
    assert not all((p == 0.5).all() for p in loss.parameters())


@pytest.mark.parametrize("updater", [SoftUpdate, HardUpdate])
def test_a_proximal_policy_follows_torchrls_updaters(updater):
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic, delay_actor=True)
    with pytest.warns(UserWarning, match="nothing updates it"):
        out = loss(data)
    assert (out["kl"] == 0).all(), "the proximal policy starts as a copy"
    options = {"eps": 0.5} if updater is SoftUpdate else {"value_network_update_interval": 1}
    update = updater(loss, **options)
    with torch.no_grad():
        for p in loss.actor_network_params.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert (loss(data)["kl"] > 0).all()
    update.step()
    before = loss(data)["kl"].mean()
    update.step()
    assert loss(data)["kl"].mean() <= before


def test_a_proximal_policy_is_torchrls():
    actor, critic, data = problem("Independent(Normal)", dtype=torch.float64)
    options = {"delay_actor": True, "max_importance_ratio": 1.05, "increment": 1, "decrement": 1}
    losses = [cls(actor, critic, **options) for cls in (KLPENPPOLoss, TorchrlLoss)]
    for loss in losses:
        SoftUpdate(loss, eps=0.9)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.05)
    outs = [loss(data) for loss in losses]
    for key in outs[1].keys():  # noqa: SIM118 - a TensorDict iterates over its batch
        torch.testing.assert_close(outs[0][key], outs[1][key], rtol=1e-6, atol=1e-9, msg=key)
    grads = [torch.autograd.grad(total(out), list(actor.parameters())) for out in outs]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


def test_a_target_without_a_delay_is_the_policy_itself():
    actor, critic, _ = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic)
    for ours, target in zip(
        loss.actor_network_params.parameters(),
        loss.target_actor_network_params.values(True, True),
        strict=True,
    ):
        assert ours.data_ptr() == target.data_ptr()
        assert not target.requires_grad


def test_it_is_a_loss_module_to_torchrl():
    actor, critic, _ = problem(CATEGORICAL)
    assert isinstance(KLPENPPOLoss(actor, critic), LossModule)


@pytest.mark.parametrize(
    "order",
    [
        "import torchrl.objectives, klppo_compile.loss",
        "import klppo_compile.loss, torchrl.objectives",
    ],
)
def test_it_is_one_in_either_import_order(order):
    code = (
        f"import warnings; warnings.simplefilter('ignore'); {order}\n"
        "from torchrl.objectives.common import LossModule\n"
        "from klppo_compile import KLPENPPOLoss\n"
        "print(issubclass(KLPENPPOLoss, LossModule), issubclass(dict, LossModule))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
