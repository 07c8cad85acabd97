"""Differential runs against torchrl in float64: every output, every gradient, beta's path.

torchrl differentiates with the beta of after its move; gradients are compared where it rests
(increment = decrement = 1). The other differences are those on purpose, stated in README.
"""

import itertools
import random
from copy import deepcopy

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Distribution
from torchrl.objectives import KLPENPPOLoss as Theirs
from torchrl.objectives import SoftUpdate

from klppo_compile import KLPENPPOLoss
from tests.builders import (
    CASES,
    CLOSED,
    FAMILIES,
    OBSERVATIONS,
    actor_of,
    critic_of,
    gradients,
    nudged,
    problem,
    rollout,
    total,
)

pytestmark = pytest.mark.filterwarnings("ignore:Target network updater:UserWarning")


@pytest.fixture(autouse=True)
def _as_torchrl_leaves_it(monkeypatch):
    """torchrl turns torch's argument checks off when it loads, and its TanhNormal needs that."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


RESTING = {"increment": 1.0, "decrement": 1.0}
# The series of a softmax's KL are cut for float32, 5e-8; torchrl keeps float bounds as float32.
SERIES = 1e-7
TOLERANCE = dict.fromkeys(CASES, SERIES) | {"TanhNormal bounds": 3e-6}


def both(actor, critic, data, **options):
    """Outputs and parameter gradients of torchrl's loss and of ours."""
    found = []
    for cls in (Theirs, KLPENPPOLoss):
        loss = cls(deepcopy(actor), deepcopy(critic), **RESTING | options)
        out = loss(data.clone())
        total(out).backward()
        found.append((out, gradients(loss)))
    return found


def assert_same(found, tolerance, but=()):
    (out, grads), (our_out, our_grads) = found
    assert set(our_out.keys()) == {*out.keys(), "nonfinite"}
    for key in out.keys():  # noqa: SIM118 - a tensordict iterates over its rows
        if key not in but:
            torch.testing.assert_close(
                our_out[key],
                out[key],
                rtol=tolerance,
                atol=tolerance / 10,
                msg=lambda m, k=key: f"{k}: {m}",
            )
    assert set(our_grads) == set(grads)
    for name, g in grads.items():
        torch.testing.assert_close(our_grads[name], g, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CLOSED)
def test_outputs_and_gradients_are_torchrls(name, reduction):
    batch = (8,) if name.endswith("indices") else (4, 3)
    found = both(
        *problem(name, batch, dtype=torch.float64),
        reduction=reduction,
        entropy_bonus="e" in CASES[name].closed,
        log_explained_variance=len(batch) == 1,
    )
    assert_same(found, TOLERANCE[name])


def options_at_random(n):
    """Combinations of options drawn once, the same in every run."""
    choices = {
        "reduction": ["mean", "sum", "none"],
        "loss_critic_type": ["l1", "l2", "smooth_l1"],
        "clip_value": [None, 0.2],
        "normalize_advantage": [False, True],
        "entropy_bonus": [True, False],
        "entropy_coeff": [None, 0.0, 0.3],
        "critic_coeff": [None, 0.5, 0],
        "functional": [True, False],
        "separate_losses": [False, True],
        "max_importance_ratio": [None, 1.01],
        "log_explained_variance": [True, False],
        "beta": [1.0, 3.5],
    }
    draw = random.Random(0)  # noqa: S311 - the same every time is the point
    return [{k: draw.choice(v) for k, v in choices.items()} for _ in range(n)]


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, o) for name, o in zip(itertools.cycle(FAMILIES), options_at_random(48), strict=False)],
    ids=lambda x: x if isinstance(x, str) else "-",
)
def test_random_options(name, options):
    if name == "TanhNormal":
        options = options | {"entropy_bonus": False}
    actor, critic, data = problem(name, (9,), moved=0.2, dtype=torch.float64, seed=3)
    assert_same(both(actor, critic, data, **options), SERIES)


@pytest.mark.parametrize("critic_coeff", [None, 0])
def test_no_critic(critic_coeff):
    actor, _, data = problem("Categorical", dtype=torch.float64)
    found = both(actor, None, data, critic_coeff=critic_coeff)
    assert_same(found, SERIES)
    assert "loss_critic" not in found[1][0]


@pytest.mark.parametrize("key", ["shifted_valid", ("collector", "mask"), "mine"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masks_of_the_losses(key, reduction):
    """torchrl's kl_approx, entropy and explained_variance ignore the mask, on purpose not ours."""
    actor, critic, data = problem("Independent(Normal)", (4, 3), dtype=torch.float64)
    data[key] = torch.rand(4, 3) > 0.4
    found = []
    for cls in (Theirs, KLPENPPOLoss):
        loss = cls(deepcopy(actor), deepcopy(critic), reduction=reduction, **RESTING)
        if key == "mine":
            loss.loss_mask_key = key
        out = loss(data.clone())
        total(out).backward()
        found.append((out, gradients(loss)))
    assert_same(found, SERIES, but=("kl_approx", "entropy", "explained_variance"))


def test_both_masks_hold_together():
    actor, critic, data = problem("Categorical", (12,), dtype=torch.float64)
    data["shifted_valid"] = torch.rand(12) > 0.3
    data["collector", "mask"] = torch.rand(12, 1) > 0.3
    found = both(actor, critic, data, reduction="none")
    assert_same(found, SERIES, but=("kl_approx", "entropy", "explained_variance"))


def test_masked_normalisation_is_torchrls():
    actor, critic, data = problem("Categorical", (12,), dtype=torch.float64)
    data["shifted_valid"] = torch.rand(12) > 0.3
    data["advantage"] = 5 + 3 * data["advantage"]
    found = both(actor, critic, data, normalize_advantage=True, reduction="none")
    assert_same(found, SERIES, but=("kl_approx", "entropy", "explained_variance"))


@pytest.mark.parametrize("name", ["Categorical probs", "OneHotCategorical probs"])
def test_a_probability_of_zero_gets_no_gradient_and_spoils_none(name):
    actor, critic, _ = problem(name, dtype=torch.float64)
    last = actor.module[0].module[0]
    with torch.no_grad():
        last.weight[0], last.bias[0] = 0.0, -800.0  # exp of that is 0
    data = rollout(CASES[name], actor, moved=0.05, dtype=torch.float64)
    found = both(actor, critic, data)
    # torch holds what is forbidden to 2e-16.
    assert_same(found, 1e-6, but=("kl",))
    assert all(g.isfinite().all() for g in found[1][1].values())


def test_a_mask_of_rows_that_each_hold_several():
    """[B, 1] over [B, 3]: torchrl expands it."""
    actor, critic, data = problem("plain Normal", dtype=torch.float64)
    data["shifted_valid"] = torch.rand(8, 1) > 0.4
    found = both(actor, critic, data, reduction="none")
    assert_same(found, SERIES, but=("kl_approx", "entropy", "explained_variance"))


@pytest.mark.parametrize("exclude", [(), (0,), (1,), (-2,)])
def test_normalised_advantage(exclude):
    actor, critic, data = problem("Independent(Normal)", (4, 3), dtype=torch.float64)
    options = {"normalize_advantage": True, "normalize_advantage_exclude_dims": exclude}
    found = both(actor, critic, data, log_explained_variance=False, **options)
    assert_same(found, SERIES)


def test_advantage_norm():
    from torchrl.modules import PopArtValueNorm

    norm = PopArtValueNorm(shape=1)
    norm.update(torch.tensor([[1.0], [5.0], [9.0]]))
    actor, critic, data = problem("Categorical", dtype=torch.float64)
    before = norm.scale().clone()
    assert_same(both(actor, critic, data, advantage_norm=norm), 1e-6)
    assert torch.equal(norm.scale(), before)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["plain Normal", "Bernoulli"])
def test_a_log_prob_per_token(name, reduction):
    """Per-element policies with one advantage per decision: [B, 1] over [B, T]."""
    actor, critic, data = problem(name, dtype=torch.float64)
    assert data["action_log_prob"].shape == (8, 3)
    found = both(actor, critic, data, reduction=reduction)
    assert_same(found, SERIES)
    assert found[1][0]["kl"].shape == (8, 3, 1)


class TestDelayedActor:
    def pair(self, **options):
        actor, critic, data = problem("Categorical", (9,), moved=0.3, dtype=torch.float64)
        losses = []
        for cls in (Theirs, KLPENPPOLoss):
            loss = cls(deepcopy(actor), deepcopy(critic), delay_actor=True, **RESTING | options)
            SoftUpdate(loss, eps=0.5)
            for p in loss.actor_network_params.values(True, True):
                p.data += 0.1
            losses.append(loss)
        return losses, data

    @pytest.mark.parametrize("cap", [None, 1.05])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_outputs_and_gradients(self, cap, reduction):
        losses, data = self.pair(max_importance_ratio=cap, reduction=reduction)
        found = []
        for loss in losses:
            out = loss(data.clone())
            total(out).backward()
            found.append((out, gradients(loss)))
        assert_same(found, SERIES)

    def test_old_parameters_are_not_read(self):
        (theirs, ours), data = self.pair()
        del data["logits"]
        assert_same([(loss(data), {}) for loss in (theirs, ours)], SERIES)

    def test_a_loss_without_updater_warns(self):
        actor, critic, data = problem("Categorical")
        loss = KLPENPPOLoss(actor, critic, delay_actor=True)
        with pytest.warns(UserWarning, match="nothing updates"):
            loss(data)


@pytest.mark.parametrize("separate_losses", [False, True])
@pytest.mark.parametrize("head_only", [False, True])
def test_a_shared_trunk(separate_losses, head_only):
    """torchrl's functional=True is the reference; both of ours must equal it."""
    from tensordict.nn import TensorDictSequential

    torch.manual_seed(0)
    common = TensorDictModule(nn.Linear(OBSERVATIONS, 6), ["observation"], ["hidden"])
    head = TensorDictModule(nn.Linear(6, 5), ["hidden"], ["logits"])
    case = CASES["Categorical"]
    value_head = critic_of(["hidden"], 6)
    actor = actor_of(case, net=nn.Linear(OBSERVATIONS, 5))
    actor = type(actor)(common, head, actor[-1]).double()
    critic = value_head if head_only else TensorDictSequential(common, value_head)
    critic = critic.double()
    data = rollout(case, actor, (6,), dtype=torch.float64)
    data = data.exclude("hidden")
    found = {}
    for cls, functional in ((Theirs, True), (KLPENPPOLoss, True), (KLPENPPOLoss, False)):
        a, c = deepcopy((actor, critic))
        options = {"separate_losses": separate_losses, "functional": functional}
        loss = cls(a, c, **RESTING | options)
        out = loss(data.clone())
        total(out).backward()
        found[cls, functional] = out, gradients(nn.ModuleList([a, c]))
    reference, *ours = found.values()
    for mine in ours:
        assert_same([reference, mine], SERIES)


@pytest.mark.parametrize("name", ["Independent(Normal)", "Categorical", "TanhNormal"])
def test_betas_path_is_torchrls_to_the_bit(name):
    """The policy walks away and back: beta rises, rests and falls."""
    actor, critic, data = problem(name, (16,), moved=0.0)
    middle = float(KLPENPPOLoss(nudged(actor, 0.05), critic)(data)["kl"].mean())
    losses = [
        cls(deepcopy(actor), deepcopy(critic), dtarg=middle, increment=1.7, decrement=0.6)
        for cls in (Theirs, KLPENPPOLoss)
    ]
    steps = [nudged(actor, s) for s in (0.0, 0.01, 0.02, 0.05, 0.3, 0.3, 0.2, 0.05, 0.01, 0.0, 0.0)]
    path = []
    for step in steps:
        for loss in losses:
            loss.from_stateful_net("actor_network", step)
            loss(data.clone())
        path.append(tuple(float(loss.beta) for loss in losses))
    assert all(a == b for a, b in path)
    moves = {(b > a) - (b < a) for (a, _), (b, _) in itertools.pairwise(path)}
    assert moves == {-1, 0, 1}


@pytest.mark.parametrize("name", ["Independent(Normal)", "Gamma"])
def test_two_optimisers_take_turns(name):
    """The critic's loss is differentiated after the actor has moved, as torchrl's may be."""
    actor, critic, data = problem(name, dtype=torch.float64)
    found = []
    for cls in (Theirs, KLPENPPOLoss):
        loss = cls(deepcopy(actor), deepcopy(critic), functional=False, **RESTING)
        out = loss(data.clone())
        (out["loss_objective"] + out["loss_entropy"]).backward()
        torch.optim.SGD(loss.actor_network.parameters(), 1.0).step()
        out["loss_critic"].backward()
        found.append((out, gradients(loss)))
    assert_same(found, TOLERANCE[name])


def test_defaults_are_torchrls():
    """Every argument of torchrl's class, in its order, with its default."""
    import inspect

    ours = inspect.signature(KLPENPPOLoss.__init__).parameters
    theirs = inspect.signature(Theirs.__init__).parameters
    shared = [p for p in theirs.values() if p.kind is not p.VAR_KEYWORD]
    assert [ours[p.name].default for p in shared] == [p.default for p in shared]
    assert [ours[p.name].kind for p in shared] == [p.kind for p in shared]
    order = [name for name in ours if name in theirs]
    assert order == [p.name for p in shared]
