"""Checks of a `Minibatch` and of the numbers beside it, before anything is computed.

What they are made of, and whether their shapes, dtypes and devices belong together; no value of a
tensor is read. All backends are served by them: what passes is computed by each, or refused by
name.
"""

from collections.abc import Iterator
from numbers import Real

import torch
from torch import Tensor

from klppo_compile import checks
from klppo_compile.checks import Shape, same_shape, settle
from klppo_compile.packing import MASKS, SAMPLES
from klppo_compile.records import Factorised, LossConfig, Minibatch, PolicyHead, Rows, Softmax

NUMBERS = ("dtarg", "increment", "decrement", "beta_min", "beta_max", "critic_coeff")
OPTIONAL = ("clip_value", "max_importance_ratio")
Named = tuple[str, Tensor]


def minibatch(batch: Minibatch, config: LossConfig) -> None:
    """Raise for whatever in a minibatch does not belong together: TypeError, ValueError."""
    if not batch.policy:
        raise ValueError("A minibatch needs at least one PolicyHead; got none.")
    settle([_parts(head) for head in batch.policy])
    tensors = [*_samples(batch), *(named for head in batch.policy for named in _tensors(head))]
    for name, x in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name!r} must be a tensor; got {x!r}. Use torch.as_tensor(...).")
    device = batch.old_log_prob.device
    settle([_place(name, x, device) for name, x in tensors])
    rows = head_rows(batch.policy[0])
    complaints = [_kind(name, x) for name, x in tensors if name != "action"]
    complaints += [c for head in batch.policy for c in _head(head, rows, config.entropy_bonus)]
    settle([*complaints, *_rows(batch, rows), *_critic(batch, config)])


def numbers(beta: Tensor | float, config: LossConfig, heads: int) -> None:
    """Raise ValueError for a hyper-parameter that is no number, or coefficients that are too few.

    A kernel reads one number where a pointer says.
    """
    named = [("beta", beta), *((name, getattr(config, name)) for name in NUMBERS)]
    named += [(name, x) for name in OPTIONAL if (x := getattr(config, name)) is not None]
    coeff = config.entropy_coeff
    each = coeff if isinstance(coeff, tuple) else (coeff,) * heads
    named += [("entropy_coeff", x) for x in each]
    wrong = f"A tuple entropy_coeff must hold one per action head, {heads}; got {len(each)}."
    settle([wrong if len(each) != heads else None, *(_number(name, x) for name, x in named)])


def _number(name: str, x: object) -> str | None:
    if isinstance(x, Tensor):
        single = x.numel() == 1 and not x.is_complex()
        return None if single else f"{name} must be one number; got {list(x.shape)} of {x.dtype}."
    if isinstance(x, bool) or not isinstance(x, Real | torch.SymFloat):
        return f"{name} must be a float or a scalar tensor; got {x!r}."
    return None


# ---- every tensor


def _samples(batch: Minibatch) -> Iterator[Named]:
    """Those that every minibatch has, or that are there."""
    for name in SAMPLES + MASKS:
        x = getattr(batch, name)
        if x is not None or name in {"old_log_prob", "advantage"}:
            yield name, x


def _tensors(head: PolicyHead) -> Iterator[Named]:
    for side in ("old", "new"):
        for name, x in zip(head.family.parameters, getattr(head, side), strict=False):
            yield name if isinstance(head.family, Rows) else f"{side} {name}", x
    for name in ("action", "log_volume", "noise", "weights"):
        if (x := getattr(head, name)) is not None:
            yield name, x


def _place(name: str, x: Tensor, device: torch.device) -> str | None:
    """A complaint where a tensor is sparse, or elsewhere; a single number may stay on the CPU."""
    if x.layout is not torch.strided:
        return f"{name!r} must be dense; got {x.layout}. Use .to_dense()."
    if x.device == device or (x.ndim == 0 and x.device.type == "cpu"):
        return None
    return f"{name!r} must be on the device of old_log_prob, {device}; got {x.device}. Use .to()."


def _kind(name: str, x: Tensor) -> str | None:
    """A complaint about the dtype."""
    if name not in MASKS:
        return checks.real(name, x)
    if x.dtype == torch.bool:
        return None
    return f"{name!r} must be bool, True where a row counts; got {x.dtype}. Use .bool()."


# ---- heads


def head_rows(head: PolicyHead) -> Shape:
    """[*P], from the shape of a head's parameters."""
    if isinstance(head.family, Rows):
        return tuple(head.new[0].shape)
    return tuple(head.new[0].shape[: -1 if isinstance(head.family, Factorised) else -2])


def _parts(head: PolicyHead) -> str | None:
    """A complaint where a head lacks a parameter or the action."""
    names, family = head.family.parameters, head.family
    ready = isinstance(family, Rows)
    old = 0 if ready else len(names)
    if len(head.old) != old or len(head.new) != len(names) or (head.action is None) != ready:
        got = f"{len(head.old)} old and {len(head.new)} new"
        takes = "no action and, new alone," if ready else "an action and, old and new,"
        action = "no action" if head.action is None else "an action"
        return f"A {family.name} head takes {takes} {names}; got {action}, {got}."
    return None


def _head(head: PolicyHead, rows: Shape, bonus: bool) -> list[str | None]:
    """Complaints about one head's shapes."""
    family = head.family
    if isinstance(family, Rows):
        pairs = zip(family.parameters, head.new, strict=True)
        return [same_shape(name, x.shape, "the policy's rows", rows) for name, x in pairs]
    names, shape, action = family.parameters, tuple(head.new[0].shape), head.action
    assert action is not None
    event = shape if isinstance(family, Factorised) else shape[:-1]
    if len(shape) < (1 if isinstance(family, Factorised) else 2) or 0 in shape[-1:]:
        axes = "[*P, D]" if isinstance(family, Factorised) else "[*P, K, A]"
        return [f"'new {names[0]}' must be {axes}, its last size 1 or more; got {list(shape)}."]
    complaints = [same_shape("action", action.shape, f"the {names[0]}'s event", event)]
    if isinstance(family, Softmax):
        complaints.append(checks.index_dtype("action", action, shape[-1]))
    else:
        complaints.append(checks.not_complex("action", action))
    for side in ("old", "new"):
        for name, x in zip(names, getattr(head, side), strict=True):
            complaints.append(same_shape(f"{side} {name}", x.shape, f"new {names[0]}", shape))
    complaints.append(same_shape("a head", head_rows(head), "the first head's rows", rows))
    return [*complaints, *_extras(head, rows, bonus)]


def _extras(head: PolicyHead, rows: Shape, bonus: bool) -> list[str | None]:
    """Complaints about log_volume, noise and weights."""
    family, noise, weights, volume = head.family, head.noise, head.weights, head.log_volume
    out: list[str | None] = []
    if volume is not None and isinstance(family, Softmax):
        out.append(f"A {family.name} head takes no log_volume: its actions have no unit.")
    elif volume is not None and volume.ndim:
        out.append(same_shape("log_volume", volume.shape, "the policy's rows", rows))
    corrected = getattr(family, "correction", None) is not None
    if not corrected:
        given = noise is not None or weights is not None
        return [*out, f"A {family.name} head takes no noise or weights." if given else None]
    if noise is None or weights is None:
        wanted = bonus or noise is not None or weights is not None
        needs = f"The entropy of a {family.name} head needs noise [S, ..., D] and its weights [S]."
        return [*out, f"{needs} Pass both, or entropy_bonus=False." if wanted else None]
    shape = (*rows, head.new[0].shape[-1])
    if noise.ndim != len(shape) + 1 or not _reaches(noise.shape[1:], shape):
        like = f"must be [S, ..., D], its draws like the parameters, {list(shape)}, or 1 there"
        out.append(f"'noise' {like}; got {list(noise.shape)}.")
    return [*out, same_shape("weights", weights.shape, "the draws of noise", noise.shape[:1])]


# ---- rows


def _reaches(shape: Shape, rows: Shape) -> bool:
    """Whether a shape broadcasts to the rows without enlarging them."""
    aligned = zip(reversed(shape), reversed(rows), strict=False)
    return len(shape) <= len(rows) and all(n in (1, size) for n, size in aligned)


def _rows(batch: Minibatch, rows: Shape) -> Iterator[str | None]:
    for name in ("old_log_prob", "mask", "proximal_log_prob"):
        if (x := getattr(batch, name)) is not None:
            yield same_shape(name, x.shape, "the policy's rows", rows)
    if not _reaches(batch.advantage.shape, rows):
        yield same_shape("advantage", batch.advantage.shape, "the policy's rows", rows)


def _critic(batch: Minibatch, config: LossConfig) -> Iterator[str | None]:
    if batch.value is None:
        return
    if batch.value_target is None:
        yield "A value needs its value_target; got None."
    if config.clip_value is not None and batch.old_value is None:
        yield "clip_value needs old_value, the value at collection time; got None."
    for name in ("value_target", "old_value", "value_mask"):
        if (x := getattr(batch, name)) is not None:
            yield same_shape(name, x.shape, "the value", batch.value.shape)
