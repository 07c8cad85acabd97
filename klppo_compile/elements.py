"""Elements to rows: a family's elementwise terms summed over an event, and pulled back to the head.

What is summed over a minibatch is not here (`eager`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile.blocks import block_rows, split_head, split_rows
from klppo_compile.inductor import by_action, hits, rough_exp, row_sums, written
from klppo_compile.records import Factorised, PolicyHead, Rows, Softmax
from klppo_compile.series import retaken
from klppo_compile.vocabulary import by_inductor_on_cpu, exp


class HeadRows(NamedTuple):
    """One head's rows; entropy [*P, D] or [*P, K] is not summed: often only its total counts."""

    log_prob: Tensor  # [*P]
    kl: Tensor  # [*P]
    entropy: Tensor  # [*P, ...]
    kept: tuple[Tensor, ...]  # [*P, K, 1] each, what the backward of a softmax needs


def rows(head: PolicyHead) -> HeadRows:
    """A head's log-prob, KL and entropy."""
    size = block_rows(head)
    if size is None:
        return _rows(head)
    blocks = [_rows(block) for block in split_head(head, size)]
    return HeadRows(
        torch.cat([b.log_prob for b in blocks]),
        torch.cat([b.kl for b in blocks]),
        torch.cat([b.entropy for b in blocks]),
        tuple(torch.cat(x) for x in zip(*(b.kept for b in blocks), strict=True)),
    )


def _rows(head: PolicyHead) -> HeadRows:
    if isinstance(head.family, Rows):
        log_prob, kl, entropy = head.new
        return HeadRows(log_prob, kl, entropy.unsqueeze(-1), ())
    return softmax_rows(head) if isinstance(head.family, Softmax) else factorised_rows(head)


def factorised_rows(head: PolicyHead) -> HeadRows:
    """Rows as sums of their elements."""
    family = head.family
    assert isinstance(family, Factorised)
    log_prob, kl = row_sums(
        family.log_prob(head.action, *head.new), family.kl(*head.old, *head.new)
    )
    entropy = family.entropy(*head.new)
    if head.noise is not None:
        entropy = entropy + expectation(head)
    if head.log_volume is not None:
        log_prob = log_prob - head.log_volume
        entropy = entropy + columns(head.log_volume, 1) / entropy.shape[-1]
    return HeadRows(log_prob, kl, entropy, ())


def expectation(head: PolicyHead) -> Tensor:
    """The entropy's correction averaged over the head's noise: [*P, D]."""
    assert isinstance(head.family, Factorised) and head.family.correction is not None
    assert head.noise is not None and head.weights is not None
    return weighted(head.weights, head.family.correction(head.noise, *head.new))


def weighted(weights: Tensor, x: Tensor) -> Tensor:
    """Samples [S, ...] summed by weights [S]: no matrix product, which autocast would round."""
    return (weights.reshape(-1, *[1] * (x.ndim - 1)) * x).sum(0)


def softmax_rows(head: PolicyHead) -> HeadRows:
    """Rows from the moments of their actions."""
    family, (old,), (new,), action = head.family, head.old, head.new, head.action
    assert isinstance(family, Softmax) and action is not None
    old, new = by_action(old, new)
    old_top, top = old.amax(-1, True), new.amax(-1, True)  # [*P, K, 1]
    x = old - old_top
    q = exp(x)
    fall = family.fall(x, old, new)
    weight = rough_exp(x) if by_inductor_on_cpu(x) else q
    total = weight.sum(-1, True)
    level = family.level(old_top, top, (weight * fall).sum(-1, True) / total)
    old_top, level, shift = written(old_top, level, old_top - level)
    y = new - level
    p = exp(y)
    u = fall - shift
    sums = family.moments(q, p, retaken(p, x - y - u), u, y)
    # Inductor sums q in the loop that comes next: this one, which needs every q itself.
    q = total if weight is q else q.sum(-1, True)
    q, p, u, psi_u, y = (q.squeeze(-1), *(x.sum(-1) for x in (p, *sums)))  # [*P, K]
    log_q, log_p = q.log(), p.log()
    actions = new.shape[-1]
    index = action.clamp(0, actions - 1).long()  # torch gathers by no smaller integers
    picked = (new.gather(-1, index.unsqueeze(-1)) - level).squeeze(-1)
    picked = torch.where(index == action, picked, torch.nan)
    log_prob, kl, entropy, m = family.close(picked, log_q, log_p, u / q, psi_u / q, y / p)
    each = (old_top + log_q.unsqueeze(-1), level + log_p.unsqueeze(-1))
    kept = (*each, entropy.unsqueeze(-1), m.unsqueeze(-1), shift)
    if entropy.shape[-1] == 1:
        return HeadRows(log_prob.squeeze(-1), kl.squeeze(-1), entropy, kept)
    log_prob, kl = row_sums(log_prob, kl)
    return HeadRows(log_prob, kl, entropy, kept)


# ---- and back


def pull_back(
    head: PolicyHead, kept: tuple[Tensor, ...], g_log_prob: Tensor, g_kl: Tensor, g_entropy: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the rows, each [*P] or [], to the head's new parameters."""
    size = block_rows(head)
    if size is None:
        return _pull_back(head, kept, g_log_prob, g_kl, g_entropy)
    heads = split_head(head, size)
    each = [split_rows(x, size, len(heads)) for x in (g_log_prob, g_kl, g_entropy, *kept)]
    kept_blocks = list(zip(*each[3:], strict=True)) or [()] * len(heads)
    blocks = [
        _pull_back(block, kept_block, *g)
        for block, *g, kept_block in zip(heads, *each[:3], kept_blocks, strict=True)
    ]
    return tuple(torch.cat(x) for x in zip(*blocks, strict=True))


def _pull_back(
    head: PolicyHead, kept: tuple[Tensor, ...], g_log_prob: Tensor, g_kl: Tensor, g_entropy: Tensor
) -> tuple[Tensor, ...]:
    if isinstance(head.family, Rows):
        zero = torch.zeros_like(head.new[0])
        return g_log_prob + zero, g_kl + zero, g_entropy + zero
    if isinstance(head.family, Softmax):
        return (_softmax_pull_back(head, kept, g_log_prob, g_kl, g_entropy),)
    size = head.new[0].shape[-1]
    g_log_prob, g_kl, g_entropy = (spread(g, size) for g in (g_log_prob, g_kl, g_entropy))
    d_new: tuple[Tensor, ...] = head.family.vjp(
        g_log_prob, g_kl, g_entropy, head.action, *head.old, *head.new
    )
    if head.noise is None or head.weights is None:
        return d_new
    assert head.family.correction_vjp is not None
    more = head.family.correction_vjp(g_entropy, head.noise, *head.new)
    return tuple(
        d + weighted(head.weights, x.expand(head.weights.shape + d.shape))
        for d, x in zip(d_new, more, strict=True)
    )


def _softmax_pull_back(
    head: PolicyHead, kept: tuple[Tensor, ...], g_log_prob: Tensor, g_kl: Tensor, g_entropy: Tensor
) -> Tensor:
    (old,), (new,), action = head.old, head.new, head.action
    assert isinstance(head.family, Softmax) and action is not None
    old, new = by_action(old, new)
    old_lse, lse, entropy, m, shift = kept
    g_log_prob, g_kl, g_entropy = (columns(g, 2) for g in (g_log_prob, g_kl, g_entropy))
    pulls = head.family.pulls(g_log_prob, g_entropy, entropy, m)
    # The action is written with gradients, so that no forward writes who is hit for the backward.
    g_log_prob, taken, *pulls = written(g_log_prob, action.unsqueeze(-1), *pulls)
    g_kl, g_entropy = written(g_kl, g_entropy)
    hit = hits(taken, new.shape[-1])
    x, y, u = old - old_lse, new - lse, (old - new) - shift
    d_new: Tensor = head.family.vjp(g_log_prob, g_kl, g_entropy, *pulls, m, hit, x, y, u)
    return d_new


VECTOR = 8  # numbers in a vector of AVX2


def spread(g: Tensor, size: int) -> Tensor:
    """Row gradients [*P] over the `size` elements of their rows; a [] gradient stands for all."""
    if g.ndim and size < VECTOR and by_inductor_on_cpu(g):
        # Written out, the gradient of all rows is one flat loop; rows of 6 leave 2 of 8 lanes
        # idle and store by masks: 1.8 times the speed of the backward at D = 6, 3 at D = 3.
        return torch.stack([g] * size, -1)
    return columns(g, 1)


def columns(x: Tensor, more: int) -> Tensor:
    """Rows [*P] with `more` dimensions of size 1 after them; a number [] stays."""
    return x if x.ndim == 0 else x.reshape(*x.shape, *[1] * more)
