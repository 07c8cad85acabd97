"""`compile_loss`: the whole loss module under torch.compile, one graph forward and one backward."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from tensordict import TensorDictBase

from klppo_compile.loss import KLPENPPOLoss

CompiledLoss = Callable[[TensorDictBase], TensorDictBase]

# A tenth of a softmax loss's time on a CPU, a twenty-fifth of a Gaussian's; and one rounding less.
FUSED_MULTIPLY_ADD = {"cpp.enable_floating_point_contract_flag": "fast"}


def compile_loss(loss: KLPENPPOLoss, *, cudagraphs: bool = False, **options: Any) -> CompiledLoss:
    """Compile a loss into one graph forward and one backward.

    Beta, the coefficients and (after its second size) the batch size move without a recompilation.
    Each call has graphs of its own, so losses of any number and architecture live in one process.
    Whether beta moves is decided outside the graph: a recomputation inside a backward (activation
    checkpointing) leaves it alone.

    Args:
        loss: the module. Its parameters and buffers stay where they are: train, save and schedule
            it as before.
        cudagraphs: replay the graphs as CUDA graphs (`mode="reduce-overhead"`). Unproven: no device
            has run it yet.
        **options: further arguments of `torch.compile`.

    Returns:
        A callable from tensordict to tensordict, like the loss.

    Raises:
        ValueError: `cudagraphs` without CUDA parameters, or with a `mode` of your own.
    """
    if cudagraphs:
        device = loss.beta.device
        if device.type != "cuda":
            raise ValueError(
                f"cudagraphs=True needs a loss on a CUDA device; this one is on {device}. Move it "
                "with loss.to('cuda'), or compile without cudagraphs."
            )
        if "mode" in options:
            raise ValueError(
                f"cudagraphs=True is mode='reduce-overhead'; got mode={options['mode']!r} as well."
            )
        options["mode"] = "reduce-overhead"
    elif loss.beta.device.type == "cpu" and not {"mode", "options", "backend"} & options.keys():
        options["options"] = FUSED_MULTIPLY_ADD
    if _isolates():
        options.setdefault("isolate_recompiles", True)
    graph = torch.compile(loss.run, fullgraph=True, **options)

    def compiled(tensordict: TensorDictBase) -> TensorDictBase:
        beta = loss.used_betas.of(tensordict, loss.beta)
        out: TensorDictBase = graph(tensordict, loss.moves_beta(), beta)
        return out

    return compiled


def _isolates() -> bool:
    """Whether this torch can give a compilation graphs of its own (before, all share a limit)."""
    return "isolate_recompiles" in signature(torch.compile).parameters
