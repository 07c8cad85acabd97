"""Words that are assigned to a built loss: they hold from the next call on, or are refused."""

import copy
import io

import pytest
import torch
from torch.distributions import Distribution

from klppo_compile import KLPENPPOLoss, compile_loss
from tests.builders import problem


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """As torchrl leaves it: its own distributions don't stand torch's checks."""
    monkeypatch.setattr(Distribution, "_validate_args", False)


def loaded(loss):
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def is_sampled(loss, data):
    return loss(data)["entropy"] != loss(data)["entropy"]


@pytest.mark.parametrize("copied", [lambda loss: loss, copy.deepcopy, loaded])
def test_an_entropy_method_takes_effect_when_assigned(copied):
    actor, critic, data = problem("TanhNormal")
    exact = KLPENPPOLoss(actor, critic, entropy_method="quadrature")
    expected = exact(data)["entropy"]
    loss = KLPENPPOLoss(actor, critic)
    loss.entropy_method = "quadrature"
    loss = copied(loss.double().float())
    assert loss(data)["entropy"] == expected
    loss.entropy_method = "sample"
    assert is_sampled(copied(loss), data)
    assert loss.state_dict().keys() == exact.state_dict().keys()


@pytest.mark.parametrize("bare", [False, True], ids=["compile_loss", "torch.compile"])
def test_compiled_code_follows_an_assigned_method(bare):
    actor, critic, data = problem("TanhNormal")
    loss = KLPENPPOLoss(actor, critic)
    expected = KLPENPPOLoss(actor, critic, entropy_method="quadrature")(data)["entropy"]
    compiled = (
        torch.compile(loss, backend="aot_eager", fullgraph=True)
        if bare
        else compile_loss(loss, backend="aot_eager")
    )
    assert is_sampled(compiled, data)
    loss.entropy_method = "quadrature"
    torch.testing.assert_close(compiled(data)["entropy"], expected)
    assert not is_sampled(compiled, data)
    loss.entropy_method = "sample"
    assert is_sampled(compiled, data)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("beta_update", "Manual", "beta_update must be one of 'forward', 'manual'; got 'Manual'"),
        ("entropy_method", None, "entropy_method must be one of 'sample', 'quadrature'; got None"),
    ],
)
def test_a_word_that_is_none_is_refused_and_changes_nothing(name, value, words):
    loss = KLPENPPOLoss(*problem("TanhNormal")[:2])
    before = getattr(loss, name)
    with pytest.raises(ValueError, match=words):
        setattr(loss, name, value)
    assert getattr(loss, name) == before
