"""Where the loss is computed, the torch text or the Triton kernels, and why.

Triton loads only when it is chosen.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile.distributions import FAMILIES
from klppo_compile.eager import Static
from klppo_compile.records import Minibatch, PolicyHead, Softmax
from klppo_compile.vocabulary import exporting

BACKENDS = ("auto", "torch", "triton")
INSTALLED = importlib.util.find_spec("triton") is not None  # not loaded
MOST_ELEMENTS, MOST_ACTIONS = 512, 262_144
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Choice(NamedTuple):
    """A backend, "torch" or "triton", and the reason in words."""

    backend: str
    reason: str


def choose(batch: Minibatch, backend: str = "auto") -> Choice:
    """Where a minibatch is computed.

    "auto" takes Triton for CUDA and ROCm tensors of families that the kernels serve.

    Raises:
        ValueError: no such backend, or "triton" where it can't serve.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"backend must be one of {', '.join(map(repr, BACKENDS))}; got {backend!r}. "
            'Use "auto" unless you compare them.'
        )
    if backend == "torch":
        return Choice("torch", "it was asked for")
    device = batch.old_log_prob.device.type
    if backend == "auto" and device != "cuda":
        return Choice("torch", f"the kernels are for GPUs, the data are on {device}")
    why_not = next(obstacles(batch), None)
    if why_not is None:
        return Choice("triton", "it was asked for" if backend == "triton" else "one GPU kernel")
    if backend == "triton":
        raise ValueError(f'backend="triton" can\'t serve this loss: {why_not}. Use backend="auto".')
    return Choice("torch", why_not)


def obstacles(batch: Minibatch) -> Iterator[str]:
    """Why the kernels can't serve a minibatch: none if they can."""
    if exporting():
        yield "an exported graph holds the mathematics, not kernels"
    if not INSTALLED:
        yield "Triton is not installed (pip install 'klppo-compile[triton]', on Linux)"
    device = batch.old_log_prob.device
    if device.type == "cpu" and not interpreted():
        yield "the data are on cpu, where it runs only if TRITON_INTERPRET=1 is set from the start"
    elif device.type not in {"cpu", "cuda"}:
        yield f"the kernels are for GPUs, the data are on {device}"
    for head in batch.policy:
        yield from _head_obstacles(head)
    tensors = _tensors(batch)
    extra = [x for h in batch.policy for x in (h.log_volume, h.noise, h.weights)]
    for x in (*tensors, *extra):
        if x is not None and x.device != device:
            yield f"the data are on {device} and on {x.device}"
    for x in tensors:
        if (x.is_floating_point() or x.is_complex()) and x.dtype not in DTYPES:
            yield f"{x.dtype} is computed by PyTorch; the kernels compute in float32"


def _head_obstacles(head: PolicyHead) -> Iterator[str]:
    family, size = head.family, head.new[0].shape[-1:].numel()
    if FAMILIES.get(family.name) is not family:
        yield f"the family {family.name!r} has no text of ours"
    elif "triton" not in family.backends:
        yield f"the family {family.name!r} runs on {', '.join(family.backends)}"
    elif isinstance(family, Softmax) and not 1 <= size <= MOST_ACTIONS:
        yield f"the kernels take up to {MOST_ACTIONS} actions; got {size}"
    elif not isinstance(family, Softmax) and not 1 <= size <= MOST_ELEMENTS:
        yield f"the kernels take up to {MOST_ELEMENTS} elements of an action; got {size}"


def _tensors(batch: Minibatch) -> list[Tensor]:
    rows = (batch.old_log_prob, batch.advantage, batch.value, batch.value_target, batch.old_value)
    masks = (batch.proximal_log_prob, batch.mask, batch.value_mask)
    heads = [x for h in batch.policy for x in (h.action, *h.old, *h.new)]
    return [x for x in (*rows, *masks, *heads) if x is not None]


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_loss(
    batch: Minibatch, numbers: Sequence[Tensor | float], static: Static
) -> dict[str, Tensor]:
    """`nodes.loss` by the kernels, and the next beta.

    `numbers`: beta, critic_coeff, clip radius, log of the ratio's cap, entropy_coeff, dtarg,
    increment, decrement, beta_min, beta_max; floats, or `[]` tensors on the data's device.
    """
    from klppo_compile.kernels import operators

    return operators.loss(batch, numbers, static)
