"""Which shapes belong together: of the data, of the policy that recorded them, of the actor."""

from typing import Any

from torch import Tensor
from torch import distributions as td

from klppo_compile import checks
from klppo_compile.policy import ActorHead
from klppo_compile.recognise import Described
from klppo_compile.records import Softmax

Found = dict[str, tuple[Any, Tensor | None, str]]
Head = Described | td.Distribution


def rows_of(head: Head) -> tuple[int, ...]:
    """[*P]: the shape of the head's log-prob."""
    if isinstance(head, td.Distribution):
        return tuple(head.batch_shape)
    last = 1 if isinstance(head.family, Softmax) else 0
    shape = head.parameters[0].shape
    return tuple(shape[: len(shape) - last - head.event_dims])


def _action_shape(head: Head) -> tuple[int, ...]:
    if isinstance(head, td.Distribution):
        return (*head.batch_shape, *head.event_shape)
    return head.action_shape()


def complaints(found: Found, old: Head, rows: tuple[int, ...]) -> list[str | None]:
    """Complaints of the data whose shapes the behaviour policy's distribution doesn't have."""
    action_key, action, _ = found["action"]
    log_prob_key, log_prob, _ = found["log_prob"]
    advantage_key, advantage, _ = found["advantage"]
    assert action is not None and log_prob is not None and advantage is not None
    out = [
        checks.same_shape(action_key, action.shape, "the distribution's event", _action_shape(old)),
        checks.same_shape(log_prob_key, log_prob.shape, "the distribution's batch", rows),
        checks.advantage_shape(advantage_key, advantage.shape, rows),
    ]
    if isinstance(old, Described) and isinstance(old.family, Softmax) and not old.one_hot:
        actions = old.parameters[0].shape[-1] if old.indices is None else 0
        out.append(checks.index_dtype(action_key, action, actions))
    else:
        out.append(checks.not_complex(action_key, action))
    return out


def stretched(
    head: ActorHead, given: dict[str, Tensor | None], new: dict[str, Tensor | None]
) -> list[str | None]:
    """Complaints of the data's parameters, if they are read, that would broadcast to the actor's.

    Not of the heads', where scale [B, 1] and loc [B, D] have come together already. A parameter [D]
    that is the same in every row may be.
    """
    return [
        checks.same_shape(key, x.shape, f"the actor's {name}", y.shape)
        for name, key in zip(head.names, head.in_keys, strict=True)
        if (x := given.get(f"old_{name}")) is not None
        and (y := new[name]) is not None
        and x.numel() < y.numel()
        and x.shape != y.shape[y.ndim - x.ndim :]
    ]


def mismatch(old: Head, new: Head) -> str | None:
    """A complaint where the data's parameters and the actor's differ in shape."""
    if isinstance(old, td.Distribution) or isinstance(new, td.Distribution):
        return checks.same_shape("old parameters", rows_of(old), "the actor's", rows_of(new))
    for name, a, b in zip(old.family.parameters, old.parameters, new.parameters, strict=True):
        complaint = checks.same_shape(f"old {name}", a.shape, f"the actor's {name}", b.shape)
        if complaint:
            return complaint
    return None
