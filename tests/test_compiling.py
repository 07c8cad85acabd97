"""One graph forward and one backward, the same numbers as eager, and nothing that recompiles it."""

import itertools
import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torch._dynamo.utils import counters
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Gamma,
    Independent,
    Normal,
)
from torch.utils.checkpoint import checkpoint

from klppo_compile import KLPENPPOLoss, compile_loss, compiling


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """Dynamo turns the checks of torch.distributions off when it first compiles; keep them off."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


class IndependentNormal(Independent):
    def __init__(self, loc, scale):
        super().__init__(Normal(loc, scale), 1)


class IndependentBernoulli(Independent):
    def __init__(self, logits):
        super().__init__(Bernoulli(logits=logits), 1)


class MultiDiscrete(Independent):
    def __init__(self, logits):
        super().__init__(Categorical(logits=logits), 1)


class IndependentGamma(Independent):
    def __init__(self, concentration, rate):
        super().__init__(Gamma(concentration, rate), 1)


# family: (distribution, parameter names, network from 4 observations)
ACTORS = {
    "normal": (
        IndependentNormal,
        ["loc", "scale"],
        lambda: nn.Sequential(nn.Linear(4, 6), NormalParamExtractor()),
    ),
    "categorical": (Categorical, ["logits"], lambda: nn.Linear(4, 5)),
    "bernoulli": (IndependentBernoulli, ["logits"], lambda: nn.Linear(4, 3)),
    "multi-discrete": (
        MultiDiscrete,
        ["logits"],
        lambda: nn.Sequential(nn.Linear(4, 12), nn.Unflatten(-1, (3, 4))),
    ),
    "registered": (
        IndependentGamma,
        ["concentration", "rate"],
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Softplus(), Split()),
    ),
}


class Split(nn.Module):
    def forward(self, x):
        return (x + 0.5).chunk(2, -1)


def problem(kind, batch=64, moved=0.05):
    distribution, names, network = ACTORS[kind]
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(network(), ["observation"], names),
        ProbabilisticTensorDictModule(
            names,
            ["action"],
            distribution_class=distribution,
            return_log_prob=True,
            default_interaction_type="random",
        ),
    )
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    with torch.no_grad():
        data = critic(actor(TensorDict({"observation": torch.randn(batch, 4)}, [batch])))
        data["advantage"] = torch.randn(batch, 1)
        data["value_target"] = data["state_value"] + torch.randn(batch, 1)
        for p in (*actor.parameters(), *critic.parameters()):
            p.add_(moved * torch.randn_like(p))
    return actor, critic, data


def total(out):
    return sum(x for key, x in out.items() if key.startswith("loss"))


def call(loss, data, leaves):
    out = loss(data)
    return out, torch.autograd.grad(total(out), leaves)


def assert_same(found, expected):
    (out, grads), (out_eager, grads_eager) = found, expected
    assert set(out.keys()) == set(out_eager.keys())
    for key in out.keys():  # noqa: SIM118 - a TensorDict iterates over its batch
        torch.testing.assert_close(out[key], out_eager[key], rtol=2e-5, atol=2e-6, msg=key)
    torch.testing.assert_close(grads, grads_eager, rtol=2e-5, atol=2e-6)


# Inductor where the code that it writes differs in kind; elsewhere AOTAutograd is what can go wrong
BACKENDS = {"normal": "inductor", "categorical": "inductor"}


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("kind", ACTORS)
def test_one_graph_follows_eager_while_everything_moves(kind, functional):
    actor, critic, data = problem(kind)
    leaves = [*actor.parameters(), *critic.parameters()]
    eager = KLPENPPOLoss(actor, critic, functional=functional)
    loss = KLPENPPOLoss(actor, critic, functional=functional)
    backend = BACKENDS.get(kind, "aot_eager") if functional else "aot_eager"
    counters.clear()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    # KL above, below and inside the band; a coefficient; three batch sizes
    for rows, dtarg, coefficient in ((64, 1e-6, 0.01), (32, 10.0, 0.01), (48, None, 0.02)):
        for module in (eager, loss):
            module.dtarg = dtarg or float(eager(data[:rows])["kl"].mean())
            module.entropy_coeff = coefficient
            module.beta = 1.0
        assert_same(call(compiled, data[:rows].clone(), leaves), call(eager, data[:rows], leaves))
        assert loss.beta == eager.beta
    assert counters["stats"]["unique_graphs"] == 2, "the second batch size makes the size dynamic"
    assert not counters["graph_break"]


@pytest.mark.parametrize("dtarg", [1e-6, None, 10.0], ids=["above", "inside", "below"])
def test_gradient_uses_the_beta_of_the_value_behind_an_outer_function(dtarg):
    """Only the summed loss leaves the graph: nothing but the snapshot keeps beta for backward."""
    actor, critic, data = problem("normal")
    leaves = [*actor.parameters(), *critic.parameters()]
    eager, loss = (KLPENPPOLoss(actor, critic, increment=3.0, decrement=0.1) for _ in range(2))
    eager.eval()
    for module in (eager, loss):
        module.dtarg = dtarg or float(eager(data)["kl"].mean())
    outer = torch.compile(lambda data: total(loss(data)), fullgraph=True)
    found = torch.autograd.grad(outer(data), leaves)
    torch.testing.assert_close(found, call(eager, data, leaves)[1], rtol=2e-5, atol=2e-6)
    assert float(loss.beta) == pytest.approx({1e-6: 3.0, None: 1.0, 10.0: 0.1}[dtarg])


def test_gradient_agrees_with_finite_differences_while_beta_moves():
    actor, critic, data = problem("normal")
    actor, critic, data = actor.double(), critic.double(), data.double()
    loss = KLPENPPOLoss(actor, critic, dtarg=1e-6)
    weight = next(actor.parameters())
    (grad,) = torch.autograd.grad(total(loss(data)), [weight])
    assert loss.beta == 2.0
    direction, step, values = torch.randn_like(weight), 1e-6, []
    for sign in (1, -1):
        loss.reset()
        with torch.no_grad():
            weight += sign * step * direction
        values.append(total(loss(data)).detach())
        with torch.no_grad():
            weight -= sign * step * direction
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_twenty_losses_of_one_architecture_share_two_graphs():
    counters.clear()
    for _ in range(20):
        actor, critic, data = problem("categorical")
        compiled = torch.compile(KLPENPPOLoss(actor, critic), fullgraph=True, backend="eager")
        for rows in (64, 32, 20):
            compiled(data[:rows].clone())
    assert counters["stats"]["unique_graphs"] == 2


def test_compile_loss_serves_more_architectures_than_the_recompile_limit():
    counters.clear()
    kinds = ["normal", "categorical", "bernoulli", "multi-discrete"]
    for number in range(12):
        actor, critic, data = problem(kinds[number % 4])
        compiled = compile_loss(KLPENPPOLoss(actor, critic), backend="eager")
        compiled(data)
    assert counters["stats"]["unique_graphs"] == 12


@pytest.mark.skipif(not compiling.LIMITED, reason="this torch takes no limit of a graph's own")
def test_compile_loss_serves_more_kinds_of_call_than_torch_would():
    actor, critic, data = problem("categorical")
    loss = KLPENPPOLoss(actor, critic)
    compiled = compile_loss(loss, backend="eager")
    shapes = [(64,), (32,), (1,), (8, 8), (4, 8), (2, 4, 8), (1, 4), (2, 2, 2, 2)]
    for shape, training in itertools.product(shapes, (True, False)):
        loss.train(training)
        compiled(data[: math.prod(shape)].reshape(shape))
    limited, raised = (compile_loss(loss, backend="eager", recompile_limit=n) for n in (1, 2))
    for call in (limited, raised):
        call(data)
    loss.train()
    advice = r"one for each kind of call .* Pass a larger recompile_limit to compile_loss"
    with pytest.raises(RuntimeError, match=advice):
        limited(data)
    raised(data)


@pytest.mark.parametrize("loaded", [False, True])
def test_compile_loss_reads_a_memory_mapped_rollout(tmp_path, loaded):
    actor, critic, data = problem("normal")
    loss, plain = (KLPENPPOLoss(actor, critic) for _ in range(2))
    mapped = data.memmap(tmp_path)
    if loaded:
        mapped = TensorDict.load_memmap(tmp_path)
    found, expected = compile_loss(loss, backend="aot_eager")(mapped), plain(data)
    for key in expected.keys():  # noqa: SIM118 - a tensordict iterates over its rows
        torch.testing.assert_close(found[key], expected[key])


def test_compile_loss_leaves_beta_alone_in_a_recomputation():
    actor, critic, data = problem("normal")
    leaves = list(actor.parameters())
    loss, plain = (KLPENPPOLoss(actor, critic, dtarg=1e-6) for _ in range(2))
    compiled = compile_loss(loss, backend="aot_eager")
    out = checkpoint(lambda: total(compiled(data)), use_reentrant=False)
    found = torch.autograd.grad(out, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(total(plain(data)), leaves))
    assert loss.beta == plain.beta == 2.0


def test_recomputations_of_several_compiled_calls_read_each_its_own_beta():
    actor, critic, data = problem("normal")
    leaves = list(actor.parameters())
    loss, plain = (KLPENPPOLoss(actor, critic, dtarg=1e-6, increment=10.0) for _ in range(2))
    compiled, half = compile_loss(loss, backend="aot_eager"), len(data) // 2

    def part(i):
        return total(compiled(data[i : i + half]))  # made anew in the recomputation

    out = sum(checkpoint(part, i, use_reentrant=False) for i in (0, half))
    found = torch.autograd.grad(out, leaves)
    expected = sum(total(plain(data[i : i + half])) for i in (0, half))
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves))
    assert loss.beta == plain.beta == 100.0


def test_compiled_beta_rests_outside_training():
    actor, critic, data = problem("categorical")
    loss = KLPENPPOLoss(actor, critic, dtarg=1e-6)
    compiled = compile_loss(loss, backend="aot_eager")
    with torch.no_grad():
        compiled(data)
    loss.eval()
    compiled(data)
    assert loss.beta == 1.0
    loss.train()
    compiled(data)
    assert loss.beta == 2.0


def test_module_compile_works_in_place():
    actor, critic, data = problem("normal")
    leaves = list(actor.parameters())
    loss, eager = KLPENPPOLoss(actor, critic), KLPENPPOLoss(actor, critic)
    loss.compile(fullgraph=True, backend="aot_eager")
    assert_same(call(loss, data, leaves), call(eager, data, leaves))


def test_cudagraphs_are_refused_without_a_device_or_with_a_mode():
    actor, critic, _ = problem("normal")
    loss = KLPENPPOLoss(actor, critic)
    with pytest.raises(ValueError, match=r"needs a loss on a CUDA device; this one is on cpu"):
        compile_loss(loss, cudagraphs=True)


def test_what_torch_has_by_default_may_be_said():
    actor, critic, data = problem("normal")
    loss = KLPENPPOLoss(actor, critic, increment=1.0, decrement=1.0)
    said = {"fullgraph": True, "options": None, "mode": None, "recompile_limit": None}
    compiled = compile_loss(loss, backend="eager", **said)
    leaves = [*actor.parameters(), *critic.parameters()]
    assert_same(call(compiled, data, leaves), call(loss, data, leaves))
    with pytest.raises(ValueError, match=r"makes one graph .*; got fullgraph=False\. Leave it out"):
        compile_loss(loss, fullgraph=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="replays CUDA graphs: needs a device")
def test_cudagraph_replay_moves_beta():
    actor, critic, data = problem("normal")
    actor, critic, data = actor.cuda(), critic.cuda(), data.cuda()
    leaves = [*actor.parameters(), *critic.parameters()]
    loss, eager = (KLPENPPOLoss(actor, critic, dtarg=1e-6) for _ in range(2))
    compiled = compile_loss(loss, cudagraphs=True)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        assert_same(call(compiled, data, leaves), call(eager, data, leaves))
        assert loss.beta == eager.beta


class Louder(KLPENPPOLoss):
    """A loss that does more than ours."""

    def forward(self, tensordict):
        return super().forward(tensordict).set("loss_more", torch.zeros(()))


def test_what_would_not_run_is_refused():
    actor, critic, _ = problem("normal")
    with pytest.raises(ValueError, match="this Louder has a forward of its own"):
        compile_loss(Louder(actor, critic))
    loss = KLPENPPOLoss(actor, critic)
    for register in (loss.register_forward_hook, loss.register_full_backward_hook):
        handle = register(print)
        with pytest.raises(ValueError, match="has hooks"):
            compile_loss(loss)
        handle.remove()
    compile_loss(loss)
    with pytest.raises(TypeError, match="takes a KLPENPPOLoss; got a OptimizedModule"):
        compile_loss(torch.compile(loss))
