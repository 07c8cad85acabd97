"""Rows to sums: what a minibatch's losses and metrics are made of, with reductions and masks.

What a row is made of is not here (`elements`), nor how its sums are differentiated (`eager`).
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile import objective
from klppo_compile.records import Critic, HeadRows, Minibatch
from klppo_compile.vocabulary import finite


@dataclass(frozen=True)
class Static:
    """What a compiled graph is specialised to."""

    reduction: str
    loss_critic_type: str
    clipped: bool
    entropy_bonus: bool
    explained_variance: bool
    effective_sample_size: bool = True
    centred_entropy: bool = False  # its mean by `centred_mean`


class Hyper(NamedTuple):
    """The hyper-parameters as `[]` tensors, snapshots that later changes don't reach."""

    beta: Tensor
    critic_coeff: Tensor
    clip_value: Tensor
    log_cap: Tensor
    entropy_coeff: tuple[Tensor, ...]  # one per head


def select(mask: Tensor | None, x: Tensor) -> Tensor:
    """`x` where the mask holds, else 0: selected, not multiplied, for what is masked may be NaN."""
    return (
        x if mask is None else torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
    )


def count(mask: Tensor | None, like: Tensor) -> Tensor | int:
    """How many rows count."""
    return like.numel() if mask is None else mask.sum()


def at_least_one(n: Tensor | int) -> Tensor | int:
    """What to divide by where it may be that no row counts."""
    return n.clamp_min(1) if isinstance(n, Tensor) else max(n, 1)


def reduced(x: Tensor, mask: Tensor | None, n: Tensor | int, reduction: str) -> Tensor:
    """Rows [*P] to [] or, with reduction none, to rows with zeros where masked."""
    x = select(mask, x)
    if reduction == "none":
        return x
    if reduction == "sum":
        return x.sum()
    return x.mean() if mask is None and x.numel() else x.sum() / at_least_one(n)


def mean(x: Tensor, mask: Tensor | None, n: Tensor | int) -> Tensor:
    """The mean over the rows that count: []."""
    return reduced(x, mask, n, "mean")


def centred_mean(x: Tensor, mask: Tensor | None, n: Tensor | int) -> Tensor:
    """The mean in two passes, the second over what the first leaves: [].

    Torch adds in a tree. A runtime that adds one to the other rounds always the same way where all
    are equal, as a Gaussian's entropies are: 1e-4 at 65,536 rows.
    """
    rough = mean(x, mask, n)
    return torch.where(finite(rough), rough + mean(x - rough, mask, n), rough)


def added(each: list[Tensor]) -> Tensor:
    """The sum of the heads' parts; Python's own would begin with 0, one step more."""
    return functools.reduce(torch.add, each)


def policy_terms(
    batch: Minibatch, hyper: Hyper, static: Static, heads: list[HeadRows]
) -> dict[str, Tensor]:
    """The policy's losses and metrics from the rows of its heads, and the objective's rows."""
    log_prob, kl = added([h.log_prob for h in heads]), added([h.kl for h in heads])
    n = count(batch.mask, log_prob)
    ratio = objective.importance(log_prob, batch.old_log_prob, hyper.log_cap)
    anchor = batch.old_log_prob if batch.proximal_log_prob is None else batch.proximal_log_prob
    penalised = objective.penalised(ratio, batch.advantage, kl, hyper.beta)
    out = {
        "penalised": penalised,
        "loss_objective": reduced(penalised, batch.mask, n, static.reduction),
        "kl": kl,
        "mean_kl": mean(kl, batch.mask, n),
        "kl_approx": mean(anchor - log_prob, batch.mask, n),
        "log_prob": log_prob,
        "ratio": ratio,
    }
    if static.effective_sample_size:
        sums = (select(batch.mask, x).sum() for x in (ratio, ratio * ratio))
        out["effective_sample_size"] = objective.effective_sample_size(*sums)
    if static.entropy_bonus:
        out |= entropy_terms(batch, hyper, static, heads, n)
    return out


def entropy_terms(
    batch: Minibatch, hyper: Hyper, static: Static, heads: list[HeadRows], n: Tensor | int
) -> dict[str, Tensor]:
    """Entropy and its loss.

    A total is summed flat over rows and elements, which vectorises; rows are only summed where they
    matter.
    """
    centred, reduction = static.centred_entropy, static.reduction
    if reduction != "none" and (batch.mask is None or centred):
        means = [
            centred_mean(h.entropy.sum(-1), batch.mask, n)
            if centred
            else h.entropy.sum() / at_least_one(n)
            for h in heads
        ]
        loss = -added([c * m for c, m in zip(hyper.entropy_coeff, means, strict=True)])
        loss = loss if reduction == "mean" else loss * n
        return {"entropy": added(means), "loss_entropy": loss}
    each = [h.entropy.sum(-1) for h in heads]
    loss = -added([c * e for c, e in zip(hyper.entropy_coeff, each, strict=True)])
    entropy = (centred_mean if centred else mean)(added(each), batch.mask, n)
    return {"entropy": entropy, "loss_entropy": reduced(loss, batch.mask, n, reduction)}


def critic_terms(batch: Minibatch | Critic, hyper: Hyper, static: Static) -> dict[str, Tensor]:
    """The critic's loss and metrics."""
    value, target, mask = batch.value, batch.value_target, batch.value_mask
    assert value is not None and target is not None
    distance, _ = objective.DISTANCES[static.loss_critic_type]
    n, error, out = count(mask, value), value - target, {}
    loss = distance(error)
    if static.clipped:
        old, radius = batch.old_value, hyper.clip_value
        assert old is not None
        clipped = objective.clipped_value(value, old, radius)
        loss = objective.pessimistic(loss, distance(clipped - target))
        moved = objective.moved(value, old, radius).to(value.dtype)
        out["value_clip_fraction"] = mean(moved, mask, n)
    if static.explained_variance:
        error2, target2 = (squares(x, mask, n) for x in (error, target))
        eps = torch.finfo(target.dtype).eps
        out["explained_variance"] = objective.explained_variance(
            error2, target2, at_least_one(n), eps
        ).reshape(1)
    out["loss_critic"] = hyper.critic_coeff * reduced(loss, mask, n, static.reduction)
    return out


def squares(x: Tensor, mask: Tensor | None, n: Tensor | int) -> Tensor:
    """The sum of squared deviations from the mean, in two passes: []."""
    deviation = x - mean(x, mask, n)
    return select(mask, deviation * deviation).sum()


def nonfinite(batch: Minibatch, log_prob: Tensor, kl: Tensor, penalised: Tensor) -> Tensor:
    """[] int64: rows that count and whose inputs, KL or objective are not finite."""
    # The objective is not where the advantage is not, nor where the ratio overflows.
    policy = (log_prob + kl, batch.old_log_prob + penalised)
    if batch.value is None or batch.value_target is None:
        return select(batch.mask, ~objective.usable(*policy, log_prob)).sum()
    critic = (batch.value, batch.value_target)
    if batch.old_value is not None:
        critic = (batch.value + batch.old_value, batch.value_target)
    if batch.mask is None and batch.value_mask is None and batch.value.shape == kl.shape:
        return (~objective.usable(*policy, *critic)).sum()  # the same in fewer steps
    bad = select(batch.mask, ~objective.usable(*policy, log_prob))
    bad_value = select(batch.value_mask, ~objective.usable(*critic, batch.value))
    return (bad | bad_value).sum() if bad.shape == bad_value.shape else bad.sum() + bad_value.sum()
