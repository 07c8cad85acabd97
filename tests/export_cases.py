"""Losses and rollouts for the tests of the export room, and the truth about them in float64."""

import sys
from copy import deepcopy

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import distributions as td
from torch import nn

from klppo_compile import KLPENPPOLoss
from tests.builders import CASES, A, actor_of, critic_of, nudged, problem

ROWS = 48


def loss_of(name, **kwargs):
    """A case of `builders` as a loss and its rollout."""
    # torchrl's distributions don't stand torch's checks, which the tests switch on.
    checks = td.Distribution._validate_args
    td.Distribution.set_default_validate_args(False)
    try:
        actor, critic, rollout = problem(name, (ROWS,))
    finally:
        td.Distribution.set_default_validate_args(checks)
    return KLPENPPOLoss(actor, critic, **kwargs), rollout


def categorical_loss():
    """What `klppo export tests.export_cases:categorical_loss` exports."""
    return loss_of("Categorical", beta=1.0)


def bare_loss():
    """A factory without an example."""
    return categorical_loss()[0]


def number():
    """A factory of something else."""
    return 3


def backwards():
    """A factory that returns the two in the other order."""
    return categorical_loss()[::-1]


def leaves():
    """A factory that ends the process."""
    sys.exit(3)


def broken():
    """A factory that fails."""
    return {}["weights"]


def collected(actor, critic, data):
    """A rollout of a slightly different policy over these observations."""
    with torch.no_grad():
        data = critic(nudged(actor)(data))
    batch = data.batch_size
    data["advantage"] = torch.randn(*batch, 1)
    data["value_target"] = data["state_value"] + torch.randn(*batch, 1)
    return data


class Joined(nn.Module):
    """Several observations through one linear layer."""

    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, *parts):
        return self.linear(torch.cat(parts, -1))


def nested_loss(**kwargs):
    """Observations under nested keys."""
    keys = [("agents", "position"), ("agents", "speed")]
    observations = {"position": torch.randn(ROWS, 3), "speed": torch.randn(ROWS, 2)}
    actor = actor_of(CASES["Categorical"], keys, Joined(5, A))
    critic = TensorDictModule(Joined(5, 1), keys, ["state_value"])
    data = TensorDict({"agents": observations}, batch_size=[ROWS])
    return KLPENPPOLoss(actor, critic, **kwargs), collected(actor, critic, data)


class Centred(nn.Module):
    """Observations less a million, in their own type; then float32."""

    def forward(self, x):
        return (x - 1e6).float()


def centred_loss():
    """Networks that read float64."""
    actor = actor_of(CASES["Categorical"], net=nn.Sequential(Centred(), nn.Linear(4, A)))
    net = nn.Sequential(Centred(), nn.Linear(4, 1))
    critic = TensorDictModule(net, ["observation"], ["state_value"])
    observations = 1e6 + torch.randn(ROWS, 4, dtype=torch.float64)
    data = TensorDict({"observation": observations}, batch_size=[ROWS])
    return KLPENPPOLoss(actor, critic), collected(actor, critic, data)


def loss_with(layer, **kwargs):
    """A categorical actor with a layer of its own between two linear ones."""
    net = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, A))
    actor, critic = actor_of(CASES["Categorical"], net=net), critic_of()
    data = TensorDict({"observation": torch.randn(ROWS, 4)}, batch_size=[ROWS])
    return KLPENPPOLoss(actor, critic, **kwargs), collected(actor, critic, data)


def masked_rows_loss(**kwargs):
    """Rows that a collector marked as padding, full of NaN."""
    loss, data = loss_of("Categorical", **kwargs)
    mask = torch.rand(ROWS) < 0.7
    mask[0] = True
    data["collector"] = TensorDict({"mask": mask}, batch_size=[ROWS])
    data["advantage"][~mask] = torch.nan
    return loss, data


# ---- the truth


def distribution(name, parameters):
    """torch's own, float64, from a case's parameters."""
    p = {k: torch.as_tensor(np.asarray(x)) for k, x in parameters.items()}
    p = {k: x.double() if x.is_floating_point() else x for k, x in p.items()}
    if name == "Categorical":
        return td.Categorical(logits=p["logits"], validate_args=False)
    if name == "MaskedCategorical":
        logits = p["logits"].masked_fill(~p["mask"], -torch.inf)
        return td.Categorical(logits=logits, validate_args=False)
    if name == "multi-discrete":
        return td.Independent(td.Categorical(logits=p["logits"]), 1)
    if name == "Independent(Normal)":
        return td.Independent(td.Normal(p["loc"], p["scale"]), 1)
    assert name == "Independent(Bernoulli)"
    return td.Independent(td.Bernoulli(logits=p["logits"]), 1)


def kl(old, new):
    """KL(old || new), impossible actions left out."""
    if isinstance(old, td.Categorical):
        terms = old.probs * (old.logits - new.logits)
        return torch.where(old.probs > 0, terms, 0.0).sum(-1)
    return td.kl_divergence(old, new)


def entropy(dist):
    """In nats, impossible actions left out."""
    if isinstance(dist, td.Categorical):
        return -torch.where(dist.probs > 0, dist.probs * dist.logits, 0.0).sum(-1)
    return dist.entropy()


def oracle(name, loss, data, new, beta):
    """The loss's outputs by the definitions, in float64, given the new policy's parameters."""
    double = {k: x.double() if x.is_floating_point() else x for k, x in data.items()}
    case = CASES[name]
    old = distribution(name, {k: data[k] for k in case.names})
    fixed = {k: data[k] for k in case.names if k in ("mask", "indices")}
    policy = distribution(name, {**new, **fixed})
    log_prob = policy.log_prob(double["action"])
    ratio = (log_prob - double["action_log_prob"]).exp()
    advantage = double["advantage"].squeeze(-1)
    distance = kl(old, policy)
    critic = deepcopy(loss.get_stateful_net("critic_network")).double()
    value = critic(TensorDict({"observation": double["observation"]}, batch_size=data.batch_size))[
        "state_value"
    ]
    error = (value - double["value_target"]).squeeze(-1).detach()
    distances = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
    mean_kl = float(distance.mean())
    factor = 2.0 if mean_kl > 0.015 else 0.5 if mean_kl < 0.01 / 1.5 else 1.0
    return {
        "loss_objective": beta * mean_kl - float((ratio * advantage).mean()),
        "loss_entropy": -0.01 * float(entropy(policy).mean()),
        "loss_critic": float(distances.mean()),
        "kl": distance.unsqueeze(-1).numpy(),
        "log_prob": log_prob.numpy(),
        "ratio": ratio.numpy(),
        "entropy_rows": entropy(policy).numpy(),
        "beta_next": beta * factor,
    }
