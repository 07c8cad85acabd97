"""The actor's part: which actors are taken, what is run of them, what is left to torch."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torchrl.modules.distributions as rl
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Gamma,
    Independent,
    Normal,
    Poisson,
    TanhTransform,
    TransformedDistribution,
)
from torch.nn.functional import one_hot

from klppo_compile import KLPENPPOLoss, compile_loss
from klppo_compile.registry import distribution_entropy, kl_divergence
from tests.builders import (
    CASES,
    LOC,
    OBSERVATIONS,
    Case,
    actor_of,
    critic_of,
    gradients,
    logits_head,
    pair_head,
    problem,
    rollout,
    total,
)


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """As torchrl leaves it."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


def test_an_actor_head_that_is_a_sequence_itself_is_run():
    """The seed page's second option; torchrl reads the old parameters as the new ones there."""
    common = TensorDictModule(nn.Linear(OBSERVATIONS, 6), ["observation"], ["hidden"])
    head = actor_of(CASES["Categorical"], ["hidden"], nn.Linear(6, 5))
    data = rollout(CASES["Categorical"], ProbabilisticTensorDictSequential(common, *head.module))
    data, critic, found = data.exclude("hidden"), critic_of(["hidden"], 6), {}
    for nested in (True, False):
        parts = (head,) if nested else head.module
        actor = ProbabilisticTensorDictSequential(common, *parts)
        loss = KLPENPPOLoss(actor, critic)
        out = loss(data)
        total(out).backward()
        found[nested] = out["loss_objective"], [p.grad.clone() for p in actor.parameters()]
        loss.zero_grad()
    torch.testing.assert_close(found[True], found[False])
    assert (found[True][1][0] != 0).any()


def test_an_actor_that_does_not_end_in_its_distribution_is_refused():
    actor, critic, _ = problem("Categorical")
    wrapped = TensorDictSequential(*actor.module)
    with pytest.raises(TypeError, match="must end in its probabilistic module"):
        KLPENPPOLoss(wrapped, critic)


def test_a_bare_distribution_of_data_is_an_actor():
    _, critic, data = problem("Categorical")
    actor = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=Categorical)
    out = KLPENPPOLoss(actor, critic)(data)
    assert (out["kl"] == 0).all()


@pytest.mark.parametrize("wrap", [lambda kind: kind, partial])
def test_composite_actions_are_refused_in_words(wrap):
    kind = wrap(CompositeDistribution)
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(OBSERVATIONS, 2), ["observation"], [("params", "a", "loc")]),
        ProbabilisticTensorDictModule(
            ["params"],
            [("action", "a")],
            distribution_class=kind,
            distribution_kwargs={"distribution_map": {"a": Normal}},
        ),
    )
    with pytest.raises(NotImplementedError, match="Composite actions"):
        KLPENPPOLoss(actor, critic_of())


def test_what_a_callable_does_today_counts_not_what_it_did():
    """An annealed temperature must not be mistaken for none because it began at 1."""
    temperature = [1.0]
    case = Case(
        "annealed",
        lambda logits: Categorical(logits=logits / temperature[0]),
        ("logits",),
        logits_head,
    )
    actor, critic = actor_of(case), critic_of()
    data, loss = rollout(case, actor), KLPENPPOLoss(actor, critic)
    loss(data)
    temperature[0] = 0.25
    with torch.no_grad():
        new = actor[:-1](data.clone())["logits"] * 4
        expected = Categorical(logits=new).entropy().mean()
    torch.testing.assert_close(loss(data)["entropy"], expected)


def cooler(logits):
    """A third of the temperature's inverse."""
    return Categorical(logits=logits / 3.0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("TanhNormal bounds", "distribution_kwargs", {"low": -5.0, "high": 5.0}),
        ("Categorical", "distribution_class", cooler),
    ],
)
@pytest.mark.parametrize("functional", [True, False])
def test_what_a_trainer_assigns_to_the_actor_counts(name, attribute, value, functional, compiled):
    if compiled and attribute == "distribution_kwargs" and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 can't tell two dicts apart in compiled code, and says so")
    actor, critic, data = problem(name)
    options = {"functional": functional, "entropy_bonus": False, "increment": 1, "decrement": 1}
    loss = KLPENPPOLoss(actor, critic, **options)
    called = compile_loss(loss) if compiled else loss
    before = called(data)["loss_objective"]
    setattr(loss.actor_network[-1], attribute, value)
    found = called(data)["loss_objective"]
    setattr(actor[-1], attribute, value)
    expected = KLPENPPOLoss(actor, critic, **options)(data)["loss_objective"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert abs(float((before - expected).detach())) > 1e-3


def test_an_actor_that_takes_the_place_of_another_is_read_by_its_own_distribution():
    actor, critic, data = problem("Categorical")
    other = actor_of(dataclasses.replace(CASES["Categorical"], kind=cooler), net=actor[0].module)
    loss = KLPENPPOLoss(actor, critic, functional=False)
    loss.actor_network = other
    expected = KLPENPPOLoss(other, critic, functional=False)(data)["loss_objective"]
    torch.testing.assert_close(loss(data)["loss_objective"], expected)


@pytest.mark.parametrize("bound", [torch.full((3,), 2.0), np.float64(2.0), 2.0])
def test_a_partial_of_any_constants_is_one_graph(bound):
    if isinstance(bound, torch.Tensor) and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 can't tell two lists of transforms apart in compiled code")
    case = CASES["TanhNormal"]
    squashed = partial(rl.TanhNormal, low=-bound, high=bound)
    actor, critic = actor_of(dataclasses.replace(case, kind=squashed)), critic_of()
    data = rollout(case, actor)
    loss = KLPENPPOLoss(actor, critic, increment=1, decrement=1, entropy_bonus=False)
    torch.compiler.reset()
    compiled = compile_loss(loss)
    torch.testing.assert_close(compiled(data)["kl"], loss(data)["kl"])


@pytest.mark.parametrize("base", [ProbabilisticTensorDictSequential, ProbabilisticTensorDictModule])
def test_an_actor_with_a_way_of_its_own_to_a_distribution_is_refused(base):
    actor, critic, _ = problem("Categorical")
    kind = type("Tempered", (base,), {"get_dist": lambda _, td: cooler(td["logits"])})
    changed = actor if base is ProbabilisticTensorDictSequential else actor[-1]
    changed.__class__ = kind
    with pytest.raises(TypeError, match="this Tempered overrides get_dist"):
        KLPENPPOLoss(actor, critic)


def test_distribution_arguments_are_read_at_each_call():
    actor, critic, data = problem("TanhNormal bounds")
    loss = KLPENPPOLoss(actor, critic, entropy_bonus=False)
    before = loss(data)["kl_approx"]
    actor.module[-1].distribution_kwargs["high"] = 4.0
    assert loss(data)["kl_approx"] != before


class Shifted(Independent):
    """Overrides what it computes: its base's text would be wrong."""

    def __init__(self, loc, scale):
        super().__init__(Normal(loc, scale), 1)

    def log_prob(self, value):
        return super().log_prob(value) - 1.0


def test_a_subclass_with_a_log_prob_of_its_own_keeps_it():
    case = Case("shifted", Shifted, LOC, pair_head)
    actor = actor_of(case)
    data = rollout(case, actor, moved=0.0)
    out = KLPENPPOLoss(actor, critic_of())(data)
    torch.testing.assert_close(out["kl_approx"], torch.zeros(()), atol=1e-6, rtol=0)


# ---- transforms


def bounded(half_width, loc=0.1):
    base = Normal(torch.full((4, 3), loc), torch.ones(4, 3))
    bounds = AffineTransform(torch.zeros(3), half_width)
    return TransformedDistribution(Independent(base, 1), [TanhTransform(), bounds])


def test_equal_bounds_in_tensors_have_the_gaussians_kl():
    old, new = (bounded(torch.full((3,), 2.0), loc) for loc in (0.1, 0.2))
    torch.testing.assert_close(kl_divergence(old, new, 1), torch.full((4,), 3 * 0.01 / 2))


def test_bounds_that_differ_do_not():
    """A wider new policy: its KL is not 0 though the Gaussians are the same."""
    old, new = bounded(torch.full((3,), 2.0)), bounded(torch.full((3,), 2.5))
    assert (kl_divergence(old, new, 5000) > 0.05).all()


def test_transforms_of_other_kinds_do_not():
    base = Normal(torch.zeros(4), torch.ones(4))
    old = TransformedDistribution(base, [AffineTransform(0.0, 2.0)])
    new = TransformedDistribution(base, [AffineTransform(0.0, 3.0)])
    exact = torch.distributions.kl_divergence(Normal(0.0, 2.0), Normal(0.0, 3.0))
    sampled = kl_divergence(old, new, 20_000)
    torch.testing.assert_close(sampled, exact.expand(4), atol=0.02, rtol=0)


def test_an_entropy_that_torch_only_seems_to_have_is_sampled():
    """Poisson's is its family's, which derives it from a measure that Poisson lacks."""
    rate = torch.tensor([0.5, 2.0])
    counts = torch.arange(60.0).unsqueeze(-1)
    log_prob = Poisson(rate).log_prob(counts)
    exact = -(log_prob.exp() * log_prob).sum(0)
    torch.testing.assert_close(
        distribution_entropy(Poisson(rate), 50_000), exact, atol=0.02, rtol=0
    )
    gamma = Gamma(rate, rate)
    assert distribution_entropy(gamma, 1).equal(gamma.entropy())


def test_a_registered_kl_of_the_users_own_is_used():
    class Mine(TransformedDistribution):
        pass

    @torch.distributions.register_kl(Mine, Mine)
    def _kl(p, q):
        return torch.full((4,), 7.0)

    mine = Mine(Normal(torch.zeros(4), torch.ones(4)), [TanhTransform()])
    assert (kl_divergence(mine, mine, 1) == 7.0).all()


# ---- masked categoricals that list their actions


def listed(kind, indices, action, **options):
    case = Case("listed", kind, ("logits", "indices"), logits_head, kwargs=options)
    actor = actor_of(case)
    data = rollout(CASES["Categorical"], actor_of(CASES["Categorical"]), (4,))
    data["indices"], data["action"] = indices, action
    loss = KLPENPPOLoss(actor, critic_of())
    out = loss(data)
    total(out).backward()
    return out, gradients(loss)


@pytest.mark.parametrize("hot", [False, True])
def test_listed_actions_may_be_padded(hot):
    full = torch.tensor([[1, 2], [3, 4], [0, 1], [2, 0]])
    padded = torch.cat([full, torch.full((4, 1), -1)], -1)
    action = one_hot(full[:, 1], 5) if hot else full[:, 1]
    kind = rl.MaskedOneHotCategorical if hot else rl.MaskedCategorical
    torch.manual_seed(0)
    expected = listed(kind, full, action)
    torch.manual_seed(0)
    torch.testing.assert_close(listed(kind, padded, action, padding_value=-1), expected)


def test_an_action_that_is_not_listed_shows():
    indices = torch.tensor([[1, 2], [3, 4], [0, 1], [2, 0]])
    out, _ = listed(rl.MaskedCategorical, indices, torch.tensor([1, 0, 0, 2]))
    assert out["nonfinite"] == 1
