"""The torch binding of the text: eager, under Inductor and for export.

Three levels, one split each: a family's elementwise terms summed to rows (`elements`), terms of a
row summed over the minibatch (`sums`), and what follows from those sums. The loss as one function
with a backward of its own lives here. Inputs of 16 bits are computed in float32; the casts stand
inside, so that they fuse.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from klppo_compile import objective
from klppo_compile.elements import HeadRows, columns, pull_back, rows
from klppo_compile.inductor import flat_head
from klppo_compile.packing import MASKS, SAMPLES, dtype_of, flatten, unflatten
from klppo_compile.records import Minibatch
from klppo_compile.sums import (
    Hyper,
    Static,
    at_least_one,
    count,
    critic_terms,
    nonfinite,
    policy_terms,
    select,
)

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


def terms(
    batch: Minibatch, hyper: Hyper, static: Static
) -> tuple[dict[str, Tensor], list[HeadRows]]:
    """Losses and metrics by name, and the heads' rows."""
    heads = [rows(head) for head in batch.policy]
    out = policy_terms(batch, hyper, static, heads)
    if batch.value is not None:
        out |= critic_terms(batch, hyper, static)
    out["nonfinite"] = nonfinite(batch, out["log_prob"], out["kl"], out.pop("penalised"))
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


SECOND_DERIVATIVE = b"KLPENPPOLoss provides no gradients of gradients: its backward is written by \
hand. Take them of torchrl's loss, or leave this loss out of what is differentiated twice."
LOSSES = ("loss_objective", "loss_entropy", "loss_critic")


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
        if not torch.compiler.is_compiling():  # Dynamo knows no such switch
            ctx.set_materialize_grads(False)  # a tensor of zeros for every metric, otherwise
        batch = unflatten(layout, tensors, dtype)
        out, heads = terms(batch, unpack(hyper), static)
        kept = [k for h in heads for k in h.kept]
        ctx.save_for_backward(hyper, out["ratio"], *tensors, *kept)
        ctx.static = static, layout, dtype, names, [len(h.kept) for h in heads], len(tensors)
        metrics = [name for name in names if name not in LOSSES]
        if torch.compiler.is_compiling():
            # torch 2.11 takes a view, once marked, for a leaf that requires grad.
            out |= {name: out[name].detach() for name in metrics}
        ctx.mark_non_differentiable(*[out[name] for name in metrics])
        return tuple(out[name] for name in names)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        static, layout, dtype, names, sizes, width = ctx.static
        packed, ratio, *saved = ctx.saved_tensors
        tensors, rest = saved[:width], saved[width:]
        batch, hyper = unflatten(layout, tuple(tensors), dtype), unpack(packed)
        kept = []
        for size in sizes:
            kept.append(tuple(rest[:size]))
            rest = rest[size:]
        given = dict(zip(names, grads, strict=True))
        g_objective, g_entropy, g_critic = (given.get(name) for name in LOSSES)
        of_policy = [ratio.new_zeros(()) if g is None else g for g in (g_objective, g_entropy)]
        d_new = policy_gradients(batch, hyper, static, kept, ratio, *of_policy)
        out: list[Tensor | None] = [None] * width
        if g_critic is not None:
            out[SAMPLES.index("value")] = value_gradient(batch, hyper, static, g_critic)
        at, done = len(SAMPLES) + len(MASKS), 0
        for family, old in layout:
            at += 4 + old
            for _ in family.parameters:
                out[at], at, done = d_new[done], at + 1, done + 1
        gradients = [
            None if d is None or x is None else d.to(x.dtype)
            for d, x in zip(out, tensors, strict=True)
        ]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = differentiated_once(gradients, tensors)
        return (*[None] * 5, *gradients)


def differentiated_once(
    gradients: list[Tensor | None], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of these tensors, in a backward with create_graph: differentiated, they raise."""
    sources = [x for x in tensors if x is not None and x.requires_grad]
    found = [g.detach() for g in gradients if g is not None]
    raises = torch._C._functions.DelayedError(  # noqa: SLF001 - as torch's once_differentiable
        SECOND_DERIVATIVE, len(found) + len(sources)
    )
    out = iter(raises(*found, *sources))
    return [None if g is None else next(out) for g in gradients]


def loss(batch: Minibatch, hyper: Tensor, static: Static) -> dict[str, Tensor]:
    """Losses and metrics by name; see `LossOutput`. `hyper` as `unpack` reads it."""
    layout = tuple((head.family, len(head.old)) for head in batch.policy)
    names = [
        "loss_objective",
        "kl",
        "mean_kl",
        "kl_approx",
        "nonfinite",
        "log_prob",
        "ratio",
    ]
    names += ["effective_sample_size"] * static.effective_sample_size
    if static.entropy_bonus:
        names += ["loss_entropy", "entropy"]
    if batch.value is not None:
        names.append("loss_critic")
        names += ["value_clip_fraction"] * static.clipped + [
            "explained_variance"
        ] * static.explained_variance
    batch = replace(batch, policy=tuple(flat_head(head) for head in batch.policy))
    tensors = flatten(batch)
    out = Loss.apply(static, layout, dtype_of(tensors), tuple(names), hyper, *tensors)  # type: ignore[no-untyped-call]
    return dict(zip(names, out, strict=True))
