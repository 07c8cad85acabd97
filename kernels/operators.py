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
from klppo_compile.kernels.layout import Static, problem
from klppo_compile.records import Minibatch, Softmax

ROWS = (
    "old_log_prob",
    "advantage",
    "value",
    "value_target",
    "old_value",
    "proximal_log_prob",
    "mask",
    "value_mask",
)
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
    family: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    action: Tensor,
    old: list[Tensor],
    new: list[Tensor],
    log_volume: Tensor | None,
    noise: Tensor | None,
    weights: Tensor | None,
    old_log_prob: Tensor,
    advantage: Tensor,
    value: Tensor | None,
    value_target: Tensor | None,
    old_value: Tensor | None,
    proximal_log_prob: Tensor | None,
    mask: Tensor | None,
    value_mask: Tensor | None,
    floats: list[float],
    tensors: list[Tensor],
    moving: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, metrics and rows, in the order of `launch.Outputs`.

    `floats`: the ten numbers; those whose bit in `moving` is set are read from `tensors` instead.
    `flags`: clipped, entropy_bonus, explained_variance.
    """
    rows = (
        old_log_prob,
        advantage,
        value,
        value_target,
        old_value,
        proximal_log_prob,
        mask,
        value_mask,
    )
    p = problem(FAMILIES[family], action, old, new, (log_volume, noise, weights), rows)
    left = iter(tensors)
    numbers = tuple(next(left) if moving >> i & 1 else x for i, x in enumerate(floats))
    return launch.forward(p, numbers, Static(reduction, critic, *flags))


@forward.register_fake
def _(
    family: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    action: Tensor,
    old: list[Tensor],
    new: list[Tensor],
    *rest: Any,
) -> tuple[Tensor, ...]:
    softmax = isinstance(FAMILIES[family], Softmax)
    shape = new[0].shape[: -2 if softmax else -1]
    heads = new[0].shape[-2] if softmax else 0
    return launch.outputs(
        shape, heads, new[0], Static(reduction, critic, *flags), rest[5] is not None
    )


@torch.library.custom_op("klppo_compile::backward", mutates_args=())
def backward(
    family: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    g_objective: Tensor,
    g_entropy: Tensor | None,
    g_critic: Tensor | None,
    metrics: Tensor,
    log_prob: Tensor,
    kept: Tensor,
    action: Tensor,
    old: list[Tensor],
    new: list[Tensor],
    log_volume: Tensor | None,
    noise: Tensor | None,
    weights: Tensor | None,
    old_log_prob: Tensor,
    advantage: Tensor,
    value: Tensor | None,
    value_target: Tensor | None,
    old_value: Tensor | None,
    mask: Tensor | None,
    value_mask: Tensor | None,
) -> list[Tensor]:
    """Gradients of the new parameters, and of the value where there is one."""
    rows = (old_log_prob, advantage, value, value_target, old_value, None, mask, value_mask)
    p = problem(FAMILIES[family], action, old, new, (log_volume, noise, weights), rows)
    grads = tuple(None if g is None else upstream(g) for g in (g_objective, g_entropy, g_critic))
    return launch.backward(p, grads, (metrics, log_prob, kept), Static(reduction, critic, *flags))


def upstream(g: Tensor) -> Tensor:
    """One gradient per row [N], or one for all [1]."""
    same = g.numel() > 0 and not any(g.stride())
    return g.as_strided((1,), (1,)) if same else g.reshape(-1).contiguous()


@backward.register_fake
def _(
    family: str,
    critic: str,
    reduction: str,
    flags: list[bool],
    g_objective: Tensor,
    g_entropy: Any,
    g_critic: Any,
    metrics: Tensor,
    log_prob: Tensor,
    kept: Tensor,
    action: Tensor,
    old: list[Tensor],
    new: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    value = rest[5]
    out = [x.new_empty(x.shape) for x in new]
    return out if value is None else [*out, value.new_empty(log_prob.shape)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    family, critic, reduction, flags, action, old, new, *rest = inputs
    (
        log_volume,
        noise,
        weights,
        old_log_prob,
        advantage,
        value,
        target,
        old_value,
        _,
        mask,
        value_mask,
    ) = rest[:11]
    data = (
        log_volume,
        noise,
        weights,
        old_log_prob,
        advantage,
        value,
        target,
        old_value,
        mask,
        value_mask,
    )
    ctx.static = family, critic, reduction, flags
    ctx.sizes = len(old), len(new), len(rest[-2])
    _, _, _, metrics, _, _, log_prob, _, kept = output
    ctx.save_for_backward(metrics, log_prob, kept, action, *old, *new, *data)
    ctx.has = output[1].numel() > 0, output[2].numel() > 0, value is not None


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    olds, news, tensors = ctx.sizes
    metrics, log_prob, kept, action, *rest = ctx.saved_tensors
    old, new, data = rest[:olds], rest[olds : olds + news], rest[olds + news :]
    bonus, critic, has_value = ctx.has
    g_entropy, g_critic = grads[1] if bonus else None, grads[2] if critic else None
    out = backward(
        *ctx.static, grads[0], g_entropy, g_critic, metrics, log_prob, kept, action, old, new, *data
    )
    d_value = out[news] if has_value else None
    return (
        *[None] * 4,
        None,
        [None] * olds,
        out[:news],
        *[None] * 5,
        d_value,
        *[None] * 5,
        None,
        [None] * tensors,
        None,
    )


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


def loss(
    batch: Minibatch, numbers: Sequence[Tensor | float], static: Specialised
) -> dict[str, Tensor]:
    """Losses and metrics by name, as `eager.loss`, and the next beta.

    Args:
        batch: with one action head of a family in `FAMILIES`.
        numbers: beta, critic_coeff, clip radius, log of the ratio's cap, entropy_coeff, dtarg,
            increment, decrement, beta_min, beta_max: floats, or `[]` tensors on the data's device.
        static: what the kernels are specialised to.
    """
    (head,) = batch.policy
    assert head.action is not None
    moving = sum(1 << i for i, x in enumerate(numbers) if isinstance(x, Tensor))
    tensors = [x.detach() for x in numbers if isinstance(x, Tensor)]
    floats = [0.0 if isinstance(x, Tensor) else float(x) for x in numbers]
    still = [getattr(batch, name) for name in ROWS]
    rows = [
        x if x is None or name == "value" else x.detach()
        for name, x in zip(ROWS, still, strict=True)
    ]
    extra = [None if x is None else x.detach() for x in (head.log_volume, head.noise, head.weights)]
    flags = [static.clipped, static.entropy_bonus, static.explained_variance]
    out = launch.Outputs(
        *forward(
            head.family.name,
            static.loss_critic_type,
            static.reduction,
            flags,
            head.action.detach(),
            [x.detach() for x in head.old],
            list(head.new),
            *extra,
            *rows,
            floats,
            tensors,
            moving,
        )
    )
    return by_name(out, static, critic=batch.value is not None)


def by_name(out: launch.Outputs, static: Specialised, critic: bool) -> dict[str, Tensor]:
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
    named |= {name: x for name, x in metrics.items() if name not in absent}
    if static.explained_variance:
        named["explained_variance"] = named["explained_variance"].reshape(1)
    named["nonfinite"] = out.nonfinite.squeeze(0)
    return named | {
        "kl": out.kl.detach(),
        "log_prob": out.log_prob.detach(),
        "ratio": out.ratio.detach(),
    }
