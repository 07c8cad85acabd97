"""Exported graphs against a float64 oracle, through ONNX Runtime directly."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from klppo_compile import KLPENPPOLoss
from klppo_compile.cli import run as main
from klppo_compile.exit_codes import BadInputError, ExitCode
from klppo_compile.export import export_loss
from klppo_compile.export.manifest import METADATA_KEY, Manifest, sha256, sidecar_path
from klppo_compile.export.structure import ELEMENTWISE, dimensions, lint
from tests.builders import CASES
from tests.export_cases import (
    categorical_loss,
    centred_loss,
    loss_of,
    loss_with,
    masked_rows_loss,
    nested_loss,
    oracle,
)

ORACLES = (
    "Categorical",
    "Independent(Normal)",
    "Independent(Bernoulli)",
    "MaskedCategorical",
    "multi-discrete",
)
EXTRA = {"Gamma": 3e-6, "TanhNormal": 4e-6}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """One file per case, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def get(name):
        if name not in made:
            loss, data = loss_of(name)
            done = export_loss(loss, data, folder / f"{len(made)}.onnx")
            made[name] = done, loss, data
        return made[name]

    return get


def session(path):
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def run(done, data, **scalars):
    """A file's outputs by name for the rows of a rollout."""
    opened = session(done.path)
    arrays = {s.name: data[tuple(s.key.split("."))].numpy() for s in done.manifest.inputs}
    numbers = {name: np.asarray(value, np.float32) for name, value in scalars.items()}
    names = [x.name for x in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {**arrays, **numbers}), strict=True))


def rows(data, count):
    return data[torch.arange(count) % len(data)]


@pytest.mark.parametrize("name", ORACLES)
def test_a_file_computes_what_the_definitions_say(name, exported):
    done, loss, data = exported(name)
    names = [k for k in CASES[name].names if k not in ("mask", "indices")]
    for count in (1, 2, 7, 256, 4096):
        batch = rows(data, count)
        out = run(done, batch)
        wanted = oracle(name, loss, batch, {k: out[k] for k in names}, 1.0)
        for key, value in wanted.items():
            np.testing.assert_allclose(out[key], value, rtol=2e-5, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("masks", [False, True])
def test_the_entropy_of_equal_rows_does_not_drift(masks, reduction, tmp_path):
    loss, data = masked_rows_loss() if masks else loss_of("Independent(Normal)")
    loss.reduction = reduction
    done = export_loss(loss, data, tmp_path / "equal.onnx")
    out = run(done, data[torch.zeros(65_536, dtype=torch.long)])
    entropy = out["entropy_rows"][0]
    np.testing.assert_allclose(out["entropy"], entropy, rtol=3e-7)
    if reduction != "none":
        total = -loss.entropy_coeff.item() * entropy * (65_536 if reduction == "sum" else 1)
        np.testing.assert_allclose(out["loss_entropy"], total, rtol=3e-7)


@pytest.mark.parametrize("name", EXTRA)
def test_other_families_are_checked_to_their_stated_error(name, exported):
    done, _, _ = exported(name)
    assert done.parity.needed < EXTRA[name]
    assert done.parity.branches == {"raised", "kept", "lowered"}
    if name == "TanhNormal":
        assert "quadrature of 64 Gauss-Hermite nodes" in done.manifest.notes[0]
    if name == "Gamma":
        assert "Stirling" in done.manifest.notes[0]


def test_beta_and_coefficients_are_optional_inputs(exported):
    done, _, data = exported("Categorical")
    opened = session(done.path)
    assert set(done.manifest.scalars) == {x.name for x in opened.get_overridable_initializers()}
    # A beta of exactly 1 is what a tracer folds away.
    assert done.manifest.scalars["beta"] == 1.0
    plain, other = run(done, data), run(done, data, beta=3.0, entropy_coeff=0.02, critic_coeff=0.5)
    shift = 2.0 * plain["mean_kl"]
    assert other["loss_objective"] - plain["loss_objective"] == pytest.approx(shift, rel=1e-4)
    assert other["loss_entropy"] == pytest.approx(2 * plain["loss_entropy"], rel=1e-6)
    assert other["loss_critic"] == pytest.approx(0.5 * plain["loss_critic"], rel=1e-6)
    kl = float(plain["mean_kl"])
    assert run(done, data, beta=3.0, dtarg=kl / 2)["beta_next"] == 6.0
    assert run(done, data, beta=3.0, dtarg=kl)["beta_next"] == 3.0
    assert run(done, data, beta=3.0, dtarg=kl * 2)["beta_next"] == 1.5


def test_the_loss_itself_gives_the_same_numbers_and_is_left_alone(exported):
    done, loss, data = exported("Independent(Normal)")
    assert loss.training
    out, wanted = run(done, data), loss.eval()(data)
    loss.train()
    for key, value in wanted.items():
        np.testing.assert_allclose(out[key], value.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_manifest_is_in_the_file_and_beside_it(exported):
    done, _, _ = exported("Categorical")
    content = done.path.read_bytes()
    text = session(done.path).get_modelmeta().custom_metadata_map[METADATA_KEY]
    manifest = Manifest.from_json(text, "it")
    beside = json.loads(sidecar_path(done.path).read_text())
    assert manifest == done.manifest
    assert json.loads(text) == beside["manifest"]
    assert beside["sha256"] == sha256(content) == done.sha256
    assert beside["tolerance_met"] == done.parity.needed < manifest.tolerance == 1e-5
    assert (manifest.family, manifest.head, manifest.opset) == ("categorical", ("logits",), 20)
    assert {s.key: s.name for s in manifest.inputs}["logits"] == "old_logits"
    assert manifest.settings["reduction"] == "mean"
    assert sorted(p.name for p in done.path.parent.glob(f"{done.path.name}*")) == [
        done.path.name,
        f"{done.path.name}.json",
    ]


def test_exporting_twice_gives_the_same_bytes_without_a_trace_of_the_machine(exported, tmp_path):
    done, loss, data = exported("Categorical")
    again = export_loss(loss, data, tmp_path / "again.onnx", checked=False)
    content = done.path.read_bytes()
    assert again.path.read_bytes() == content
    assert json.loads(sidecar_path(again.path).read_text())["tolerance_met"] is None
    for trace in (b"site-packages", b".py", b"klppo_compile/", str(tmp_path).encode()):
        assert trace not in content
    proto = onnx.load_model_from_string(content)
    assert not any(n.doc_string or n.metadata_props for n in proto.graph.node)
    assert lint(proto) == []


def test_nested_keys_and_a_normalised_advantage(tmp_path):
    loss, data = nested_loss(normalize_advantage=True, clip_value=0.2)
    done = export_loss(loss, data, tmp_path / "nested.onnx")
    names = [s.name for s in done.manifest.inputs]
    assert names[:2] == ["agents.position", "agents.speed"]
    assert "state_value" in names
    for count in (1, 2, 48):
        out, wanted = run(done, data[:count]), loss.eval()(data[:count])
        for key, value in wanted.items():
            np.testing.assert_allclose(out[key], value.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_a_graph_takes_the_float64_that_a_rollout_holds(tmp_path):
    """Where float32 would have no digits left: observations near a million, standardised inside."""
    loss, data = centred_loss()
    done = export_loss(loss, data, tmp_path / "wide.onnx")
    kinds = {s.name: s.dtype for s in done.manifest.inputs}
    assert (kinds["observation"], kinds["advantage"]) == ("float64", "float32")
    assert done.notes == ("float64 as in the example: observation; TensorRT has no float64",)
    out, wanted = run(done, data), loss.eval()(data)
    np.testing.assert_allclose(out["kl"], wanted["kl"].detach().numpy(), rtol=1e-5, atol=1e-8)
    data.memmap(tmp_path / "rollout")
    given = [str(done.path), "--data", str(tmp_path / "rollout")]
    for command in (["evaluate", *given], ["check", *given], ["compare", given[0], *given]):
        assert main(command) == ExitCode.GOOD
    plain, data = loss_of("Categorical")
    data["observation"] = data["observation"].double()
    with pytest.raises(BadInputError, match=r"'observation' is float64: save it as float32\.$"):
        export_loss(plain, data, tmp_path / "narrow.onnx")
    data["observation"], data["advantage"] = data["observation"].float(), data["advantage"].half()
    data["value_target"] = data["value_target"].bfloat16()
    with pytest.raises(BadInputError, match="'value_target' is bfloat16"):
        export_loss(plain, data, tmp_path / "narrow.onnx")


def test_masked_rows_may_hold_anything(tmp_path):
    loss, data = masked_rows_loss(normalize_advantage=True)
    done = export_loss(loss, data, tmp_path / "masked.onnx")
    out, wanted = run(done, data), loss.eval()(data)
    assert done.manifest.inputs[-1].name == "collector.mask"
    assert (out["valid"] == data["collector", "mask"].numpy()).all()
    for key in ("loss_objective", "loss_critic", "loss_entropy"):
        assert out[key] == pytest.approx(float(wanted[key].detach()), rel=1e-5)


def test_a_rollout_of_batch_and_time(tmp_path):
    loss, data = loss_of("Categorical", reduction="sum")
    data = data.reshape(6, 8)
    done = export_loss(loss, data, tmp_path / "bt.onnx")
    inputs = {x.name: x.shape for x in session(done.path).get_inputs()}
    assert inputs["observation"] == ["batch", "time", 4]
    for part in (data, data[:1], data[:, :1], data[:5, :3]):
        out, wanted = run(done, part), loss.eval()(part)
        np.testing.assert_allclose(out["kl"], wanted["kl"].numpy(), rtol=2e-5, atol=1e-7)
        objective = float(wanted["loss_objective"].detach())
        assert out["loss_objective"] == pytest.approx(objective, rel=1e-5)


def test_a_fixed_batch_of_sequences_of_any_length(tmp_path):
    loss, data = loss_of("Categorical")
    data = data.reshape(6, 8)
    done = export_loss(loss, data, tmp_path / "bt.onnx", batch=3)
    assert session(done.path).get_inputs()[0].shape == [3, "time", 4]
    for part in (data[:3], data[:3, :1]):
        out, wanted = run(done, part), loss.eval()(part)
        np.testing.assert_allclose(out["kl"], wanted["kl"].numpy(), rtol=2e-5, atol=1e-7)


def test_a_compiled_network_is_exported_as_what_it_is(tmp_path):
    network = torch.compile(torch.nn.Linear(4, 4), backend="eager")
    loss, data = loss_with(network, functional=False)
    done = export_loss(loss, data, tmp_path / "loss.onnx")
    with torch.no_grad():
        wanted = loss.eval()(data)
    np.testing.assert_allclose(run(done, data)["kl"], wanted["kl"], rtol=2e-5, atol=1e-7)


def test_a_fixed_batch_and_batch_norm(tmp_path):
    """A BatchNorm in training mode is exported with its running statistics, and that is said."""
    norm = torch.nn.BatchNorm1d(4)
    loss, data = loss_with(norm, functional=False)
    loss.actor_network.train()
    done = export_loss(loss, data, tmp_path / "norm.onnx", batch=16)
    assert "BatchNorm1d" in done.notes[0]
    assert norm.training
    assert session(done.path).get_inputs()[0].shape == [16, 4]
    loss.actor_network.eval()
    out = run(done, data[:16])
    wanted = loss.eval()(data[:16])
    np.testing.assert_allclose(out["kl"], wanted["kl"].detach().numpy(), rtol=2e-5, atol=1e-7)


def test_float16_networks(tmp_path):
    loss, data = loss_of("Categorical")
    done = export_loss(loss, data, tmp_path / "half.onnx", dtype="float16", opset=18)
    proto = onnx.load_model_from_string(done.path.read_bytes())
    kinds = {t.data_type for t in proto.graph.initializer if len(t.dims) == 2}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert proto.opset_import[0].version == 18
    assert 1e-5 < done.parity.needed < done.manifest.tolerance == 2e-2
    assert next(loss.parameters()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_policy_and_critic_alone(kind, tmp_path):
    loss, data = loss_of("Categorical")
    done = export_loss(loss, data, tmp_path / "part.onnx", graph=kind, opset=21)
    out = run(done, data)
    with torch.no_grad():
        if kind == "policy":
            wanted = loss.get_stateful_net("actor_network")(data.select("observation"))["logits"]
            assert (out["action"] == out["logits"].argmax(-1)).all()
            np.testing.assert_allclose(out["logits"], wanted.numpy(), rtol=1e-5, atol=1e-6)
        else:
            wanted = loss.get_stateful_net("critic_network")(data.select("observation"))
            value = wanted["state_value"].numpy()
            np.testing.assert_allclose(out["state_value"], value, rtol=1e-5, atol=1e-6)


def test_a_delayed_actor_needs_no_old_parameters(tmp_path):
    loss, data = loss_of("Categorical", delay_actor=True)
    with pytest.warns(UserWarning, match="nothing updates"):
        wanted = loss.eval()(data)
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    done = export_loss(loss, data, tmp_path / "delayed.onnx")
    assert "old_logits" not in [s.name for s in done.manifest.inputs]
    assert float(wanted["kl"].max()) == 0.0 < done.parity.largest_kl


def test_a_pt2_package_of_the_same_graph(tmp_path):
    loss, data = categorical_loss()
    done = export_loss(loss, data, tmp_path / "loss.pt2", format="pt2")
    assert done.parity.needed < 1e-6
    program = torch.export.load(done.path).module()
    arrays = [data[s.key] for s in done.manifest.inputs]
    numbers = [torch.tensor(x) for x in done.manifest.scalars.values()]
    found = dict(zip(done.manifest.output_names(), program(*arrays, *numbers), strict=True))
    wanted = loss.eval()(data)["loss_objective"]
    torch.testing.assert_close(found["loss_objective"], wanted.detach())
    assert b"site-packages" not in done.path.read_bytes()


def test_packages_come_with_a_warning_and_run_nowhere_by_themselves(tmp_path, capfd):
    """AOTInductor compiles the smallest graph, the critic's."""
    factory, out = "tests.export_cases:categorical_loss", tmp_path / "critic.pt2"
    arguments = ["export", factory, "--graph", "critic", "--format", "aoti", "--out", str(out)]
    assert main(arguments) == ExitCode.GOOD
    output = capfd.readouterr()
    assert "a package (aoti) is code: whoever loads it runs it" in output.err
    assert "compiled for the processor" in output.out
    assert "Checked: every output is within" in output.out
    loss, data = categorical_loss()
    (value,) = torch._inductor.aoti_load_package(str(out))(data["observation"][:7])
    critic = loss.get_stateful_net("critic_network")
    torch.testing.assert_close(value, critic(data[:7].select("observation"))["state_value"])
    assert main(["inspect", str(out)]) == ExitCode.GOOD
    for command in ("check", "evaluate"):
        assert main([command, str(out), "--data", "x"]) == ExitCode.BAD_INPUT
        assert "a package of torch, which is code" in capfd.readouterr().err


def test_axes_of_one_are_taken_out_of_what_is_elementwise(exported):
    """Every elementwise operator of a categorical loss sees [batch, actions] or [batch]."""
    done, _, _ = exported("Categorical")
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(done.path.read_bytes()))
    shapes = {x.name: dimensions(x) for x in graph.graph.value_info}
    found = [
        shapes[node.output[0]]
        for node in graph.graph.node
        if node.op_type in ELEMENTWISE.split() and node.output[0] in shapes
    ]
    assert ["batch", 5] in found
    assert not [shape for shape in found if 1 in shape and len(shape) > 1]


def test_export_loss_is_reached_without_loading_torch_first():
    import klppo_compile.export as room

    assert room.export_loss is export_loss
    with pytest.raises(AttributeError, match="no attribute 'export_los'"):
        _ = room.export_los
    assert isinstance(categorical_loss()[0], KLPENPPOLoss)
