"""An actor, a critic and a rollout for every kind of policy, small. Plain functions, no fixtures.

A `Case` is data: the class of distribution and how to make its parameters. Tests run over `CASES`.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torchrl.modules.distributions as rl
from tensordict import TensorDict
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from tensordict.nn import distributions as tensordict_distributions
from torch import distributions as td
from torch import nn

OBSERVATIONS, D, A = 4, 3, 5
# Largest per-row error of a float32 KL, relative, and of its gradient, relative to its norm.
KL_ERROR, GRADIENT_ERROR = 3e-6, 2e-5


class Split(nn.Module):
    """Two positive-safe halves: a location and a scale."""

    def forward(self, x):
        loc, scale = x.chunk(2, -1)
        return loc, nn.functional.softplus(scale) + 0.3


class Positive(nn.Module):
    """Two positive halves."""

    def forward(self, x):
        return (nn.functional.softplus(x) + 0.5).chunk(2, -1)


class LowerTriangle(nn.Module):
    """A location and a lower triangle."""

    def forward(self, x):
        loc, entries = x[..., :D], x[..., D:].unflatten(-1, (D, D))
        diagonal = torch.diag_embed(nn.functional.softplus(entries.diagonal(0, -2, -1)) + 0.5)
        return loc, entries.tril(-1) + diagonal


def softmax_head():
    return nn.Sequential(nn.Linear(OBSERVATIONS, A), nn.Softmax(-1))


def logits_head(rows=()):
    return nn.Sequential(nn.Linear(OBSERVATIONS, A * (rows[0] if rows else 1)), *_unflatten(rows))


def _unflatten(rows):
    return [nn.Unflatten(-1, (*rows, A))] if rows else []


def pair_head(split=Split):
    return nn.Sequential(nn.Linear(OBSERVATIONS, 2 * D), split())


def event(kind, dims=1):
    """A class of one row's event made of `kind`'s elements, as users write it."""
    return lambda *args, **kwargs: td.Independent(kind(*args, **kwargs), dims)


def squashed(loc, scale):
    return td.TransformedDistribution(
        td.Independent(td.Normal(loc, scale), 1),
        [td.TanhTransform(), td.AffineTransform(0.5, 1.5)],
    )


def mixture(loc, scale):
    """Two components of equal weight."""
    both = td.Normal(torch.stack([loc, -loc], -1), torch.stack([scale, scale], -1))
    weights = td.Categorical(torch.ones_like(both.loc))
    return td.Independent(td.MixtureSameFamily(weights, both), 1)


@dataclass(frozen=True)
class Case:
    """A kind of policy.

    Attributes:
        kind: class or callable of the distribution, `kwargs` beside its parameters.
        names: of its parameters, which are the tensordict's keys too.
        head: makes the network from observations to the parameters.
        closed: what has a closed form: "k" the KL, "e" the entropy.
        data: makes what else the distribution reads, from the batch.
    """

    name: str
    kind: Any
    names: tuple[str, ...]
    head: Callable[[], nn.Module]
    closed: str = "ke"
    kwargs: dict[str, Any] = field(default_factory=dict)
    data: Callable[[tuple[int, ...]], dict[str, torch.Tensor]] = lambda _batch: {}


def masks(batch):
    mask = torch.rand(*batch, A) > 0.3
    mask[..., 0] = True
    return {"mask": mask}


def sparse(batch):
    return {"indices": torch.stack([torch.randperm(A)[:3] for _ in range(batch[0])])}


LOC, LOGITS, PROBS = ("loc", "scale"), ("logits",), ("probs",)
BOUNDS = {"low": -2.0, "high": 3.0}
TENSOR_BOUNDS = {"low": torch.tensor([-2.0, -1.0, 0.0]), "high": torch.tensor([3.0, 1.0, 4.0])}
NUMPY_BOUNDS = {name: bound.double().numpy() for name, bound in TENSOR_BOUNDS.items()}
CASES = {
    case.name: case
    for case in (
        Case("independent normal", rl.IndependentNormal, LOC, pair_head),
        Case("Independent(Normal)", event(td.Normal), LOC, pair_head),
        Case("plain Normal", td.Normal, LOC, pair_head),
        Case("TanhNormal", rl.TanhNormal, LOC, pair_head, "k"),
        Case("TanhNormal bounds", rl.TanhNormal, LOC, pair_head, "k", BOUNDS),
        Case("TanhNormal tensor bounds", rl.TanhNormal, LOC, pair_head, "k", TENSOR_BOUNDS),
        Case("TanhNormal NumPy bounds", rl.TanhNormal, LOC, pair_head, "k", NUMPY_BOUNDS),
        Case("TanhNormal tanh_loc", rl.TanhNormal, LOC, pair_head, "k", {"tanh_loc": True}),
        Case("TanhNormal unsafe", rl.TanhNormal, LOC, pair_head, "k", {"safe_tanh": False}),
        Case("squashed Normal", squashed, LOC, pair_head, "k"),
        Case("Categorical", td.Categorical, LOGITS, logits_head),
        Case("OneHotCategorical", td.OneHotCategorical, LOGITS, logits_head),
        Case("torchrl OneHotCategorical", rl.OneHotCategorical, LOGITS, logits_head),
        Case(
            "tensordict OneHotCategorical",
            tensordict_distributions.OneHotCategorical,
            LOGITS,
            logits_head,
        ),
        Case(
            "MaskedCategorical",
            rl.MaskedCategorical,
            ("logits", "mask"),
            logits_head,
            data=masks,
        ),
        Case(
            "MaskedCategorical indices",
            rl.MaskedCategorical,
            ("logits", "indices"),
            logits_head,
            data=sparse,
        ),
        Case(
            "MaskedOneHotCategorical",
            rl.MaskedOneHotCategorical,
            ("logits", "mask"),
            logits_head,
            data=masks,
        ),
        Case("Ordinal", rl.Ordinal, ("scores",), logits_head),
        Case("OneHotOrdinal", rl.OneHotOrdinal, ("scores",), logits_head),
        Case(
            "Bernoulli",
            td.Bernoulli,
            LOGITS,
            partial(nn.Linear, OBSERVATIONS, D),
        ),
        Case(
            "Independent(Bernoulli)",
            event(td.Bernoulli),
            LOGITS,
            partial(nn.Linear, OBSERVATIONS, D),
        ),
        Case("multi-discrete", event(td.Categorical), LOGITS, partial(logits_head, (D,))),
        Case("Categorical probs", td.Categorical, PROBS, softmax_head),
        Case("OneHotCategorical probs", td.OneHotCategorical, PROBS, softmax_head),
        Case(
            "Bernoulli probs",
            td.Bernoulli,
            PROBS,
            lambda: nn.Sequential(nn.Linear(OBSERVATIONS, D), nn.Sigmoid()),
        ),
        Case(
            "Gamma",
            event(td.Gamma),
            ("concentration", "rate"),
            partial(pair_head, Positive),
        ),
        Case(
            "Beta",
            event(td.Beta),
            ("concentration1", "concentration0"),
            partial(pair_head, Positive),
        ),
        Case(
            "Dirichlet",
            td.Dirichlet,
            ("concentration",),
            lambda: nn.Sequential(nn.Linear(OBSERVATIONS, D), nn.Softplus()),
        ),
        Case(
            "MultivariateNormal",
            td.MultivariateNormal,
            ("loc", "scale_tril"),
            lambda: nn.Sequential(nn.Linear(OBSERVATIONS, D + D * D), LowerTriangle()),
        ),
        Case("LogNormal", event(td.LogNormal), LOC, pair_head),
        Case(
            "StudentT",
            event(partial(td.StudentT, 5.0)),
            LOC,
            pair_head,
            "e",
        ),
        Case("mixture", mixture, LOC, pair_head, ""),
    )
}
# computed by torch.distributions, which may read on the host
NOT_OURS = ["Gamma", "Beta", "Dirichlet", "MultivariateNormal", "LogNormal", "StudentT", "mixture"]
CLOSED = [name for name, case in CASES.items() if "k" in case.closed]
FAMILIES = ("Independent(Normal)", "TanhNormal", "Categorical", "Independent(Bernoulli)")


def actor_of(case, in_keys=("observation",), net=None):
    """An actor of a case; `net` makes the parameters, the case's own head by default."""
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            net or case.head(),
            in_keys=list(in_keys),
            out_keys=[name for name in case.names if name not in ("mask", "indices")],
        ),
        ProbabilisticTensorDictModule(
            in_keys=list(case.names),
            out_keys=["action"],
            distribution_class=case.kind,
            distribution_kwargs=dict(case.kwargs),
            return_log_prob=True,
            default_interaction_type=InteractionType.RANDOM,
        ),
    )


def critic_of(in_keys=("observation",), width=OBSERVATIONS):
    return TensorDictModule(nn.Linear(width, 1), in_keys=list(in_keys), out_keys=["state_value"])


def nudged(module, size=0.05, seed=1):
    """A copy with every parameter moved by about `size`: the policy that collected the data."""
    generator, out = torch.Generator().manual_seed(seed), deepcopy(module)
    for p in out.parameters():
        p.data += size * torch.randn(p.shape, generator=generator).to(p)
    return out


def rollout(case, actor, batch=(8,), moved=0.05, dtype=torch.float32):
    """What a collector and an advantage estimator would have written."""
    data = TensorDict(
        {"observation": torch.randn(*batch, OBSERVATIONS, dtype=dtype), **case.data(batch)},
        batch_size=batch,
    )
    with torch.no_grad():
        data = nudged(actor, moved)(data)
    for key in ("advantage", "value_target", "state_value"):
        data[key] = torch.randn(*batch, 1, dtype=dtype)
    return data


def problem(name, batch=(8,), moved=0.05, dtype=torch.float32, seed=0):
    """A case's actor, critic and rollout."""
    torch.manual_seed(seed)
    case = CASES[name]
    actor, critic = actor_of(case).to(dtype), critic_of().to(dtype)
    if name == "plain Normal":
        critic = TensorDictModule(
            nn.Linear(OBSERVATIONS, 1), in_keys=["observation"], out_keys=["state_value"]
        ).to(dtype)
    return actor, critic, rollout(case, actor, batch, moved, dtype)


def total(out):
    """The loss a trainer differentiates."""
    return sum(x.sum() for key, x in out.items() if key.startswith("loss"))


def gradients(module):
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
