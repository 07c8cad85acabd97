"""The operators under torch: opcheck, one graph, beta that moves inside the step."""

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from klppo_compile import LossConfig, klpen_ppo_loss
from tests.kernel_cases import NUMBERS, batch, head, leaves, static

pytest.importorskip("triton", reason="Triton has no wheel here")

from klppo_compile.kernels import operators

HEADS = {
    "normal": lambda: [head("normal", 5, 3)],
    "categorical": lambda: [head("categorical", 5, 4, 2)],
    "composite": lambda: [head("categorical", 5, 4, 2), head("normal", 5, 3)],
}


# opcheck of torch 2.14 reads the gradients of views.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", HEADS)
def test_opcheck(kind, reduction):
    policy = HEADS[kind]()
    b = batch(*policy, masks=True, values=(3,) if len(policy) > 1 else None)
    b = dataclasses.replace(b, advantage=b.advantage.nan_to_num(), value_target=b.value + 1.0)
    leaves(b)
    numbers = [torch.tensor(1.3), *NUMBERS[1:4], *[0.01] * len(policy), *NUMBERS[5:]]
    shape = static(reduction=reduction, loss_critic_type="l2")
    operator = torch.ops.klppo_compile.forward.default
    results = torch.library.opcheck(operator, operators.arguments(b, numbers, shape))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("eps", [0.2, 0.08, 1e-3])
@pytest.mark.parametrize("name", ["normal", "categorical"])
def test_one_graph_with_beta_moving_inside_the_step(name, eps):
    minibatch = batch(head(name, 20, 6, eps=eps))
    config = LossConfig(clip_value=0.2)

    def step(new, value, beta, backend):
        policy = (dataclasses.replace(minibatch.policy[0], new=new),)
        now = dataclasses.replace(minibatch, policy=policy, value=value)
        out = klpen_ppo_loss(now, beta, config, backend)
        beta.copy_(out.next_beta)
        return out.loss_objective + 0.7 * out.loss_entropy + 2.0 * out.loss_critic

    found = []
    for run, backend in ((step, "torch"), (torch.compile(step, fullgraph=True), "triton")):
        new = tuple(x.clone().requires_grad_() for x in minibatch.policy[0].new)
        value, beta = minibatch.value.clone().requires_grad_(), torch.tensor(1.3)
        total = run(new, value, beta, backend)
        found.append((total, beta, *torch.autograd.grad(total, [*new, value])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_graph_for_batches_of_every_size(reduction):
    graphs = CompileCounter()
    config = LossConfig(clip_value=0.2, reduction=reduction)

    def step(minibatch):
        out = klpen_ppo_loss(minibatch, 1.3, config, "triton")
        return out.loss_objective.sum() + 0.7 * out.loss_entropy.sum() + out.loss_critic.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=graphs)
    for N in (6, 9, 7):
        heads = head("categorical", N, 4, 2), head("tanh_normal", N, 3)
        minibatch = batch(*heads, masks=True, values=(N, 2))
        inputs = leaves(minibatch)
        found, expected = (torch.autograd.grad(f(minibatch), inputs) for f in (compiled, step))
        torch.testing.assert_close(found, expected)
    assert graphs.frame_count == 1


def test_one_tensor_under_two_names():
    minibatch = batch(head("normal", 6, 3))
    (h,) = minibatch.policy
    loc = h.new[0].clone().requires_grad_()
    same = dataclasses.replace(h, action=loc, new=(loc, h.new[1]))
    minibatch = dataclasses.replace(minibatch, policy=(same,))
    grads = []
    for backend in ("torch", "triton"):
        out = klpen_ppo_loss(minibatch, 1.0, LossConfig(), backend)
        grads.append(torch.autograd.grad(out.loss_objective, loc)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-7)
