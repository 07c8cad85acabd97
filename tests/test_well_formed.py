"""What the function refuses: in the same words on every backend, before anything is computed."""

import dataclasses

import pytest
import torch

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.backends import INSTALLED
from tests.kernel_cases import batch, head

BACKENDS = ["torch", pytest.param("triton", marks=pytest.mark.skipif(not INSTALLED, reason="none"))]
DEFAULT = LossConfig(clip_value=0.2)
both = pytest.mark.parametrize("backend", BACKENDS)
# The interpreter is numpy: without a row that counts, a share is 0 / 0, selected away later.
pytestmark = pytest.mark.filterwarnings("ignore:invalid:RuntimeWarning")


def with_head(minibatch, **changes):
    (h,) = minibatch.policy
    return dataclasses.replace(minibatch, policy=(dataclasses.replace(h, **changes),))


def of(name, **changes):
    """A minibatch of 6 rows, each change made by a function of what was there."""
    minibatch = batch(head(name, 6, 4), masks=True)
    (h,) = minibatch.policy
    fields = {x.name for x in dataclasses.fields(h)}
    inside = {key: change(getattr(h, key)) for key, change in changes.items() if key in fields}
    minibatch = with_head(minibatch, **inside)
    outside = {k: change(getattr(minibatch, k)) for k, change in changes.items() if k not in fields}
    return dataclasses.replace(minibatch, **outside)


def each(change):
    return lambda xs: tuple(map(change, xs))


REFUSED = {
    "mask of floats": ("normal", {"mask": torch.Tensor.float}, r"'mask' must be bool.* Use .bool"),
    "mask of bytes": ("normal", {"mask": torch.Tensor.byte}, r"'mask' must be bool.*torch.uint8"),
    "value mask": ("categorical", {"value_mask": torch.Tensor.long}, "'value_mask' must be bool"),
    "mask of one": ("normal", {"mask": lambda x: x[:1]}, r"'mask' must have .*\[6\]; got \[1\]"),
    "integers": ("normal", {"value_target": torch.Tensor.long}, "'value_target' must be floating"),
    "bools": ("normal", {"old_log_prob": torch.Tensor.bool}, "'old_log_prob' must be floating"),
    "complex": ("normal", {"value": lambda x: x + 0j}, "'value' must be floating .*complex64"),
    "complex action": ("bernoulli", {"action": lambda x: x + 0j}, "'action' must hold real num"),
    "action of bools": ("categorical", {"action": torch.Tensor.bool}, "must hold integer indices"),
    "parameters": ("normal", {"old": each(torch.Tensor.int)}, "'old loc' must be .*'old scale' mu"),
    "logits": ("categorical", {"new": each(torch.Tensor.long)}, "'new logits' must be floating"),
    "short advantage": (
        "normal",
        {"advantage": lambda x: x[:5]},
        r"'advantage' .*\[6\]; got \[5\]",
    ),
    "one dimension": ("categorical", {"new": each(lambda x: x[0, 0])}, r"must be \[\*P, K, A\],"),
    "no dimension": ("normal", {"new": each(lambda x: x[0, 0])}, r"must be \[\*P, D\], .*got \[\]"),
    "no action": ("categorical", {"new": each(lambda x: x[..., :0])}, "its last size 1 or more"),
    "no parameter": ("normal", {"new": lambda _: ()}, r"got an action, 2 old and 0 new"),
    "nor action": ("normal", {"action": lambda _: None}, r"got no action, 2 old and 2 new"),
    "sparse": ("normal", {"advantage": torch.Tensor.to_sparse}, r"dense; got .* Use .to_dense\(\)"),
    "device": ("normal", {"old": each(lambda x: x.to("meta"))}, "must be on the device of old_log"),
    "noise": ("normal", {"noise": lambda _: torch.randn(5, 1, 1)}, "normal head takes no noise"),
    "unit": ("categorical", {"log_volume": lambda _: torch.ones(6)}, "takes no log_volume"),
    "units": (
        "normal",
        {"log_volume": lambda _: torch.ones(6, 1)},
        r"'log_volume' must .*\[6, 1",
    ),
    "few weights": ("tanh_normal", {"weights": lambda x: x[:4]}, r"'weights' .*\[5\]; got \[4\]"),
    "whole weights": ("tanh_normal", {"weights": torch.Tensor.long}, "'weights' must be floating"),
    "no weights": ("tanh_normal", {"weights": lambda _: None}, "needs noise .* and its weights"),
    "no noise": ("tanh_normal", {"noise": lambda _: None}, "needs noise .* and its weights"),
    "flat noise": (
        "tanh_normal",
        {"noise": lambda x: x[:, 0, 0]},
        r"'noise' must be \[S, ..., D\]",
    ),
    "rows of noise": (
        "tanh_normal",
        {"noise": lambda x: x.expand(5, 3, 4)},
        r"like the parameters, \[6, 4\], or 1 there; got \[5, 3, 4\]",
    ),
}


@both
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together(case, backend):
    name, changes, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        klpen_ppo_loss(of(name, **changes), 1.0, DEFAULT, backend)


@both
@pytest.mark.parametrize(("field", "x"), [("old_log_prob", None), ("value", [1.0] * 6)])
def test_what_is_no_tensor(field, x, backend):
    with pytest.raises(TypeError, match=f"'{field}' must be a tensor; got .* Use torch.as_tensor"):
        klpen_ppo_loss(of("normal", **{field: lambda _: x}), 1.0, DEFAULT, backend)


@both
@pytest.mark.parametrize(
    ("beta", "changes", "words"),
    [
        (torch.ones(2), {}, r"beta must be one number; got \[2\]"),
        (torch.ones(0), {}, r"beta must be one number; got \[0\]"),
        (torch.tensor(1.0 + 1j), {}, "beta must be one number; got .* torch.complex64"),
        ("1", {}, "beta must be a float or a scalar tensor; got '1'"),
        (True, {}, "beta must be a float or a scalar tensor; got True"),
        (1.0, {"dtarg": torch.ones(3)}, r"dtarg must be one number; got \[3\]"),
        (1.0, {"clip_value": "0.2"}, "clip_value must be a float"),
        (1.0, {"entropy_coeff": (0.1, 0.2)}, "one per action head, 1; got 2"),
        (1.0, {"entropy_coeff": ()}, "one per action head, 1; got 0"),
        (1.0, {"entropy_coeff": torch.ones(2)}, r"entropy_coeff must be one number; got \[2\]"),
    ],
)
def test_what_is_no_number(beta, changes, words, backend):
    config = dataclasses.replace(DEFAULT, **changes)
    with pytest.raises(ValueError, match=words):
        klpen_ppo_loss(of("normal"), beta, config, backend)


KINDS = {
    "bernoulli": (torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16),
    "normal": (torch.int64,),
    "categorical": (torch.uint8, torch.int32, torch.uint16, torch.uint32, torch.uint64),
}


@both
@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n, ds in KINDS.items() for d in ds])
def test_an_action_of_any_kind_of_number(name, dtype, backend):
    plain = of(name) if name != "normal" else of(name, action=torch.Tensor.round)
    (h,) = plain.policy
    found = []
    for minibatch in (plain, with_head(plain, action=h.action.to(dtype))):
        new = tuple(x.clone().requires_grad_() for x in h.new)
        out = klpen_ppo_loss(with_head(minibatch, new=new), 1.0, DEFAULT, backend)
        found.append((out.loss_objective, *torch.autograd.grad(out.loss_objective, new)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.skipif(not INSTALLED, reason="Triton has no wheel here")
@pytest.mark.parametrize("name", ["normal", "categorical"])
@pytest.mark.parametrize("counts", [True, False])
def test_what_all_rows_share(name, counts):
    """Strides of 0: a mask, samples, an action and parameters that are one row's, expanded."""

    def share(x):
        return x[:1].expand_as(x)

    changes = dict.fromkeys(("advantage", "old_log_prob", "value_target", "action"), share)
    changes |= {"mask": lambda x: torch.tensor(counts).expand_as(x), "value_mask": lambda _: None}
    shared = of(name, **changes, old=each(share), new=each(share))
    (h,) = shared.policy
    found = []
    for backend in ("torch", "triton"):
        new = tuple(x.detach().requires_grad_() for x in h.new)
        out = klpen_ppo_loss(with_head(shared, new=new), 1.0, DEFAULT, backend)
        grads = torch.autograd.grad(out.loss_objective + out.loss_entropy, new)
        found.append((out.loss_objective, out.kl, out.entropy, out.loss_critic, *grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6, equal_nan=True)
