"""The loss as nodes of the autograd graph, with backwards of their own: the policy's, the critic's.

Two, for a trainer may differentiate the critic's loss after the actor has moved. Inputs of 16 bits
are computed in float32; the casts stand inside, so that they fuse.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from klppo_compile.eager import named, of_policy, policy_gradients, value_gradient
from klppo_compile.inductor import flat_head
from klppo_compile.packing import (
    CRITIC,
    MASKS,
    SAMPLES,
    VALUE,
    cast_all,
    dtype_of,
    flatten,
    unflatten,
)
from klppo_compile.records import Critic, Minibatch
from klppo_compile.sums import Hyper, Static, critic_terms

__all__ = ["loss"]

SECOND_DERIVATIVE = b"KLPENPPOLoss provides no gradients of gradients: its backward is written by \
hand. Take them of torchrl's loss, or leave this loss out of what is differentiated twice."
LOSSES = ("loss_objective", "loss_entropy", "loss_critic")
NUMBERS = len(Hyper._fields) - 1  # and one more of each head


class PolicyLoss(torch.autograd.Function):
    """The policy's terms and `nonfinite`, differentiated by the families' own vjp.

    Inputs are kept; of intermediates, what `softmax` says. The critic's value is data here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        static: Static,
        layout: tuple[tuple[Any, int], ...],
        dtype: torch.dtype,
        names: tuple[str, ...],
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        width = NUMBERS + len(layout)
        numbers, tensors = given[:width], given[width:]
        batch = unflatten(layout, tensors, dtype)
        out, heads = of_policy(batch, named(numbers), static)
        kept = [k for h in heads for k in h.kept]
        needed: list[Tensor | None] = list(tensors)
        for i in CRITIC:
            needed[i] = None
        ctx.save_for_backward(out["ratio"], *numbers, *needed, *kept)
        ctx.static = static, layout, dtype, names, [len(h.kept) for h in heads]
        return returned(ctx, out, names)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        static, layout, dtype, names, sizes = ctx.static
        ratio, *saved = ctx.saved_tensors
        width, end = NUMBERS + len(layout), len(saved) - sum(sizes)
        numbers, tensors, rest = saved[:width], saved[width:end], saved[end:]
        batch, hyper = unflatten(layout, tuple(tensors), dtype), named(numbers)
        kept = []
        for size in sizes:
            kept.append(tuple(rest[:size]))
            rest = rest[size:]
        given = dict(zip(names, grads, strict=True))
        both = (given.get(name) for name in ("loss_objective", "loss_entropy"))
        of_losses = [ratio.new_zeros(()) if g is None else g for g in both]
        d_new = policy_gradients(batch, hyper, static, kept, ratio, *of_losses)
        out: list[Tensor | None] = [None] * len(tensors)
        at, done = len(SAMPLES) + len(MASKS), 0
        for family, old in layout:
            at += 4 + old
            for _ in family.parameters:
                out[at], at, done = d_new[done], at + 1, done + 1
        return (*[None] * (4 + width), *passed_back(out, tensors))


class CriticLoss(torch.autograd.Function):
    """The critic's terms. A node of their own: an optimiser may move the actor before it is run."""

    @staticmethod
    def forward(
        ctx: Any,
        static: Static,
        dtype: torch.dtype,
        names: tuple[str, ...],
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        numbers, tensors = given[:NUMBERS], given[NUMBERS:]
        out = critic_terms(Critic(*cast_all(tensors, dtype)), named(numbers), static)
        ctx.save_for_backward(*given)
        ctx.static = static, dtype
        return returned(ctx, out, names)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        static, dtype = ctx.static
        saved = ctx.saved_tensors
        if g is None:
            return (None,) * (3 + len(saved))
        numbers, tensors = saved[:NUMBERS], saved[NUMBERS:]
        critic = Critic(*cast_all(tensors, dtype))
        d_value = value_gradient(critic, named(numbers), static, g)
        return (*[None] * (3 + NUMBERS), *passed_back([d_value], tensors[:1]), None, None, None)


def returned(ctx: Any, out: dict[str, Tensor], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """What a forward returns of its terms: losses, and metrics without gradient."""
    metrics = [name for name in names if name not in LOSSES]
    if torch.compiler.is_compiling():
        # torch 2.11 takes a view, once marked, for a leaf that requires grad.
        out = out | {name: out[name].detach() for name in metrics}
    else:  # Dynamo knows no such switch
        ctx.set_materialize_grads(False)  # a tensor of zeros for every metric, otherwise
    ctx.mark_non_differentiable(*[out[name] for name in metrics])
    return tuple(out[name] for name in names)


def passed_back(
    gradients: list[Tensor | None], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients in the dtypes of these tensors, that can't be differentiated again."""
    cast = [
        None if d is None or x is None else d.to(x.dtype)
        for d, x in zip(gradients, tensors, strict=True)
    ]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return differentiated_once(cast, tensors)
    return cast


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


def loss(batch: Minibatch, numbers: Sequence[Tensor], static: Static) -> dict[str, Tensor]:
    """Losses and metrics by name; see `LossOutput`. `numbers`, [] each, as `named` reads them."""
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
    names += ["loss_entropy", "entropy"] * static.entropy_bonus
    flat = tuple(flat_head(head) for head in batch.policy)
    if any(one is not head for one, head in zip(flat, batch.policy, strict=True)):
        batch = replace(batch, policy=flat)
    tensors = flatten(batch)
    dtype = dtype_of(tensors)
    data = list(tensors)
    data[VALUE] = None if batch.value is None else batch.value.detach()
    found = PolicyLoss.apply(static, layout, dtype, tuple(names), *numbers, *data)  # type: ignore[no-untyped-call]
    out = dict(zip(names, found, strict=True))
    if batch.value is None:
        return out
    names = ["loss_critic"]
    names += ["value_clip_fraction"] * static.clipped
    names += ["explained_variance"] * static.explained_variance
    its = (tensors[i] for i in CRITIC)
    found = CriticLoss.apply(static, dtype, tuple(names), *numbers[:NUMBERS], *its)  # type: ignore[no-untyped-call]
    return out | dict(zip(names, found, strict=True))
