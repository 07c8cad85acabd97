"""Two operators for every family, and the loss made of them.

Hyper-parameters reach the kernels as floats or as pointers to tensors: when one moves, nothing
recompiles and nothing waits.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from klppo_compile.distributions import FAMILIES
from klppo_compile.kernels import launch
from klppo_compile.kernels.layout import Static, problem, rows_of
from klppo_compile.kernels.outputs import Outputs, outputs
from klppo_compile.packing import MASKS, SAMPLES, flatten, unflatten
from klppo_compile.records import Factorised, Minibatch, Softmax

METRICS = (
    "mean_kl",
    "kl_approx",
    "effective_sample_size",
    "entropy",
    "value_clip_fraction",
    "explained_variance",
    "next_beta",
)


@torch.library.custom_op("klppo_compile::forward", mutates_args=())
def forward(
    families: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    tensors: list[Tensor],
    present: list[bool],
    floats: list[float],
    moved: list[Tensor],
    moving: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, metrics and rows, in the order of `Outputs`.

    `families`: of the heads, comma between them. `flags`: clipped, entropy_bonus,
    explained_variance. `tensors`: the minibatch as `packing.flatten` has it, those that are
    `present`. `floats`: the numbers; those that are `moving` are read from `moved` instead.
    """
    left = iter(moved)
    numbers = tuple(next(left) if m else x for m, x in zip(moving, floats, strict=True))
    p = problem(minibatch(families, tensors, present))
    return launch.forward(p, numbers, Static(reduction, critic, *flags))


@forward.register_fake
def _(
    families: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    tensors: list[Tensor],
    present: list[bool],
    *_: Any,
) -> tuple[Tensor, ...]:
    batch = minibatch(families, tensors, present)
    first = batch.policy[0]
    return outputs(
        rows_of(first.new[0], first.family),
        None if batch.value is None else batch.value.shape,
        [h.new[0].shape[-2] if isinstance(h.family, Softmax) else 0 for h in batch.policy],
        first.new[0],
        Static(reduction, critic, *flags),
    )


@torch.library.custom_op("klppo_compile::backward", mutates_args=())
def backward(
    families: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    g_objective: Tensor,
    g_entropy: Tensor | None,
    g_critic: Tensor | None,
    metrics: Tensor,
    log_prob: Tensor,
    kept: Tensor,
    tensors: list[Tensor],
    present: list[bool],
) -> list[Tensor]:
    """Gradients of the new parameters, and of the value where there is one."""
    p = problem(minibatch(families, tensors, present))
    grads = tuple(None if g is None else upstream(g) for g in (g_objective, g_entropy, g_critic))
    return launch.backward(p, grads, metrics, log_prob, kept, Static(reduction, critic, *flags))


def upstream(g: Tensor) -> Tensor:
    """One gradient per row [N], or one for all [1]."""
    same = g.numel() > 0 and not any(g.stride())
    return g.as_strided((1,), (1,)) if same else g.reshape(-1).contiguous()


@backward.register_fake
def _(families: str, *rest: Any) -> list[Tensor]:
    batch = minibatch(families, *rest[-2:])
    out = [x.new_empty(x.shape) for h in batch.policy for x in h.new]
    return out if batch.value is None else [*out, batch.value.new_empty(batch.value.shape)]


def layout(families: str) -> list[tuple[Factorised | Softmax, int]]:
    """Each head's family and how many old parameters it has, for `packing`."""
    found: list[Any] = [FAMILIES[name] for name in families.split(",")]
    return [(family, len(family.parameters)) for family in found]


def minibatch(families: str, tensors: list[Tensor], present: list[bool]) -> Minibatch:
    """The minibatch whose present tensors these are."""
    left = iter(tensors)
    filled = tuple(next(left) if p else None for p in present)
    return unflatten(tuple(layout(families)), filled, None)


def differentiable(families: str, critic: bool) -> list[int]:
    """Where in a flattened minibatch the new parameters are, and the value."""
    out: list[int] = []
    at = len(SAMPLES) + len(MASKS)
    for family, old in layout(families):
        first = at + 4 + old
        at = first + len(family.parameters)
        out += range(first, at)
    return [*out, SAMPLES.index("value")] if critic else out


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    families, critic, reduction, flags, tensors, present, _, moved, _ = inputs
    out = Outputs(*output)
    ctx.static, ctx.present, ctx.moved = (families, critic, reduction, flags), present, len(moved)
    ctx.has = out.entropy.numel() > 0, out.critic.numel() > 0
    ctx.save_for_backward(out.metrics, out.log_prob, out.kept, *tensors)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    metrics, log_prob, kept, *tensors = ctx.saved_tensors
    present = ctx.present
    g = [grads[0], *(x if there else None for x, there in zip(grads[1:3], ctx.has, strict=True))]
    found = backward(*ctx.static, *g, metrics, log_prob, kept, tensors, present)
    d_tensors: list[Tensor | None] = [None] * len(present)
    value = present[SAMPLES.index("value")]
    for at, d in zip(differentiable(ctx.static[0], value), found, strict=True):
        d_tensors[at] = d
    dense = [d for d, there in zip(d_tensors, present, strict=True) if there]
    return (*[None] * 4, dense, *[None] * 2, [None] * ctx.moved, None)


forward.register_autograd(_backward, setup_context=_save)


class Specialised(Protocol):
    """`layout.Static` by its names: `eager.Static` is one too."""

    @property
    def reduction(self) -> str:
        """As in `layout.Static`."""
        ...

    @property
    def loss_critic_type(self) -> str:
        """As in `layout.Static`."""
        ...

    @property
    def clipped(self) -> bool:
        """As in `layout.Static`."""
        ...

    @property
    def entropy_bonus(self) -> bool:
        """As in `layout.Static`."""
        ...

    @property
    def explained_variance(self) -> bool:
        """As in `layout.Static`."""
        ...

    @property
    def effective_sample_size(self) -> bool:
        """Whether it is returned: the kernels have its sums anyway."""
        ...


def loss(
    batch: Minibatch, numbers: Sequence[Tensor | float], static: Specialised
) -> dict[str, Tensor]:
    """Losses and metrics by name, as `nodes.loss`, and the next beta.

    Args:
        batch: with action heads of families in `FAMILIES`.
        numbers: beta, critic_coeff, clip radius, log of the ratio's cap, each head's
            entropy_coeff, dtarg, increment, decrement, beta_min, beta_max: floats, or `[]` tensors.
        static: what the kernels are specialised to.
    """
    out = Outputs(*forward(*arguments(batch, numbers, static)))
    return by_name(out, static, critic=batch.value is not None)


def arguments(
    batch: Minibatch, numbers: Sequence[Tensor | float], static: Specialised
) -> tuple[Any, ...]:
    """What `forward` takes."""
    device = batch.old_log_prob.device
    tensors = flatten(batch)
    return (
        ",".join(head.family.name for head in batch.policy),
        static.loss_critic_type,
        static.reduction,
        [static.clipped, static.entropy_bonus, static.explained_variance],
        [x for x in tensors if x is not None],
        [x is not None for x in tensors],
        [0.0 if isinstance(x, Tensor) else float(x) for x in numbers],
        [x.detach().to(device) for x in numbers if isinstance(x, Tensor)],
        [isinstance(x, Tensor) for x in numbers],
    )


def by_name(out: Outputs, static: Specialised, critic: bool) -> dict[str, Tensor]:
    """The outputs that this loss has."""
    scalar = static.reduction != "none"
    named = {"loss_objective": out.objective}
    named |= {"loss_entropy": out.entropy} if static.entropy_bonus else {}
    named |= {"loss_critic": out.critic} if critic else {}
    named = {name: x.squeeze(0) if scalar else x for name, x in named.items()}
    metrics = dict(zip(METRICS, out.metrics.detach().unbind(), strict=False))
    absent = {"entropy"} if not static.entropy_bonus else set()
    absent |= {"value_clip_fraction"} if not static.clipped else set()
    absent |= {"explained_variance"} if not static.explained_variance else set()
    absent |= {"effective_sample_size"} if not static.effective_sample_size else set()
    named |= {name: x for name, x in metrics.items() if name not in absent}
    if static.explained_variance:
        named["explained_variance"] = named["explained_variance"].reshape(1)
    named["nonfinite"] = out.nonfinite.squeeze(0)
    return named | {
        "kl": out.kl.detach(),
        "log_prob": out.log_prob.detach(),
        "ratio": out.ratio.detach(),
    }
