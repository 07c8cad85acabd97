"""Copies of a loss that can be traced, after what can't be exported is refused."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.polynomial.hermite_e import hermegauss
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Distribution, Independent

from klppo_compile.coefficients import QUADRATURE_NODES
from klppo_compile.exit_codes import BadInputError, CannotError
from klppo_compile.export.capture import frozen_copy, traceable
from klppo_compile.export.graph import GRAPHS, Graph, entries_of
from klppo_compile.export.half import halve_networks
from klppo_compile.export.parity import TOLERANCE
from klppo_compile.export.validation import DTYPES
from klppo_compile.inputs import read_minibatch
from klppo_compile.loss import KLPENPPOLoss
from klppo_compile.records import Rows
from klppo_compile.registry import registered_kl

OUT_OF_RANGE = (
    "every index in an example must be one that the networks have; got: {}. Mend or drop such rows."
)


@dataclass(frozen=True)
class Prepared:
    """A graph ready to be traced, and its reference in float32."""

    graph: Graph
    reference: Graph
    example: TensorDictBase
    notes: tuple[str, ...]
    family: str


def prepare(
    loss: KLPENPPOLoss, example: TensorDictBase, kind: str, dtype: str = "float32"
) -> Prepared:
    """Copies of the loss to trace and to compare with, after what can't be exported is refused."""
    if kind not in GRAPHS:
        raise BadInputError(f"a graph is one of {', '.join(GRAPHS)}; got {kind!r}.")
    if dtype not in TOLERANCE:
        raise BadInputError(f"a dtype is one of {', '.join(TOLERANCE)}; got {dtype!r}.")
    _refuse_loss(loss, kind)
    example = _usable_example(example)
    copied, changed = frozen_copy(loss)
    notes = []
    if changed:
        notes.append(f"exported in evaluation mode; in training mode were {', '.join(changed)}")
    family = _family(copied, example, kind, notes)
    reference = _graph(copied, kind, example)
    notes += _wide(reference, example)
    found = _outputs(reference, example)
    if found and kind == "loss":
        _require_numbers(reference, example, found)
    if dtype == "float32":
        return Prepared(reference, reference, example, tuple(notes), family)
    halved, _ = frozen_copy(copied)
    halve_networks(halved)
    notes.append("matrix products of the networks in float16, everything else in float32")
    return Prepared(_graph(halved, kind, example), reference, example, tuple(notes), family)


def _graph(loss: KLPENPPOLoss, kind: str, example: TensorDictBase) -> Graph:
    return GRAPHS[kind](loss, entries_of(loss, kind, example), example.ndim)


def _wide(graph: Graph, example: TensorDictBase) -> list[str]:
    """What is said of float64 arrays: a graph takes what the rollout holds, not less.

    Raises:
        BadInputError: a type that no rollout file and no runtime's array has.
    """
    kinds = {e.name: str(example[e.key].dtype).removeprefix("torch.") for e in graph.entries}
    odd = [f"{name!r} is {kind}" for name, kind in kinds.items() if kind not in DTYPES]
    if odd:
        raise BadInputError(
            f"an example's arrays are of {', '.join(DTYPES)}; {odd[0]}. Convert it, with .float()."
        )
    wide = [name for name, kind in kinds.items() if kind == "float64"]
    if not wide:
        return []
    return [f"float64 as in the example: {', '.join(wide)}; TensorRT has no float64"]


def _outputs(graph: Graph, example: TensorDictBase) -> dict[str, Tensor]:
    """What the graph gives for the example, by name; nothing where it can't be run.

    Raises:
        BadInputError: an index that a network hasn't.
    """
    entries = [example[entry.key] for entry in graph.entries]
    try:
        with traceable():
            found = graph(*entries, *graph.scalars().values())
    except IndexError as error:
        raise BadInputError(OUT_OF_RANGE.format(error)) from error
    except Exception:  # noqa: BLE001  whose fault it is, tracing tells
        return {}
    return dict(zip(graph.names, found, strict=True))


def _require_numbers(graph: Graph, example: TensorDictBase, found: dict[str, Tensor]) -> None:
    """Refuse NaN in a row that counts, and that none does; a masked row may hold anything."""
    if "valid" in found and not found["valid"].any():
        masks = " and ".join(repr(entry.key) for entry in graph.entries if entry.role == "mask")
        raise BadInputError(
            f"an example must have rows that count; {masks} leaves none. Give one of other rows."
        )
    if not found["nonfinite"]:
        return
    for entry in graph.entries:
        x = example[entry.key]
        rows = x.isnan().flatten(example.ndim).any(-1) if x.ndim > example.ndim else x.isnan()
        if rows.any():
            raise BadInputError(
                f"every row of an example that counts must hold numbers; {entry.key!r} has NaN in"
                f" row {int(rows.flatten().nonzero()[0])}. Drop such rows, or mask them."
            )


def hint_for(loss: Any) -> str:
    """What to do about an object that is no loss of ours, where that is known."""
    if type(loss).__module__.startswith("torchrl."):
        return " TorchRL's own branches on kl.mean(); ours, which doesn't, has its constructor."
    if hasattr(loss, "_orig_mod"):
        return " Give the loss that torch.compile was called with."
    return ""


def _refuse_loss(loss: Any, kind: str) -> None:
    if not isinstance(loss, KLPENPPOLoss):
        got = type(loss).__name__
        raise BadInputError(
            f"what is exported is a klppo_compile.KLPENPPOLoss; got {got}.{hint_for(loss)}"
        )
    if kind == "critic" and loss.critic_network is None:
        raise BadInputError("--graph critic needs a critic; this loss has none.")
    if isinstance(loss.tensor_keys.action, list) or isinstance(
        loss.tensor_keys.sample_log_prob, list
    ):
        raise CannotError("an action of several keys can't be exported yet; give it one key.")
    double = [name for name, p in loss.named_parameters() if p.dtype == torch.float64]
    if double:
        raise CannotError(
            f"the graph computes in float32; {double[0]} is float64. Use loss.float()."
        )
    _refuse_compiled(loss)
    norm = loss.advantage_norm
    if norm is not None and torch.as_tensor(norm.scale()).numel() != 1:
        raise CannotError(
            "advantage_norm must have one scale to be exported; this one has several."
        )


def _refuse_compiled(loss: KLPENPPOLoss) -> None:
    networks = {name: getattr(loss, name) for name in ("actor_network", "critic_network")}
    for name, network in networks.items():
        for path, module in () if network is None else network.named_modules():
            if loss.functional and hasattr(module, "_orig_mod"):
                raise CannotError(
                    "torch.export can't take the parameters of a compiled network apart;"
                    f" {name}.{path} is one. Make the loss with functional=False, or of the"
                    " network before torch.compile."
                )


def _usable_example(example: Any) -> TensorDictBase:
    if not isinstance(example, TensorDictBase):
        raise BadInputError(
            f"an example is a TensorDict with the loss's keys; got {type(example).__name__}."
        )
    if example.ndim == 0 or example.numel() == 0 or 0 in example.batch_size:
        raise BadInputError(
            f"an example must have rows; got the batch size {list(example.batch_size)}."
        )
    unreal = [key for key, x in example.items(True, True) if isinstance(x, Tensor) and x.is_meta]
    if unreal:
        raise BadInputError(
            f"an example must have values; its {unreal[0]!r} is on the meta device."
        )
    example = example.detach().cpu()
    return example if example.ndim <= 2 else example.reshape(-1)


def _family(loss: KLPENPPOLoss, example: TensorDictBase, kind: str, notes: list[str]) -> str:
    """The policy's family, after sampled estimates are refused or replaced."""
    if kind != "loss":
        missing = [e.key for e in entries_of(loss, kind, example) if example.get(e.key) is None]
        if missing:
            raise BadInputError(f"the example lacks {missing[0]!r}, which the network reads.")
        return getattr(loss.actor_head.kind, "__name__", "distribution")
    if loss.entropy_method == "sample":
        nodes, weights = hermegauss(QUADRATURE_NODES)
        for name, x in (("_nodes", nodes), ("_node_weights", weights / weights.sum())):
            loss.register_buffer(name, torch.tensor(x), persistent=False)
    try:
        with torch.no_grad():
            batch, _ = read_minibatch(loss, example)
    except IndexError as error:
        raise BadInputError(OUT_OF_RANGE.format(error)) from error
    except (KeyError, ValueError, RuntimeError) as error:
        text = str(error.args[0] if error.args else error).partition("\n")[0]
        given = ((e.key, example.get(e.key, None)) for e in entries_of(loss, kind, example))
        wide = [key for key, x in given if x is not None and x.dtype == torch.float64]
        text = text.rstrip(".")
        hint = f". {wide[0]!r} is float64: save it as float32" if wide and "dtype" in text else ""
        raise BadInputError(f"the example doesn't fit the loss: {text}{hint}.") from error
    head = batch.policy[0]
    if isinstance(head.family, Rows):
        distribution = loss.actor_head.read(loss.actor_head.parameters(example))
        assert isinstance(distribution, Distribution)
        return _closed_form(distribution, loss.entropy_bonus)
    if head.noise is not None:
        notes.append(
            f"the entropy of {head.family.name} is a quadrature of {QUADRATURE_NODES} Gauss-Hermite"
            " nodes, error below 4e-6, not a sample"
        )
    return head.family.name


def _closed_form(distribution: Distribution, entropy: bool) -> str:
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    name = type(base).__name__
    lacks = []
    if registered_kl(distribution, distribution) is None:
        lacks.append("KL")
    if entropy and type(base).entropy is Distribution.entropy:
        lacks.append("entropy")
    if lacks:
        raise CannotError(
            f"an exported loss has no random numbers; {name} has no closed-form"
            f" {' and '.join(lacks)}, which the loss estimates by sampling. Use a family that has"
            " them (Normal, TanhNormal, Categorical, Bernoulli)"
            + (", or entropy_bonus=False." if lacks == ["entropy"] else ".")
        )
    return name
