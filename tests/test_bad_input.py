"""What is refused: the words, and that nothing has moved by then."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torchrl.modules.distributions as rl
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution

from klppo_compile import KLPENPPOLoss, compile_loss
from tests.builders import CASES, actor_of, critic_of, problem, rollout

NORMAL, CATEGORICAL = "independent normal", "Categorical"


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """As torchrl leaves it, so that no check of torch's stands in for ours."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


def refused(loss, data, error, words):
    """The call raises, and leaves beta, the random state and the data as they were."""
    before, state = data.clone(), torch.get_rng_state()
    with pytest.raises(error, match=words):
        loss(data)
    assert loss.beta == 1.0
    assert torch.equal(state, torch.get_rng_state())
    assert set(data.keys(True, True)) == set(before.keys(True, True))


@pytest.mark.parametrize("name", [NORMAL, CATEGORICAL])
def test_missing_entries_are_all_named(name):
    actor, critic, data = problem(name)
    loss = KLPENPPOLoss(actor, critic, dtarg=1e-6)
    parameter = "loc" if name == NORMAL else "logits"
    short = data.exclude("action", "action_log_prob", "value_target", parameter)
    words = rf"lacks 'action' .*'action_log_prob' .*'value_target' .*'{parameter}' "
    refused(loss, short, KeyError, words)


def test_a_missing_advantage_says_what_to_do():
    actor, critic, data = problem(CATEGORICAL)
    refused(
        KLPENPPOLoss(actor, critic),
        data.exclude("advantage"),
        RuntimeError,
        r"Compute it first, .*GAE",
    )


@pytest.mark.parametrize(
    ("name", "key", "change", "words"),
    [
        (NORMAL, "action_log_prob", lambda x: x[:, None], r"would broadcast to \[8, 8\]"),
        (CATEGORICAL, "action_log_prob", lambda x: x[:, None], r"Use .squeeze\(-1\)"),
        (CATEGORICAL, "action", lambda x: x[:, None], "'action' must have the shape"),
        (NORMAL, "action", lambda x: x[:, :1], "'action' must have the shape"),
        (NORMAL, "loc", lambda x: x[:, :1], "'loc' must have the shape of the actor's loc"),
        (NORMAL, "scale", lambda x: x[:, :1], "'scale' must have the shape of the actor's scale"),
        ("TanhNormal", "scale", lambda x: x[:, :1], r"'scale' must .*broadcast to \[8, 3\]"),
        ("plain Normal", "loc", lambda x: x[:, :1], "'loc' must have the shape of the actor's loc"),
        (CATEGORICAL, "logits", lambda x: x[:, :1], "must have the shape of the actor's logits"),
        (CATEGORICAL, "advantage", lambda x: x[:, 0], "outer product over samples"),
        (CATEGORICAL, "advantage", lambda x: x.expand(8, 8), r"must be \[\*batch, 1\]"),
        (CATEGORICAL, "advantage", lambda x: x > 0, "must be floating point; got torch.bool"),
        (CATEGORICAL, "action_log_prob", lambda x: x > 0, "must be floating point; got torch.bool"),
        (CATEGORICAL, "value_target", lambda x: x.int(), "must be floating point; got torch.int32"),
        (CATEGORICAL, "state_value", lambda x: x + 0j, "must be floating point; got .*complex64"),
        (CATEGORICAL, "logits", lambda x: x > 0, "'logits' must be floating point; got torch.bool"),
        (NORMAL, "action", lambda x: x + 0j, "'action' must hold real numbers; got .*complex64"),
        (CATEGORICAL, "value_target", lambda x: x[:, 0], "'value_target' must have the shape"),
        (CATEGORICAL, "state_value", lambda x: x[:, 0], "'state_value' must have the shape"),
        (CATEGORICAL, "action", lambda x: x.float(), r"must hold integer indices .*Use .long\(\)"),
    ],
)
def test_shapes_and_dtypes(name, key, change, words):
    actor, critic, data = problem(name)
    loss = KLPENPPOLoss(actor, critic, clip_value=0.2, dtarg=1e-6)
    data[key] = change(data[key])
    refused(loss, data, ValueError, words)


def test_an_old_parameter_that_all_rows_share_is_none_that_broadcasts_by_accident():
    actor, critic, data = problem("Independent(Normal)")
    data = data.auto_batch_size_(0)
    loss = KLPENPPOLoss(actor, critic, dtarg=1e-6)
    data["scale"] = data["scale"][:1].expand(8, 3).contiguous()
    expected = loss(data)["kl"]
    data["scale"] = data["scale"][0]
    torch.testing.assert_close(loss(data)["kl"], expected)


def test_all_wrong_shapes_come_in_one_error():
    actor, critic, data = problem(CATEGORICAL)
    data["action_log_prob"] = data["action_log_prob"][:, None]
    data["advantage"] = data["advantage"][:, 0]
    words = "'action_log_prob' must have .*'advantage' must be"
    refused(KLPENPPOLoss(actor, critic), data, ValueError, words)


@pytest.mark.parametrize(
    "key", ["action_log_prob", "advantage", "value_target", "state_value", "logits"]
)
def test_data_that_carry_a_gradient(key):
    actor, critic, data = problem(CATEGORICAL)
    data[key] = data[key].clone().requires_grad_()
    loss = KLPENPPOLoss(actor, critic, clip_value=0.2)
    refused(loss, data, RuntimeError, rf"tensordict stored '{key}' requires grad")


def test_a_mask_finer_than_the_rows():
    actor, critic, data = problem(CATEGORICAL)
    data["shifted_valid"] = torch.ones(8, 5, dtype=torch.bool)
    refused(KLPENPPOLoss(actor, critic), data, ValueError, "has more non-singleton dimensions")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dtrag": 0.1}, TypeError, "no argument 'dtrag'. Did you mean 'dtarg'"),
        ({"clip_epsilon": 0.1}, TypeError, "no argument 'clip_epsilon'. Did you mean"),
        ({"entropy_coef": 0.1, "entropy_coeff": 0.1}, TypeError, "entropy_coef and entropy_coeff"),
        ({"critic_coef": 0.1, "critic_coeff": 0.1}, TypeError, "critic_coef and critic_coeff"),
        ({"gamma": 0.9}, TypeError, "gamma is not an argument of the loss"),
        ({"increment": 0.5}, ValueError, "increment should be >= 1.0 in KLPENPPOLoss, got 0.5000"),
        ({"decrement": 1.5}, ValueError, "decrement should be <= 1.0 in KLPENPPOLoss, got 1.5000"),
        ({"decrement": 0.0}, ValueError, "decrement must be > 0"),
        ({"dtarg": 0.0}, ValueError, "dtarg must be > 0"),
        ({"dtarg": math.nan}, ValueError, "dtarg must be finite"),
        ({"beta": -1.0}, ValueError, "beta must be >= 0"),
        ({"beta": math.inf}, ValueError, "beta must be finite"),
        ({"beta": 1e7}, ValueError, "beta must be 0 .*or within"),
        ({"beta": None}, ValueError, "beta must be a float or a scalar tensor, got None"),
        ({"dtarg": None}, ValueError, "dtarg must be a float or a scalar tensor, got None"),
        ({"beta_min": None}, ValueError, "beta_min must be a float or a scalar tensor, got None"),
        ({"beta_min": 1e-50}, ValueError, "beta_min must be > 0, got 1e-50, which is 0 in float32"),
        ({"beta_max": 1e39}, ValueError, r"beta_max must be finite in float32, got 1e\+39"),
        ({"beta_min": 2.0, "beta_max": 1.0, "beta": 0.0}, ValueError, "beta_min must not exceed"),
        ({"entropy_coeff": -1.0}, ValueError, "entropy_coeff must be >= 0"),
        ({"entropy_coeff": {"action": 0.1}}, TypeError, "entropy_coeff as a mapping"),
        ({"critic_coeff": -1.0}, ValueError, "critic_coeff must be >= 0"),
        (
            {"clip_value": True},
            ValueError,
            "clip_value must be a float or a scalar tensor, got True",
        ),
        ({"clip_value": -0.2}, ValueError, "clip_value must be > 0"),
        ({"max_importance_ratio": 0.0}, ValueError, "max_importance_ratio must be > 0, got 0.0"),
        ({"samples_mc_kl": 0}, ValueError, "samples_mc_kl must be an int >= 1"),
        ({"samples_mc_entropy": -1}, ValueError, "samples_mc_entropy must be an int >= 1"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"loss_critic_type": "huber"}, ValueError, "loss_critic_type must be one of"),
        ({"beta_update": "never"}, ValueError, "beta_update must be one of"),
        ({"entropy_method": "exact"}, ValueError, "entropy_method must be one of"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ({"delay_actor": True, "functional": False}, ValueError, "requires functional=True"),
        (
            {"normalize_advantage": True, "advantage_norm": object()},
            ValueError,
            "mutually exclusive",
        ),
        ({"advantage_norm": 3}, TypeError, r"must have a scale\(\).*; got 3"),
    ],
)
def test_constructor_arguments(arguments, error, words):
    actor, critic, _ = problem(CATEGORICAL)
    with pytest.raises(error, match=words):
        KLPENPPOLoss(actor, critic, **arguments)


def test_networks_that_are_missing():
    actor, critic, _ = problem(CATEGORICAL)
    for pair in ((None, critic), (None, None)):
        with pytest.raises(TypeError, match="Missing positional arguments"):
            KLPENPPOLoss(*pair)
    with pytest.raises(TypeError, match="Missing positional arguments"):
        KLPENPPOLoss(actor, None, critic_coeff=1.0)
    with pytest.raises(TypeError, match=r"must be a tensordict module.*; got Linear"):
        KLPENPPOLoss(actor, critic.module)


META = "networks that are initialised, .* is on the meta device. Initialise the networks first"


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("which", [0, 1], ids=["actor", "critic"])
def test_networks_without_values(which, functional):
    networks = list(problem(CATEGORICAL)[:2])
    networks[which] = networks[which].to("meta")
    with pytest.raises(ValueError, match=META):
        KLPENPPOLoss(*networks, functional=functional)


def test_numbers_without_values_which_fake_ones_are_not():
    actor, critic, _ = problem(CATEGORICAL)
    with pytest.raises(ValueError, match="device is on the meta device"):
        KLPENPPOLoss(actor, critic, device="meta")
    with FakeTensorMode():
        actor, critic = actor_of(CASES[CATEGORICAL]), critic_of()
        assert KLPENPPOLoss(actor, critic).beta.device.type == "cpu"


@pytest.mark.parametrize("dims", [(2,), (0, -3)])
def test_dimensions_that_the_advantage_lacks(dims):
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(
        actor, critic, normalize_advantage=True, normalize_advantage_exclude_dims=dims
    )
    refused(loss, data, ValueError, rf"must lie in \[-2, 1\] .*; got {dims[-1]}")


def test_actors_without_one_probabilistic_module():
    actor, critic, _ = problem(CATEGORICAL)
    with pytest.raises(RuntimeError, match="Could not find the probabilistic module"):
        KLPENPPOLoss(actor.module[0], critic)
    two = type(actor)(*actor.module, deepcopy(actor.module[-1]))
    with pytest.raises(RuntimeError, match="one and only one distribution"):
        KLPENPPOLoss(two, critic)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", [NORMAL, "TanhNormal", "Independent(Bernoulli)"])
def test_an_action_that_is_not_finite_shows(name, value):
    """torchrl's loss stays finite there, and its gradient is NaN."""
    actor, critic, data = problem(name)
    data["action"] = data["action"].float()
    data["action"][2] = value
    assert KLPENPPOLoss(actor, critic)(data)["nonfinite"] == 1


class Differentiating(nn.Module):
    """Passes on its input, after a gradient and a break of the graph inside."""

    def forward(self, x):
        y = x.detach().requires_grad_()
        torch.autograd.grad((y * y).sum(), y)
        torch._dynamo.graph_break()
        return x


class Named(KLPENPPOLoss):
    """A loss with a constructor of its own."""

    def __init__(self, actor, critic, *, mine=1, **options):
        super().__init__(actor, critic, **options)
        self.mine = mine


def test_a_subclass_is_told_the_losss_arguments():
    actor, critic, data = problem(CATEGORICAL)
    assert Named(actor, critic, mine=2)(data)["loss_objective"].isfinite()
    with pytest.raises(TypeError, match="Did you mean 'dtarg'"):
        Named(actor, critic, dtrag=0.1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda d: d.pop("action"), KeyError, "lacks 'action'"),
        (lambda d: d.set("value_target", torch.randn(8)), ValueError, "'value_target' must have"),
        (lambda d: d["advantage"].requires_grad_(), RuntimeError, "requires grad"),
        (lambda d: d.set("shifted_valid", torch.ones(8, 5) > 0), ValueError, "non-singleton"),
    ],
)
def test_compiled_code_says_what_eager_code_does(change, error, words):
    actor, critic, data = problem(CATEGORICAL)
    loss = KLPENPPOLoss(actor, critic, dtarg=1e-6)
    compiled, good = compile_loss(loss, backend="eager"), data.clone()
    change(data)
    with pytest.raises(error, match=words) as found:
        compiled(data)
    assert found.value.__context__ is None
    assert loss.beta == 1.0
    assert compiled(good)["loss_objective"].isfinite()


def test_a_compiled_call_that_is_refused_leaves_no_trace():
    """Neither of the call that finds out why: a network that counts, and one that draws."""
    actor, critic, data = problem(CATEGORICAL)
    counting = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), *actor.module[0].module)
    actor.module[0].module = counting
    loss = KLPENPPOLoss(actor, critic)
    compiled = compile_loss(loss, backend="eager")
    data["value_target"] = torch.randn(8)
    state, before = torch.get_rng_state(), [x.clone() for x in loss.buffers()]
    with pytest.raises(ValueError, match="'value_target' must have"):
        compiled(data)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, before, loss.buffers()))


def test_a_network_that_is_lazy_hides_no_error():
    actor, critic, data = problem(CATEGORICAL)
    actor.module[0].module.insert(0, nn.LazyBatchNorm1d())
    data["action_log_prob"] = data["action_log_prob"][:, None]
    with pytest.raises(ValueError, match="'action_log_prob' must have"):
        compile_loss(KLPENPPOLoss(actor, critic, functional=False), backend="eager")(data)


def test_what_eager_code_takes_keeps_dynamos_error():
    actor, critic, data = problem(CATEGORICAL)
    actor.module[0].module.append(Differentiating())
    loss = KLPENPPOLoss(actor, critic)
    assert loss(data)["loss_objective"].isfinite()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        compile_loss(loss, backend="eager")(data)


def test_quadrature_is_none_of_a_mixtures_business():
    actor, critic, data = problem("mixture")
    assert KLPENPPOLoss(actor, critic, entropy_method="quadrature")(data)["entropy"].isfinite()


def test_quadrature_that_can_not_be_is_refused():
    def bounded(loc, scale):
        return rl.TanhNormal(loc, scale, low=-2.0, high=2.0)

    case = replace(CASES["TanhNormal"], kind=bounded)
    actor, critic = actor_of(case), critic_of()
    loss = KLPENPPOLoss(actor, critic, entropy_method="quadrature")
    data = rollout(case, actor)
    with pytest.raises(ValueError, match=r"distribution_kwargs=.*or use entropy_method"):
        loss(data)
