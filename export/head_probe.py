"""Which distribution is made of a head, as a few numbers: files that differ in it don't compare.

A temperature, a clamp, the bounds of an action are constants of a callable or a class. No name of a
family tells them, and the KL to a policy that was read with others is the KL to nobody's.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor
from torch import distributions as td

from klppo_compile.policy import ActorHead
from klppo_compile.recognise import Described
from klppo_compile.records import Softmax

WIDE = {"loc", "logits"}
"""Parameters that may be any number; what squashes or clamps them shows far from 0."""
FORBIDDEN = -1e4  # in place of the logit of a forbidden action, which is infinite


def probed(head: ActorHead, parameters: Mapping[str, Tensor]) -> list[float]:
    """Numbers of the distribution that a head makes of parameters made up for it.

    Args:
        head: the loss's.
        parameters: one row of each, by name; only its shape and type count.

    Returns:
        The same in every process but for rounding; none where it refuses what was made up, as a
        covariance that isn't one.
    """
    made_up = {name: _made_up(name, row) for name, row in parameters.items()}
    found: list[float] = []
    with torch.no_grad(), suppress(Exception):  # whatever a foreign distribution raises
        made = head.read(made_up)
        tensors = _of_described(made) if isinstance(made, Described) else _of_any(made)
        for x in tensors:
            found += _summary(x)
    return found


def _made_up(name: str, row: Tensor) -> Tensor:
    """Two rows in the place of one."""
    shape = (2, *row.shape)
    if row.dtype == torch.bool:
        return torch.ones(shape, dtype=row.dtype)
    if not row.is_floating_point():
        return torch.arange(row.shape[-1]).expand(shape).to(row.dtype)
    low, high = (-20.0, 20.0) if name in WIDE else (0.1, 0.9)
    return torch.linspace(low, high, 2 * row.numel()).reshape(shape).to(row.dtype)


def _of_described(found: Described) -> Iterator[Tensor]:
    yield torch.tensor([found.event_dims, found.one_hot, found.safe], dtype=torch.float32)
    for x in found.parameters:
        # The same to a softmax: one reader normalises its logits, another doesn't.
        yield x.log_softmax(-1) if isinstance(found.family, Softmax) else x
    for bound in (found.centre, found.half_width):
        yield torch.as_tensor(bound, dtype=torch.float32)


def _of_any(found: td.Distribution) -> Iterator[Tensor]:
    """A point that it gives mass, and how much, as far as it can tell."""
    inner = found
    while isinstance(inner, td.Independent):
        inner = inner.base_dist
    if isinstance(inner, td.TransformedDistribution):
        point = inner.base_dist.mean
        for transform in inner.transforms:
            point = transform(point)
    else:
        point = inner.mean
    yield point
    yield found.log_prob(point)


def _summary(x: Tensor) -> list[float]:
    flat = x.detach().cpu().double().reshape(-1).nan_to_num(0.0, FORBIDDEN, FORBIDDEN)
    signs = torch.arange(1.0, flat.numel() + 1.0, dtype=torch.float64).cos()
    return [
        float(f"{mean:.6g}") for mean in (flat.mean(), flat.abs().mean(), (flat * signs).mean())
    ]
