"""Actions to rows: a softmax head's terms summed over its actions, and pulled back to logits."""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from klppo_compile.inductor import chunks, hits, rough_exp, row_sums, written
from klppo_compile.passes import eager_on_cpu, few
from klppo_compile.records import HeadRows, PolicyHead, Softmax
from klppo_compile.series import retaken
from klppo_compile.vocabulary import by_inductor_on_cpu, exp, where


def rows(head: PolicyHead, keep: bool = False) -> HeadRows:
    """Rows from the moments of their actions; `keep` for a backward in eager mode on a CPU."""
    family, (old,), (new,), action = head.family, head.old, head.new, head.action
    assert isinstance(family, Softmax) and action is not None
    parts, q, old_top, level, shift = _centred(family, chunks(old, new))
    moments, at_hand = zip(*[_moments(family, part, level, shift) for part in parts], strict=True)
    p, u, psi_u, y = (reduce(torch.add, x) for x in zip(*moments, strict=True))  # [*P, K, 1]
    log_q, log_p = q.log(), p.log()
    actions = new.shape[-1]
    action = action.unsqueeze(-1)
    index = action.clamp(0, actions - 1).long()  # torch gathers by no smaller integers
    picked = where(index == action, new.gather(-1, index) - level, torch.nan)
    log_prob, kl, entropy, m = family.close(picked, log_q, log_p, u / q, psi_u / q, y / p)
    kept: tuple[Tensor, ...] = (old_top + log_q, level + log_p, entropy, m, shift)
    if keep and eager_on_cpu(new):  # In backward each would be an operator or more.
        ((each_q, each_p, *rest),) = at_hand
        kept += (each_q / q, each_p / p, *rest)
    log_prob, kl, entropy = (x.squeeze(-1) for x in (log_prob, kl, entropy))
    if entropy.shape[-1] == 1:
        return HeadRows(log_prob.squeeze(-1), kl.squeeze(-1), entropy, kept)
    log_prob, kl = row_sums(log_prob, kl)
    return HeadRows(log_prob, kl, entropy, kept)


class _Part(NamedTuple):
    """A chunk of the actions, and what of it takes but the largest old logit: [*P, K, A] each."""

    new: Tensor
    x: Tensor
    q: Tensor
    fall: Tensor


def _part(family: Softmax, old_top: Tensor, old: Tensor, new: Tensor) -> _Part:
    x = old - old_top
    return _Part(new, x, exp(x), family.fall(x, old, new))


def _centred(
    family: Softmax, logits: list[tuple[Tensor, ...]]
) -> tuple[list[_Part], Tensor, Tensor, Tensor, Tensor]:
    """The parts; the sum of q and the constants, old, new, old less new: [*P, K, 1] each."""
    tops = zip(*logits, strict=True)
    old_top, top = (reduce(torch.maximum, [_largest(x) for x in each]) for each in tops)
    parts = [_part(family, old_top, *x) for x in logits]
    compiled = by_inductor_on_cpu(old_top)
    weights = [rough_exp(part.x) if compiled else part.q for part in parts]
    total = reduce(torch.add, [w.sum(-1, True) for w in weights])
    falls = [(w * part.fall).sum(-1, True) for w, part in zip(weights, parts, strict=True)]
    level = family.level(old_top, top, reduce(torch.add, falls) / total)
    if not compiled:
        return parts, total, old_top, level, old_top - level
    old_top, level, shift = written(old_top, level, old_top - level)
    # Anew, of what is just written: else the loop above writes q and the falls as well, and the
    # next reads them, which takes longer than to compute them.
    parts = [_part(family, old_top, *x) for x in logits]
    return parts, reduce(torch.add, [part.q.sum(-1, True) for part in parts]), old_top, level, shift


def _moments(
    family: Softmax, part: _Part, level: Tensor, shift: Tensor
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """What is summed over actions beside q, [*P, K, 1] each; q, p, u and psi(u), [*P, K, A]."""
    y, u = part.new - level, part.fall - shift
    p = exp(y)
    *moments, psi_u = family.moments(part.q, p, retaken(p, u, part.x - y - u), u, y)
    return [x.sum(-1, True) for x in (p, *moments)], (part.q, p, u, psi_u)


def _largest(x: Tensor) -> Tensor:
    """The largest of every row [*P, K, A]: [*P, K, 1]."""
    actions = x.shape[-1]
    if 8 <= actions < 32 and eager_on_cpu(x) and not few(x):
        # torch takes the maxima of short rows number by number, of two halves in vectors.
        x = torch.maximum(x[..., : (actions + 1) // 2], x[..., actions // 2 :])
    return x.amax(-1, True)


def pull_back(
    head: PolicyHead, kept: tuple[Tensor, ...], g_log_prob: Tensor, g_kl: Tensor, g_entropy: Tensor
) -> Tensor:
    """Gradients of the rows, each [*P, 1, 1] or [], to the logits."""
    (old,), (new,), action = head.old, head.new, head.action
    assert isinstance(head.family, Softmax) and action is not None
    old_lse, lse, entropy, m, shift, *at_hand = kept
    pulls = head.family.pulls(g_log_prob, g_entropy, entropy, m)
    # The action is written with gradients, so that no forward writes who is hit for the backward.
    g_log_prob, taken, *pulls = written(g_log_prob, action.unsqueeze(-1), *pulls)
    g_kl, g_entropy = written(g_kl, g_entropy)
    d_new: list[Tensor] = []
    first = 0
    for o, n in chunks(old, new):
        last = first + n.shape[-1]
        hit, first = hits(taken, first, last), last
        given = (g_log_prob, g_kl, g_entropy, *pulls, m, hit)
        if at_hand:
            q, p, *rest = at_hand
            d_new.append(head.family.vjp_of(*given, q, p, n - lse, *rest))
        else:
            x, y, u = o - old_lse, n - lse, (o - n) - shift
            d_new.append(head.family.vjp(*given, x, y, u))
    return d_new[0] if len(d_new) == 1 else torch.cat(d_new, -1)
