"""Checks of a batch, before anything is computed or changed: keys, gradients, shapes.

None of them reads a value.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


def require(found: Mapping[str, tuple[Any, Tensor | None, str]]) -> None:
    """Raise KeyError naming every entry that is missing; values are (key, tensor, its use)."""
    missing = [f"{key!r} ({what})" for key, x, what in found.values() if x is None]
    if missing:
        raise KeyError(
            f"The input tensordict lacks {', '.join(missing)}. Write the entries at collection "
            "time, or name yours with loss.set_keys(...)."
        )


def no_gradient(found: Mapping[str, tuple[Any, Tensor | None, str]]) -> None:
    """Raise RuntimeError where data carry a gradient, which would leak into what made them."""
    leaks = [repr(key) for key, x, _ in found.values() if x is not None and x.requires_grad]
    if leaks:
        raise RuntimeError(
            f"tensordict stored {', '.join(leaks)} requires grad. Data of a rollout are constants: "
            "detach them, or collect under torch.no_grad()."
        )


def same_shape(key: Any, shape: Shape, like: Any, expected: Shape) -> str | None:
    """A complaint where two shapes differ, with what torch would have made of it."""
    if tuple(shape) == tuple(expected):
        return None
    return (
        f"{key!r} must have the shape of {like}, {list(expected)}; got {list(shape)}."
        + _broadcast(shape, expected)
        + _fix(shape, expected)
    )


def _broadcast(shape: Shape, expected: Shape) -> str:
    width = max(len(shape), len(expected))
    a, b = ((1,) * (width - len(s)) + tuple(s) for s in (shape, expected))
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        return ""
    together = [max(x, y) for x, y in zip(a, b, strict=True)]
    return f" Together they would broadcast to {together}."


def _fix(shape: Shape, expected: Shape) -> str:
    if tuple(shape) == (*expected, 1):
        return " Use .squeeze(-1)."
    return " Use .unsqueeze(-1)." if (*shape, 1) == tuple(expected) else ""


def advantage_shape(key: Any, shape: Shape, rows: Shape) -> str | None:
    """A complaint unless the advantage is [*batch, 1], its batch the head of the rows [*P]."""
    batch = tuple(shape[:-1])
    if (
        shape
        and shape[-1] == 1
        and (batch == tuple(rows) or (batch and rows[: len(batch)] == batch))
    ):
        return None
    if tuple(shape) == tuple(rows) == (1,):
        return None
    flat = ", an outer product over samples" if tuple(shape) == tuple(rows) else ""
    ratio = (*rows, 1)
    return (
        f"{key!r} must be [*batch, 1] like the log-ratio; got {list(shape)} against {list(ratio)}."
        + (_broadcast(shape, ratio)[:-1] + flat + "." if _broadcast(shape, ratio) else "")
        + (" Use advantage.unsqueeze(-1)." if flat else "")
    )


def settle(complaints: list[str | None]) -> None:
    """Raise one ValueError for all that is wrong."""
    wrong = [c for c in complaints if c is not None]
    if wrong:
        raise ValueError(" ".join(wrong))


def real(key: Any, x: Tensor | None) -> str | None:
    """A complaint unless the tensor, where there is one, holds real floating-point numbers."""
    if x is None or x.is_floating_point():
        return None
    return f"{key!r} must be floating point; got {x.dtype}."


def not_complex(key: Any, x: Tensor) -> str | None:
    """A complaint unless the tensor holds real numbers, of whatever kind."""
    return f"{key!r} must hold real numbers; got {x.dtype}." if x.is_complex() else None


def index_dtype(key: Any, x: Tensor, actions: int) -> str | None:
    """A complaint unless the tensor can hold the index of every action."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return f"{key!r} must hold integer indices of actions; got {x.dtype}. Use .long()."
    if actions - 1 > torch.iinfo(x.dtype).max:
        return f"{key!r} ({x.dtype}) can't hold the index of {actions} actions. Use torch.int64."
    return None
