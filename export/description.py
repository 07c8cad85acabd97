"""The manifest of a captured graph."""

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import torch

from klppo_compile import __version__
from klppo_compile.export.capture import Captured
from klppo_compile.export.graph import joined
from klppo_compile.export.head_probe import probed
from klppo_compile.export.manifest import InputSpec, Manifest, OutputSpec
from klppo_compile.export.preparation import Prepared
from klppo_compile.loss import KLPENPPOLoss


def describe(
    prepared: Prepared,
    captured: Captured,
    loss: KLPENPPOLoss,
    batch: int,
    dtype: str,
    tolerance: float,
) -> Manifest:
    """What the file says about itself."""
    graph, dims = prepared.graph, prepared.example.ndim
    lead = captured.examples[0].shape[:dims]
    inputs = tuple(
        InputSpec(e.name, joined(e.key), e.role, _dtype(x), tuple(x.shape[dims:]))
        for e, x in zip(graph.entries, captured.examples, strict=False)
    )
    outputs = []
    for name, x in zip(captured.outputs, captured.results, strict=True):
        rows = x.ndim >= dims and x.shape[:dims] == lead
        outputs.append(OutputSpec(name, rows, tuple(x.shape[dims:] if rows else x.shape)))
    head = getattr(graph, "recorder", None)
    return Manifest(
        graph=graph.kind,
        family=prepared.family,
        head=tuple(head.last) if head is not None else (),
        batch_dims=dims,
        batch=batch,
        inputs=inputs,
        outputs=tuple(outputs),
        scalars={name: float(x) for name, x in graph.scalars().items()},
        settings=settings_of(loss) | distribution_of(prepared, captured, loss)
        if graph.kind == "loss"
        else {},
        dtype=dtype,
        opset=0,
        tolerance=tolerance,
        parameters_sha256=parameters_hash(loss),
        versions=versions(),
        notes=prepared.notes,
    )


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def settings_of(loss: KLPENPPOLoss) -> dict[str, Any]:
    """What of the hyper-parameters is part of the graph."""
    norm = loss.advantage_norm
    return {
        "reduction": loss.reduction,
        "loss_critic_type": loss.loss_critic_type,
        "entropy_bonus": loss.entropy_bonus,
        "explained_variance": loss.log_explained_variance,
        "normalize_advantage": loss.normalize_advantage,
        "normalize_advantage_exclude_dims": list(loss.normalize_advantage_exclude_dims),
        "advantage_divisor": 1.0 if norm is None else float(torch.as_tensor(norm.scale())),
        "delay_actor": loss.delay_actor,
    }


def distribution_of(
    prepared: Prepared, captured: Captured, loss: KLPENPPOLoss
) -> dict[str, list[float]]:
    """What tells its distribution from another of its family, see `head_probe`."""
    dims, head = prepared.example.ndim, loss.actor_head
    head.follow(loss.actor_network)
    computed = dict(zip(captured.outputs, captured.results, strict=True))
    rows = {}
    for name, key in zip(head.names, head.in_keys, strict=True):
        x = computed.get(joined(key), prepared.example.get(key, None))
        if x is not None:
            rows[name] = x.flatten(0, dims - 1)[0]
    return {"distribution": probed(head, rows)}


def parameters_hash(loss: KLPENPPOLoss) -> str:
    """SHA-256 over names, types, shapes and bytes of the loss's state, in the names' order."""
    digest = hashlib.sha256()
    for name, value in sorted(loss.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        x = value.detach().cpu().contiguous()
        digest.update(f"{name} {_dtype(x)} {list(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of what wrote the file."""
    names = ("torch", "tensordict", "onnxscript")
    found = {"klppo-compile": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found
