"""What may change between calls is checked at every call; what code is, is not."""

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torch._dynamo.utils import counters
from torch.distributions import Categorical

from klppo_compile import KLPENPPOLoss, compile_loss
from klppo_compile.compiling import may_change

SCALE = 1.0


class Network(nn.Module):
    """Reads what a user might change later: an attribute, its class's, its module's."""

    boost = 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.gain = 1.0

    def forward(self, x):
        return self.linear(x) * self.gain * self.boost * SCALE


@pytest.fixture
def case():
    torch.manual_seed(0)
    network = Network()
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(network, ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"], ["action"], distribution_class=Categorical, return_log_prob=True
        ),
    )
    with torch.no_grad():
        data = actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))
    data["advantage"] = torch.randn(8, 1)
    loss = KLPENPPOLoss(actor, None, critic_coeff=0.0, beta_update="manual", functional=False)
    torch.compiler.reset()
    counters.clear()
    # Graphs are not what is tested: without Inductor they cost nothing.
    return loss, compile_loss(loss, backend="eager"), data, network


def graphs():
    return counters["stats"]["unique_graphs"]


def change_gain(network, monkeypatch):
    network.gain = 3.0


def change_class(network, monkeypatch):
    monkeypatch.setattr(Network, "boost", 3.0)


def change_module(network, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", 3.0)


def replace_layer(network, monkeypatch):
    network.linear = nn.Sequential(network.linear, nn.Tanh())


@pytest.mark.parametrize("change", [change_gain, change_class, change_module, replace_layer])
def test_a_change_to_a_network_is_seen(case, monkeypatch, change):
    loss, compiled, data, network = case
    before = compiled(data)["kl"]
    assert graphs() == 1
    change(network, monkeypatch)
    after = compiled(data)["kl"]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, loss(data)["kl"])


def test_settings_of_the_loss_are_seen(case):
    loss, compiled, data, _ = case
    assert compiled(data)["kl"].requires_grad is False
    loss.reduction = "none"
    assert compiled(data)["loss_objective"].shape == (8,)
    with torch.no_grad():
        assert not compiled(data)["loss_objective"].requires_grad


@pytest.mark.parametrize(
    ("name", "checked"),
    [
        ("self.reduction", True),
        ("G['__import_mine'].SCALE", True),
        ("G['__import_torch_utilities'].torch.inf", True),
        ("G['__import_tensordict_dot_nn_dot_utils']._skip_existing._mode", True),
        ("G['__import_torch_dot_nn_dot_modules_dot_module']._global_forward_hooks", True),
        ("G['__import_torch_dot_distributions'].Distribution._validate_args", True),
        ("G['__import_tensordict_dot__td'].torch.inf", False),
        ("G['__import_tensordict_dot__td'].TensorDict._is_locked", False),
        ("G['___unnamed_scope_1_c0']['SCALE']", True),
        ("G['___unnamed_scope_1_c0']['_tuple_new']", False),
        ("dict(G['__import_klppo_compile_dot_nodes'].Critic.__dict__)['__new__']", False),
    ],
)
def test_constants_of_code_go_unchecked_but_no_state(name, checked):
    (found,) = may_change([SimpleNamespace(name=name, guard_type="CONSTANT_MATCH")])
    assert found == checked


def test_tensordicts_cache_of_its_classes_recompiles_nothing(case, tmp_path):
    _, compiled, data, _ = case
    compiled(data)
    data.clone().memmap(tmp_path)
    compiled(data)
    assert graphs() == 1


def test_options_are_added_to_ours(case):
    loss, _, data, _ = case
    compiled = compile_loss(loss, options={"max_autotune": False}, dynamic=False)
    assert torch.isfinite(compiled(data)["loss_objective"])


@pytest.mark.parametrize("taken", [{"mode": "default"}, {"backend": "eager"}])
def test_cuda_graphs_choose_mode_and_backend(case, taken, monkeypatch):
    loss, *_ = case
    monkeypatch.setattr(loss, "_buffers", {**loss._buffers, "beta": OnCuda()})
    with pytest.raises(ValueError, match="chooses mode and backend; got"):
        compile_loss(loss, cudagraphs=True, **taken)


class OnCuda:
    device = torch.device("cuda")
