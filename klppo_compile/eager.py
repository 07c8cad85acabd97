"""The torch binding of the text: eager, under Inductor and for export.

Three levels, one split each: a family's elementwise terms summed to rows (`elements`), terms of a
row summed over the minibatch (`sums`), and what follows from those sums: forward and backward here,
which `nodes` hands to autograd.
"""

from collections.abc import Sequence

from torch import Tensor

from klppo_compile import objective
from klppo_compile.elements import columns, pull_back, rows
from klppo_compile.records import Critic, HeadRows, Minibatch
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
    "named",
    "of_policy",
    "policy_gradients",
    "rows",
    "terms",
    "value_gradient",
]


def terms(
    batch: Minibatch, hyper: Hyper, static: Static
) -> tuple[dict[str, Tensor], list[HeadRows]]:
    """Losses and metrics by name, and the heads' rows."""
    out, heads = of_policy(batch, hyper, static)
    if batch.value is not None:
        out |= critic_terms(batch, hyper, static)
    return out, heads


def of_policy(
    batch: Minibatch, hyper: Hyper, static: Static
) -> tuple[dict[str, Tensor], list[HeadRows]]:
    """Of `terms` all but the critic's."""
    heads = [rows(head) for head in batch.policy]
    out = policy_terms(batch, hyper, static, heads)
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


def value_gradient(batch: Minibatch | Critic, hyper: Hyper, static: Static, g: Tensor) -> Tensor:
    """Gradient to the value: [*V]."""
    value, target, mask = batch.value, batch.value_target, batch.value_mask
    assert value is not None and target is not None
    distance, slope_of = objective.DISTANCES[static.loss_critic_type]
    error = value - target
    slope = slope_of(error)
    if slope.dtype != error.dtype:  # of numbers alone, l1's, it is float32
        slope = slope.to(error.dtype)
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


def named(numbers: Sequence[Tensor]) -> Hyper:
    """Beta, the critic's numbers, the cap and the heads' entropy coefficients by name."""
    beta, critic_coeff, clip_value, log_cap, *entropy_coeff = numbers
    return Hyper(beta, critic_coeff, clip_value, log_cap, tuple(entropy_coeff))
