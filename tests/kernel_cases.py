"""Minibatches for the kernels, and their oracle: the same loss in float64 by the torch text."""

import contextlib
import dataclasses

import torch

from klppo_compile import eager, nodes
from klppo_compile.distributions import FAMILIES
from klppo_compile.penalty import adaptive
from klppo_compile.records import Factorised, Minibatch, PolicyHead, Softmax

NUMBERS = (1.3, 0.5, 0.2, float("inf"), 0.01, 0.01, 2.0, 0.5, 1e-6, 1e6)
LOSSES = ("loss_objective", "loss_entropy", "loss_critic")


def static(**changes):
    plain = eager.Static("mean", "smooth_l1", True, True, True)
    return dataclasses.replace(plain, **changes)


def head(name, N, D, K=1, eps=0.05, dtype=torch.float32, forbidden=0.0):
    """One head of a registered family; the new policy is `eps` from the old."""
    family = FAMILIES[name]
    if isinstance(family, Softmax):
        old = torch.randn(N, K, D) * 2
        new = old + eps * torch.randn(N, K, D)
        mask = torch.rand(N, K, D) < forbidden
        mask[..., 0] = False
        old, new = (x.masked_fill(mask, -torch.inf).to(dtype) for x in (old, new))
        action = torch.multinomial(old.float().reshape(-1, D).softmax(-1), 1) if N else old[..., 0]
        return PolicyHead(family, action.reshape(N, K).long(), (old,), (new,))
    first = torch.randn(N, D)
    old = (first, torch.rand(N, D) * 0.5 + 0.3)[: len(family.parameters)]
    new = tuple(x * (1 + eps * torch.randn(N, D)) for x in old)
    action = first + 0.5 * torch.randn(N, D)
    if family.squashed:
        action = action.tanh().clamp(-0.99, 0.99)
    if family.name == "bernoulli":
        action = (action > 0).float()
    old, new = (tuple(x.to(dtype) for x in xs) for xs in (old, new))
    extra = {}
    if family.correction is not None:
        extra = {"noise": torch.randn(5, 1, 1), "weights": torch.randn(5).softmax(0)}
        extra["log_volume"] = torch.tensor(0.3)
    return PolicyHead(family, action, old, new, **extra)


def batch(*policy, masks=False, values=None):
    """Samples around the heads, the critic's in rows of their own: `values`. Masked is NaN."""
    exact = [in_float64(h) for h in policy]
    behaviour = sum(eager.rows(dataclasses.replace(h, new=h.old)).log_prob for h in exact).float()
    N, shape = len(behaviour), behaviour.shape if values is None else values
    value = torch.randn(shape) * 3 + 100
    rows = {
        "old_log_prob": behaviour,
        "advantage": torch.randn(N),
        "value": value,
        "value_target": value + torch.randn(shape),
        "old_value": value + 0.3 * torch.randn(shape),
    }
    if masks:
        rows["mask"], rows["value_mask"] = torch.rand(N) < 0.7, torch.rand(shape) < 0.6
        rows["proximal_log_prob"] = behaviour + 0.01
        rows["advantage"][~rows["mask"]] = torch.nan
        rows["value_target"][~rows["value_mask"]] = torch.nan
    return Minibatch(policy, **rows)


def in_float64(record):
    """A head or a minibatch with every number in float64."""

    def cast(x):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            return x.detach().double()
        if isinstance(x, tuple):
            return tuple(cast(y) for y in x)
        return in_float64(x) if isinstance(x, PolicyHead) else x

    fields = {f.name: cast(getattr(record, f.name)) for f in dataclasses.fields(record)}
    return dataclasses.replace(record, **fields)


def leaves(minibatch):
    """What gradients go to, requiring them from now on."""
    found = [x for h in minibatch.policy for x in h.new]
    found += [] if minibatch.value is None else [minibatch.value]
    return [x.requires_grad_() for x in found]


def sizes(family):
    """Columns and heads where a tile changes its shape."""
    if isinstance(FAMILIES[family], Factorised):
        return ((1, 1), (6, 1), (17, 1), (40, 1))
    return ((2, 1), (7, 3), (18, 1), (70, 1))


@contextlib.contextmanager
def poisoned_memory():
    """Fill torch.empty with NaN, so that an output nobody writes can't pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def conforms(minibatch, shape, numbers=NUMBERS, gradient=5e-6, value=3e-5):
    """Check every output and gradient; KL row by row, relatively. All are returned."""
    from klppo_compile.kernels import operators

    exact = in_float64(minibatch)
    inputs, exact_inputs = leaves(minibatch), leaves(exact)
    with poisoned_memory():
        out = operators.loss(minibatch, numbers, shape)
    floats = torch.tensor([float(x) for x in numbers], dtype=torch.float64)
    expected = nodes.loss(exact, floats[:-5], shape)
    count = expected["kl"].numel() if minibatch.mask is None else minibatch.mask.sum()
    expected["next_beta"] = adaptive(floats[0], expected["mean_kl"], count, *floats[-5:])
    assert set(out) == set(expected)
    for name, true in expected.items():
        assert out[name].shape == true.shape, name
        scale = true.detach().abs().max() if true.numel() else 0.0
        if name == "kl_approx":
            # A small difference of log-probs, which float32 has rounded.
            log_prob = expected["log_prob"].detach()
            scale = log_prob.abs().max() if log_prob.numel() else 0.0
        if name == "loss_objective":
            # Gains and losses of its rows cancel.
            gains = (expected["ratio"].detach() * exact.advantage).abs()
            gains = gains if exact.mask is None else gains[exact.mask]
            scale = max(scale, gains.mean() if gains.numel() else 0.0)
        torch.testing.assert_close(
            out[name].double(), true.double(), rtol=value, atol=float(value * scale), msg=name
        )
    torch.testing.assert_close(out["kl"].double(), expected["kl"], rtol=5e-6, atol=1e-15)
    assert bool((out["kl"] >= 0).all())
    names = [name for name in LOSSES if name in expected]
    upstream = [torch.rand_like(expected[name]) for name in names]
    true = torch.autograd.grad([expected[n] for n in names], exact_inputs, upstream)
    with poisoned_memory():
        found = torch.autograd.grad([out[n] for n in names], inputs, [g.float() for g in upstream])
    for x, y in zip(found, true, strict=True):
        assert x.dtype in {torch.float32, inputs[0].dtype}
        scale = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x.double(), y, rtol=0, atol=gradient * scale)
    return out, found
