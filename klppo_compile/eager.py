"""The torch binding of the text: eager, under Inductor and for export.

Three levels, one split each: a family's elementwise terms summed to rows (`elements`), terms of a
row summed over the minibatch, and what follows from those sums. Reductions, masks and the backward
live here. Inputs of 16 bits are computed in float32; the casts stand inside, so that they fuse.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klppo_compile import objective
from klppo_compile.elements import HeadRows, columns, pull_back, rows
from klppo_compile.packing import MASKS, SAMPLES, dtype_of, flatten, unflatten
from klppo_compile.records import Minibatch

__all__ = [
    "Hyper",
    "Static",
    "count",
    "critic_terms",
    "flatten",
    "loss",
    "rows",
    "terms",
    "unflatten",
    "unpack",
]


@dataclass(frozen=True)
class Static:
    """What a compiled graph is specialised to."""

    reduction: str
    loss_critic_type: str
    clipped: bool
    entropy_bonus: bool
    explained_variance: bool


class Hyper(NamedTuple):
    """The hyper-parameters as `[]` tensors, snapshots that later changes don't reach."""

    beta: Tensor
    critic_coeff: Tensor
    clip_value: Tensor
    log_cap: Tensor
    entropy_coeff: tuple[Tensor, ...]  # one per head


# ---- rows to sums


def select(mask: Tensor | None, x: Tensor) -> Tensor:
    """`x` where the mask holds, else 0: selected, not multiplied, for what is masked may be NaN."""
    return (
        x if mask is None else torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
    )


def count(mask: Tensor | None, like: Tensor) -> Tensor | int:
    """How many rows count."""
    return like.numel() if mask is None else mask.sum()


def at_least_one(n: Tensor | int) -> Tensor | int:
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
    return reduced(x, mask, n, "mean")


def policy_terms(
    batch: Minibatch, hyper: Hyper, static: Static, heads: list[HeadRows]
) -> dict[str, Tensor]:
    """The policy's losses and metrics from the rows of its heads."""
    log_prob, kl = sum(h.log_prob for h in heads), sum(h.kl for h in heads)
    assert isinstance(log_prob, Tensor) and isinstance(kl, Tensor)
    n = count(batch.mask, log_prob)
    ratio = objective.importance(log_prob, batch.old_log_prob, hyper.log_cap)
    anchor = batch.old_log_prob if batch.proximal_log_prob is None else batch.proximal_log_prob
    ratio_sum, ratio2_sum = select(batch.mask, ratio).sum(), select(batch.mask, ratio * ratio).sum()
    penalised = objective.penalised(ratio, batch.advantage, kl, hyper.beta)
    out = {
        "loss_objective": reduced(penalised, batch.mask, n, static.reduction),
        "kl": kl,
        "mean_kl": mean(kl, batch.mask, n),
        "kl_approx": mean(anchor - log_prob, batch.mask, n),
        "effective_sample_size": objective.effective_sample_size(ratio_sum, ratio2_sum),
        "log_prob": log_prob,
        "ratio": ratio,
    }
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
    if batch.mask is None and static.reduction != "none":
        totals = [h.entropy.sum() for h in heads]
        scale = at_least_one(n) if static.reduction == "mean" else 1
        loss = sum(-c * t / scale for c, t in zip(hyper.entropy_coeff, totals, strict=True))
        return {"entropy": sum(totals) / at_least_one(n), "loss_entropy": loss}  # type: ignore[dict-item]
    each = [h.entropy.sum(-1) for h in heads]
    loss = sum(-c * e for c, e in zip(hyper.entropy_coeff, each, strict=True))
    assert isinstance(loss, Tensor)
    entropy = mean(sum(each), batch.mask, n)  # type: ignore[arg-type]
    return {"entropy": entropy, "loss_entropy": reduced(loss, batch.mask, n, static.reduction)}


def critic_terms(batch: Minibatch, hyper: Hyper, static: Static) -> dict[str, Tensor]:
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


def nonfinite(batch: Minibatch, log_prob: Tensor, kl: Tensor) -> Tensor:
    """[] int64: rows that count and whose inputs or KL are not finite."""
    bad = select(batch.mask, ~objective.usable(log_prob, kl, batch.old_log_prob, batch.advantage))
    if batch.value is None or batch.value_target is None:
        return bad.sum()
    old = batch.value if batch.old_value is None else batch.old_value
    bad_value = select(batch.value_mask, ~objective.usable(batch.value, batch.value_target, old))
    return (bad | bad_value).sum() if bad.shape == bad_value.shape else bad.sum() + bad_value.sum()


# ---- the loss, differentiable through the hand-written vjp


def terms(
    batch: Minibatch, hyper: Hyper, static: Static
) -> tuple[dict[str, Tensor], list[HeadRows]]:
    """Losses and metrics by name, and the heads' rows."""
    heads = [rows(head) for head in batch.policy]
    out = policy_terms(batch, hyper, static, heads)
    if batch.value is not None:
        out |= critic_terms(batch, hyper, static)
    out["nonfinite"] = nonfinite(batch, out["log_prob"], out["kl"])
    return out, heads


def policy_gradients(
    batch: Minibatch,
    hyper: Hyper,
    static: Static,
    kept: list[tuple[Tensor, ...]],
    ratio: Tensor,
    g_objective: Tensor,
    g_entropy: Tensor,
) -> list[Tensor]:
    """Gradients to every new parameter of every head."""
    if static.reduction == "mean":
        # A product: Inductor repeats it for every vector of elements, where a quotient costs more.
        share = 1.0 / at_least_one(count(batch.mask, ratio))
        g_objective, g_entropy = g_objective * share, g_entropy * share
    out: list[Tensor] = []
    for head, head_kept, coeff in zip(batch.policy, kept, hyper.entropy_coeff, strict=True):
        g = objective.policy_vjp(g_objective, g_entropy, ratio, batch.advantage, hyper.beta, coeff)
        for d in pull_back(head, head_kept, *g):
            mask = batch.mask
            out.append(d if mask is None else select(columns(mask, d.ndim - mask.ndim), d))
    return out


def value_gradient(batch: Minibatch, hyper: Hyper, static: Static, g: Tensor) -> Tensor:
    """Gradient to the value: [*V]."""
    value, target, mask = batch.value, batch.value_target, batch.value_mask
    assert value is not None and target is not None
    distance, slope_of = objective.DISTANCES[static.loss_critic_type]
    error = value - target
    slope = slope_of(error)
    if static.clipped:
        old, radius = batch.old_value, hyper.clip_value
        assert old is not None
        clipped_error = objective.clipped_value(value, old, radius) - target
        slope = objective.pessimistic_slope(
            distance(error),
            distance(clipped_error),
            slope,
            slope_of(clipped_error),
            objective.moved(value, old, radius),
        )
    if static.reduction == "mean":
        g = g * (1.0 / at_least_one(count(mask, value)))
    return select(mask, g * hyper.critic_coeff * slope)


def unpack(hyper: Tensor) -> Hyper:
    """The vector [4 + heads] as names."""
    beta, critic_coeff, clip_value, log_cap, *entropy_coeff = hyper.unbind()
    return Hyper(beta, critic_coeff, clip_value, log_cap, tuple(entropy_coeff))


class Loss(torch.autograd.Function):
    """`terms`, differentiated by the families' own vjp: inputs are kept, not intermediates."""

    @staticmethod
    def forward(
        ctx: Any,
        static: Static,
        layout: tuple[tuple[Any, int], ...],
        dtype: torch.dtype,
        names: tuple[str, ...],
        hyper: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        batch = unflatten(layout, tensors, dtype)
        out, heads = terms(batch, unpack(hyper), static)
        kept = [k for h in heads for k in h.kept]
        ctx.save_for_backward(hyper, out["ratio"], *tensors, *kept)
        ctx.static = static, layout, dtype, names, [len(h.kept) for h in heads], len(tensors)
        outputs = tuple(out[name] for name in names)
        ctx.mark_non_differentiable(*[out[name] for name in names if not name.startswith("loss")])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        static, layout, dtype, names, sizes, width = ctx.static
        packed, ratio, *saved = ctx.saved_tensors
        tensors, rest = saved[:width], saved[width:]
        batch, hyper = unflatten(layout, tuple(tensors), dtype), unpack(packed)
        kept = []
        for size in sizes:
            kept.append(tuple(rest[:size]))
            rest = rest[size:]
        g = dict(zip(names, grads, strict=True))
        g_entropy = g.get("loss_entropy")
        if g_entropy is None:
            g_entropy = torch.zeros_like(g["loss_objective"])
        d_new = policy_gradients(batch, hyper, static, kept, ratio, g["loss_objective"], g_entropy)
        out: list[Tensor | None] = [None] * width
        if "loss_critic" in g:
            out[SAMPLES.index("value")] = value_gradient(batch, hyper, static, g["loss_critic"])
        at, done = len(SAMPLES) + len(MASKS), 0
        for family, old in layout:
            at += 4 + old
            for _ in family.parameters:
                out[at], at, done = d_new[done], at + 1, done + 1
        return (None,) * 5 + tuple(
            None if d is None or x is None else d.to(x.dtype)
            for d, x in zip(out, tensors, strict=True)
        )


def loss(batch: Minibatch, hyper: Tensor, static: Static) -> dict[str, Tensor]:
    """Losses and metrics by name; see `LossOutput`. `hyper` as `unpack` reads it."""
    layout = tuple((head.family, len(head.old)) for head in batch.policy)
    names = [
        "loss_objective",
        "kl",
        "mean_kl",
        "kl_approx",
        "effective_sample_size",
        "nonfinite",
        "log_prob",
        "ratio",
    ]
    if static.entropy_bonus:
        names += ["loss_entropy", "entropy"]
    if batch.value is not None:
        names.append("loss_critic")
        names += ["value_clip_fraction"] * static.clipped + [
            "explained_variance"
        ] * static.explained_variance
    tensors = flatten(batch)
    out = Loss.apply(static, layout, dtype_of(tensors), tuple(names), hyper, *tensors)  # type: ignore[no-untyped-call]
    return dict(zip(names, out, strict=True))
