"""klppo-compile: the KL-penalty PPO loss as a compiled, exportable artefact.

Names load when they are first asked for, so that evaluating an exported loss needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "KLPENPPOLoss": "loss",
    "klpen_ppo_loss": "functional",
    "compile_loss": "compiling",
    "LossConfig": "records",
    "LossOutput": "records",
    "Minibatch": "records",
    "PolicyHead": "records",
}

__all__ = [
    "KLPENPPOLoss",
    "LossConfig",
    "LossOutput",
    "Minibatch",
    "PolicyHead",
    "__version__",
    "compile_loss",
    "klpen_ppo_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
