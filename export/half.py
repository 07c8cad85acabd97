"""Networks in float16: the weights of matrix products and convolutions, and nothing else.

What autocast does, as a property of the modules, so that weights are stored in half. Normalisers,
parameters such as a log-scale, and everything behind the head stay in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from klppo_compile.loss import KLPENPPOLoss

PRODUCTS = (nn.Linear, _ConvNd)
"""Modules whose weights are halved."""


def halve_networks(loss: KLPENPPOLoss) -> None:
    """Halve the products' weights of a loss in place, and cast what flows between modules."""
    for name in ("actor_network", "critic_network"):
        network = getattr(loss, name)
        if network is None:
            continue
        for path, module in network.named_modules():
            if isinstance(module, PRODUCTS):
                _halve(loss, name, path, module)
                module.register_forward_pre_hook(_to_half)
            elif list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
                module.register_forward_pre_hook(_to_float)


def _halve(loss: KLPENPPOLoss, network: str, path: str, module: nn.Module) -> None:
    if not loss.functional:
        module.half()
        return
    for prefix in ("", "target_"):
        params = dict(loss.named_children()).get(f"{prefix}{network}_params")
        if params is None:
            continue
        for parameter in ("weight", "bias"):
            key = (*path.split("."), parameter)
            if params.get(key, None) is not None:
                params.set(key, nn.Parameter(params.get(key).detach().half(), requires_grad=False))


def _to_half(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001  a hook's signature
    return tuple(_cast(x, torch.float32, torch.float16) for x in inputs)


def _to_float(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001  a hook's signature
    return tuple(_cast(x, torch.float16, torch.float32) for x in inputs)


def _cast(x: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return x.to(target) if isinstance(x, Tensor) and x.dtype == source else x
