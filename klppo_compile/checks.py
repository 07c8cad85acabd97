"""Checks of a batch, before anything is computed or changed: keys, gradients, shapes.

None of them reads a value.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from klppo_compile.records import Factorised, LossConfig, Minibatch, PolicyHead, Rows, Softmax

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


def real(key: Any, x: Tensor) -> str | None:
    """A complaint unless the tensor holds real floating-point numbers."""
    if x.is_floating_point():
        return None
    return f"{key!r} must be floating point; got {x.dtype}."


def index_dtype(key: Any, x: Tensor, actions: int) -> str | None:
    """A complaint unless the tensor can hold the index of every action."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return f"{key!r} must hold integer indices of actions; got {x.dtype}. Use .long()."
    if actions - 1 > torch.iinfo(x.dtype).max:
        return f"{key!r} ({x.dtype}) can't hold the index of {actions} actions. Use torch.int64."
    return None


def minibatch(batch: Minibatch, config: LossConfig) -> None:
    """Raise ValueError for whatever in a minibatch does not belong together."""
    if not batch.policy:
        raise ValueError("A minibatch needs at least one PolicyHead; got none.")
    rows = head_rows(batch.policy[0])
    critic = batch.value is not None
    complaints = [c for head in batch.policy for c in _head(head, rows)]
    complaints += [
        same_shape(name, x.shape, "the policy's rows", rows)
        for name, x in (
            ("old_log_prob", batch.old_log_prob),
            ("mask", batch.mask),
            ("proximal_log_prob", batch.proximal_log_prob),
        )
        if x is not None
    ]
    if tuple(torch.broadcast_shapes(batch.advantage.shape, rows)) != rows:
        complaints.append(same_shape("advantage", batch.advantage.shape, "the policy's rows", rows))
    if critic and batch.value_target is None:
        complaints.append("A value needs its value_target; got None.")
    if critic and config.clip_value is not None and batch.old_value is None:
        complaints.append("clip_value needs old_value, the value at collection time; got None.")
    if batch.value is not None:
        complaints += [
            same_shape(name, x.shape, "the value", batch.value.shape)
            for name in ("value_target", "old_value", "value_mask")
            if (x := getattr(batch, name)) is not None
        ]
    settle(complaints)


def head_rows(head: PolicyHead) -> Shape:
    """[*P], from the shape of a head's parameters."""
    if isinstance(head.family, Rows):
        return tuple(head.new[0].shape)
    return tuple(head.new[0].shape[: -1 if isinstance(head.family, Factorised) else -2])


def _head(head: PolicyHead, rows: Shape) -> list[str | None]:
    """Complaints about one head."""
    if isinstance(head.family, Rows):
        pairs = zip(head.family.parameters, head.new, strict=True)
        return [same_shape(name, x.shape, "the policy's rows", rows) for name, x in pairs]
    names, shape = head.family.parameters, head.new[0].shape
    wrong = {side: len(x) for side in ("old", "new") if len(x := getattr(head, side)) != len(names)}
    if wrong or head.action is None:
        return [f"A {head.family.name} head takes an action and {names}, old and new; got {wrong}."]
    event = shape if isinstance(head.family, Factorised) else shape[:-1]
    complaints = [same_shape("action", head.action.shape, f"the {names[0]}'s event", event)]
    if isinstance(head.family, Softmax):
        complaints.append(index_dtype("action", head.action, shape[-1]))
    for side in ("old", "new"):
        for name, x in zip(names, getattr(head, side), strict=True):
            complaints.append(same_shape(f"{side} {name}", x.shape, f"new {names[0]}", shape))
    complaints.append(same_shape("a head", head_rows(head), "the first head's rows", rows))
    return complaints
