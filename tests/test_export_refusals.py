"""What can't be exported is refused by name, and nothing is written."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from tensordict import TensorDict
from torch import distributions as td
from torch import nn
from torchrl.objectives import KLPENPPOLoss as TorchrlLoss

from klppo_compile import KLPENPPOLoss
from klppo_compile.exit_codes import (
    BadInputError,
    CannotError,
    FailedError,
    MissingRequirementError,
)
from klppo_compile.export import export_loss
from klppo_compile.export.capture import capture, traceable
from klppo_compile.export.cases import Case
from klppo_compile.export.gamma import digamma, lgamma
from klppo_compile.export.onnx_file import write_out
from klppo_compile.export.parity import Parity, compare
from klppo_compile.export.preparation import prepare
from klppo_compile.export.runtime import open_session
from klppo_compile.export.runtime_errors import of_a_fresh_graph
from klppo_compile.export.structure import check_structure, lint
from tests import builders
from tests.builders import CASES, actor_of, critic_of, pair_head, problem
from tests.export_cases import ROWS, collected, loss_of, loss_with


class Reshapes(nn.Module):
    """Works for multiples of 8 rows only."""

    def forward(self, x):
        return x.reshape(8, -1).reshape(-1, 4)


class FixesRows(nn.Module):
    """Works for the example's size only."""

    def forward(self, x):
        return x.reshape(ROWS, 4)


class BranchesOnRows(nn.Module):
    """Another function for few rows."""

    def forward(self, x):
        return 2 * x if x.shape[0] > 5 else x


class BranchesOnValues(nn.Module):
    """Another function for other data."""

    def forward(self, x):
        return x if x.mean() > 0 else -x


class Counts(nn.Module):
    """Changes a buffer in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class Assigns(Counts):
    """Puts another tensor in a buffer's place."""

    def forward(self, x):
        self.mean = self.mean + x.detach().mean(0)
        return x - self.mean


class Indexes(nn.Module):
    """Needs an operator that waits for the device."""

    def forward(self, x):
        return x * (x.nonzero().shape[0] > 0)


class Draws(nn.Module):
    """Random numbers."""

    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


class InBfloat16(nn.Linear):
    """A layer of 16 bits between float32."""

    def forward(self, x):
        w, b = self.weight.bfloat16(), self.bias.bfloat16()
        return nn.functional.linear(x.bfloat16(), w, b).float()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Reshapes(), r"actor_network.*\(Reshapes\) fixes the batch size.*--batch N"),
        (FixesRows(), r"actor_network.*\(FixesRows\) fixes the batch size"),
        (BranchesOnRows(), r"actor_network.*\(BranchesOnRows\) fixes the batch size"),
        (BranchesOnValues(), r"actor_network.*\(BranchesOnValues\) can't be traced"),
        (Counts(), r"this one changes actor_network.*mean, and a graph would drop that"),
        (Assigns(), r"this one changes actor_network.*mean, and a graph would drop that"),
        (nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm that takes the batch's own"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_a_network_that_would_be_exported_wrong_is_named(layer, reason, tmp_path, capfd):
    loss, data = loss_with(layer, functional=False)
    with pytest.raises(CannotError, match=reason):
        export_loss(loss, data, tmp_path / "loss.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("layer", "operator"), [(Indexes(), "NonZero"), (Draws(), "Random")])
def test_an_operator_that_providers_lack_fails_the_lint(layer, operator, tmp_path):
    loss, data = loss_with(layer, entropy_bonus=False)
    with pytest.raises(FailedError, match=f"must pass the lint; the operator {operator}"):
        export_loss(loss, data, tmp_path / "loss.onnx", graph="policy")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_runtime_lacks_in_a_type_is_named(tmp_path):
    loss, data = loss_with(InBfloat16(4, 4))
    with pytest.raises(CannotError, match=r"no implementation of Gemm in bfloat16.*--format pt2"):
        export_loss(loss, data, tmp_path / "loss.onnx")
    assert list(tmp_path.iterdir()) == []
    assert export_loss(loss, data, tmp_path / "loss.pt2", format="pt2").parity.needed < 1e-5
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(CannotError, match=r"it must be of operators .* no implementation of Tanh"):
        open_session(model(nodes).SerializeToString(), "cpu", "it")
    refusal = of_a_fresh_graph(Exception("INVALID_GRAPH : This is an invalid model."), [])
    assert "one that ONNX Runtime can load; got INVALID_GRAPH" in str(refusal)
    assert isinstance(refusal, CannotError)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StudentT", "no random numbers; StudentT has no closed-form KL"),
        ("mixture", "no closed-form KL and entropy"),
        ("MultivariateNormal", r"the policy's distribution \(MultivariateNormal\) can't be traced"),
    ],
)
def test_a_family_without_a_graph_is_named(name, reason, tmp_path):
    loss, data = loss_of(name)
    with pytest.raises(CannotError, match=reason):
        export_loss(loss, data, tmp_path / "loss.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_family_whose_formulas_need_other_operators_is_named(tmp_path):
    gumbel = builders.Case("Gumbel", builders.event(td.Gumbel), ("loc", "scale"), pair_head)
    actor, critic = actor_of(gumbel), critic_of()
    data = collected(actor, critic, TensorDict({"observation": torch.randn(ROWS, 4)}, [ROWS]))
    with pytest.raises(CannotError, match=r"the loss of a Gumbel policy has no graph .* NonZero"):
        export_loss(KLPENPPOLoss(actor, critic), data, tmp_path / "loss.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"opset": 17}, "opset must be 18 to 21; got 17: torch's exporter writes"),
        ({"opset": 22}, "opset must be 18 to 21; got 22: the CUDA provider"),
        ({"format": "tflite"}, "format is one of onnx, pt2, aoti; got 'tflite'"),
        ({"graph": "actor"}, "graph is one of loss, policy, critic; got 'actor'"),
        ({"dtype": "bfloat16"}, "dtype is one of float32, float16; got 'bfloat16'"),
    ],
)
def test_bad_arguments_are_refused(arguments, reason, tmp_path):
    loss, data = loss_of("Categorical")
    with pytest.raises(BadInputError, match=reason):
        export_loss(loss, data, tmp_path / "loss.onnx", **arguments)


def test_without_onnxscript_the_extra_is_named(tmp_path, monkeypatch):
    loss, data = loss_of("Categorical")
    monkeypatch.setattr("klppo_compile.export.exporting.find_spec", lambda _: None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'klppo-compile\[export\]'"):
        export_loss(loss, data, tmp_path / "loss.onnx")


def test_bad_losses_examples_and_paths_are_refused(tmp_path):
    loss, data = loss_of("Categorical")
    actor, critic, _ = problem("Categorical")
    path = tmp_path / "loss.onnx"
    for wrong, example, out, reason in (
        (actor, data, path, "got ProbabilisticTensorDictSequential"),
        (TorchrlLoss(actor, critic), data, path, "TorchRL's own branches on kl.mean"),
        (loss, data.to_dict(), path, "an example is a TensorDict"),
        (loss, data[:0], path, r"must have rows; got the batch size \[0\]"),
        (loss, data.exclude("logits"), path, "lacks 'logits'"),
        (loss, data.to("meta"), path, "'observation' is on the meta device"),
        (loss, data, tmp_path, "it is a folder"),
        (loss, data, Path("/dev/null"), "it is no file"),
        (loss, data, tmp_path / "none" / "loss.onnx", "no writable folder"),
    ):
        with pytest.raises(BadInputError, match=reason):
            export_loss(wrong, example, out)
    with pytest.raises(BadInputError, match="needs a critic"):
        export_loss(KLPENPPOLoss(actor, None), data, path, graph="critic")
    with pytest.raises(CannotError, match=r"is float64\. Use loss\.float\(\)"):
        export_loss(KLPENPPOLoss(actor.double(), critic.double()), data, path)
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_network_of_a_functional_loss_is_named(tmp_path):
    loss, data = loss_with(torch.compile(nn.Linear(4, 4), backend="eager"))
    with pytest.raises(CannotError, match=r"actor_network\S+ is one. .* functional=False"):
        export_loss(loss, data, tmp_path / "loss.onnx")
    with pytest.raises(BadInputError, match=r"Give the loss that torch\.compile was called"):
        export_loss(torch.compile(loss), data, tmp_path / "loss.onnx")


def test_an_action_of_several_keys_is_refused(tmp_path):
    loss, data = loss_of("Categorical")
    loss.set_keys(action=["steer", "gas"])
    with pytest.raises(CannotError, match="an action of several keys can't be exported yet"):
        export_loss(loss, data, tmp_path / "loss.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_observation_of_an_outputs_name_is_refused():
    actor, critic = actor_of(CASES["Categorical"], ["kl"]), critic_of(["kl"])
    data = collected(actor, critic, TensorDict({"kl": torch.randn(ROWS, 4)}, batch_size=[ROWS]))
    prepared = prepare(KLPENPPOLoss(actor, critic), data, "loss")
    with pytest.raises(CannotError, match="'kl' is there twice"):
        capture(prepared.graph, data, 0)


def test_what_tracing_switches_off_comes_back():
    before = torch.distributions.Distribution._validate_args, torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), traceable():
        raise ZeroDivisionError
    assert (torch.distributions.Distribution._validate_args, torch.is_grad_enabled()) == before


# ---- the check itself


def parity_of(wanted, got, graph):
    parity = Parity(1e-5)
    compare(parity, Case("one", {}, {"beta": 1.0, "dtarg": 0.01}), wanted, got, graph)
    return parity


@pytest.fixture
def graph():
    loss, data = loss_of("Categorical")
    return prepare(loss, data, "loss").graph


def outputs(**changes):
    found = {"mean_kl": 0.02, "beta_next": 2.0, "kl": [[0.01], [0.03]], "ratio": [1.0, 1.1]}
    return {k: torch.tensor(v) for k, v in {**found, **changes}.items()}


def test_a_wrong_output_is_named_with_its_row_and_both_values(graph):
    wanted, got = outputs(), {k: x.numpy() for k, x in outputs(ratio=[1.0, 1.2]).items()}
    with pytest.raises(
        FailedError, match=r"its ratio at row \[1\] is 1.2\d* where eager gives 1.1"
    ):
        parity_of(wanted, got, graph).require()
    assert parity_of(wanted, got, graph).needed == pytest.approx(0.1 / 1.1, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_only_one_side_has_never_passes(value, graph):
    wanted, got = outputs(), {k: x.numpy() for k, x in outputs(ratio=[1.0, value]).items()}
    assert parity_of(wanted, got, graph).needed == np.inf
    assert parity_of(outputs(ratio=[1.0, value]), got, graph).needed == 0.0


def test_beta_is_compared_exactly_but_for_a_kl_at_the_threshold(graph):
    wanted, got = outputs(), {k: x.numpy() for k, x in outputs(beta_next=1.0).items()}
    assert parity_of(wanted, got, graph).errors()["beta_next"] == np.inf
    edge = outputs(mean_kl=0.015)
    got = {k: x.numpy() for k, x in outputs(mean_kl=0.015, beta_next=1.0).items()}
    assert parity_of(edge, got, graph).near_threshold == ["one"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"largest_kl": 0.0}, "every KL of the cases is 0"),
        ({"smallest_beta": 0.0}, "beta is 0"),
        ({"branches": {"kept"}}, "beta was only kept"),
        ({"seen": {"ratio": (1.0, 1.0)}}, "ratio is the same in every case"),
    ],
)
def test_a_check_that_could_not_fail_fails(changes, reason, graph):
    good = {"largest_kl": 0.1, "smallest_beta": 0.5, "branches": {"raised", "kept", "lowered"}}
    wanted = outputs()
    parity = parity_of(wanted, {k: x.numpy() for k, x in wanted.items()}, graph)
    for name, value in good.items():
        setattr(parity, name, value)
    parity.require()
    for name, value in changes.items():
        setattr(parity, name, value)
    with pytest.raises(FailedError, match=reason):
        parity.require()


# ---- graphs made by hand


def model(nodes, **options):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    graph = helper.make_graph(nodes, "g", [x], [y], **options)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("operator", ["NonZero", "ScatterND", "Loop", "If", "RandomNormalLike"])
def test_the_lint_refuses_operators(operator):
    assert operator in lint(model([helper.make_node(operator, ["x"], ["y"])]))[0]
    assert lint(model([helper.make_node("Abs", ["x"], ["y"], domain="custom")]))
    assert lint(model([helper.make_node("Abs", ["x"], ["y"])])) == []


def test_weights_in_other_files_are_refused():
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    with pytest.raises(BadInputError, match="names other files"):
        check_structure(model([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight]))


def test_a_choice_between_truth_values_is_written_out():
    nodes = [
        helper.make_node("Greater", ["x", "x"], ["a"]),
        helper.make_node("Not", ["a"], ["b"]),
        helper.make_node("Where", ["a", "a", "b"], ["c"], name="choice"),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes)
    write_out(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert "Where" not in {node.op_type for node in proto.graph.node}


def test_a_sigmoid_keeps_the_digits_of_small_values():
    proto = model([helper.make_node("Sigmoid", ["x"], ["y"], name="s")])
    write_out(proto)
    onnx.checker.check_model(proto, full_check=True)
    x = np.linspace(-80, 20, 1001).astype(np.float32)
    opened = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = opened.run(None, {"x": x})
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-6)


def test_log_gamma_and_digamma_are_those_of_torch():
    x = torch.logspace(-3, 5, 400, dtype=torch.float64)
    torch.testing.assert_close(lgamma(x), torch.lgamma(x), rtol=1e-12, atol=2e-12)
    torch.testing.assert_close(digamma(x), torch.digamma(x), rtol=1e-12, atol=2e-12)
    assert lgamma(torch.tensor([-0.5, 0.0])).isnan().all()
