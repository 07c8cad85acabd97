"""Elements to rows: a family's elementwise terms summed over an event, and pulled back to the head.

What is summed over a minibatch is not here (`eager`).
"""

import torch
from torch import Tensor

from klppo_compile import softmax
from klppo_compile.blocks import block_rows, split_head, split_rows
from klppo_compile.inductor import row_sums
from klppo_compile.records import Factorised, HeadRows, PolicyHead, Rows, Softmax
from klppo_compile.vocabulary import by_inductor_on_cpu


def rows(head: PolicyHead) -> HeadRows:
    """A head's log-prob, KL and entropy."""
    size = block_rows(head)
    if size is None:
        return _rows(head, keep=True)
    blocks = [_rows(block, keep=False) for block in split_head(head, size)]
    return HeadRows(
        torch.cat([b.log_prob for b in blocks]),
        torch.cat([b.kl for b in blocks]),
        torch.cat([b.entropy for b in blocks]),
        tuple(torch.cat(x) for x in zip(*(b.kept for b in blocks), strict=True)),
    )


def _rows(head: PolicyHead, keep: bool) -> HeadRows:
    if isinstance(head.family, Rows):
        log_prob, kl, entropy = head.new
        return HeadRows(log_prob, kl, entropy.unsqueeze(-1), ())
    if isinstance(head.family, Softmax):
        return softmax.rows(head, keep)
    return factorised_rows(head)


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
        g = (columns(g, 2) for g in (g_log_prob, g_kl, g_entropy))
        return (softmax.pull_back(head, kept, *g),)
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
