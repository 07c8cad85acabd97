"""What the networks share with the loss and each other, and that it stays shared."""

import io
import pickle
from copy import deepcopy

import pytest
import torch
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn

from klppo_compile import KLPENPPOLoss
from tests.builders import CASES, OBSERVATIONS, actor_of, critic_of, gradients, rollout, total

TRUNK = ("module", "0", "module", "weight")


def shared(**options):
    """A loss over two networks with a common trunk, and a rollout."""
    torch.manual_seed(0)
    common = TensorDictModule(nn.Linear(OBSERVATIONS, 6), ["observation"], ["hidden"])
    head = actor_of(CASES["Categorical"], ["hidden"], nn.Linear(6, 5))
    actor = ProbabilisticTensorDictSequential(common, *head.module)
    critic = TensorDictSequential(common, critic_of(["hidden"], 6))
    data = rollout(CASES["Categorical"], actor).exclude("hidden")
    return KLPENPPOLoss(actor, critic, **options), data


def saved(loss):
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "itself": lambda loss: loss,
    "deepcopy": deepcopy,
    "pickle": lambda loss: pickle.loads(pickle.dumps(loss)),  # noqa: S301 - our own bytes
    "torch.save": saved,
    "double and back": lambda loss: loss.double().float(),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("separate_losses", [False, True])
def test_a_shared_trunk_stays_shared(copy, separate_losses):
    """torchrl's deepcopy parts it from the critic and from `loss.actor_network`."""
    loss, _ = shared(separate_losses=separate_losses)
    loss = copy(loss)
    with torch.no_grad():
        loss.actor_network_params[TRUNK].add_(1.0)
    moved = loss.actor_network_params[TRUNK].data
    assert torch.equal(loss.critic_network_params[TRUNK].data, moved)
    assert torch.equal(loss.actor_network.module[0].module.weight.data, moved)


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("separate_losses", [False, True])
def test_copies_have_the_same_gradients(copy, functional, separate_losses):
    loss, data = shared(functional=functional, separate_losses=separate_losses)
    total(loss(data)).backward()
    expected, names = gradients(loss), [name for name, _ in loss.named_parameters()]
    loss.zero_grad()
    loss.reset()
    other = copy(loss)
    total(other(data)).backward()
    assert [name for name, _ in other.named_parameters()] == names
    torch.testing.assert_close(gradients(other), expected)


@pytest.mark.parametrize("functional", [True, False])
def test_a_copy_of_a_compiled_loss_is_not_the_original(functional):
    """`loss.compile` binds what it makes to the original's parameters and beta."""
    loss, data = shared(functional=functional, dtarg=1e-6)
    loss.compile(fullgraph=True)
    loss(data)
    other, before = deepcopy(loss), loss.beta.item()
    other.beta = 7.0
    total(other(data)).backward()
    assert loss.beta == before
    assert other.beta == 14.0
    assert all(p.grad is None for p in loss.parameters())
    assert any(p.grad is not None for p in other.parameters())


def test_a_copy_trains_apart():
    loss, data = shared()
    other = deepcopy(loss)
    theirs = {p.data_ptr() for p in other.parameters()}
    assert not theirs & {p.data_ptr() for p in loss.parameters()}
    other(data)
    assert (loss.beta, other.beta) == (1.0, 2.0)
