"""On a GPU: no wait for the device, and a CUDA graph whose replays follow beta and the data."""

import dataclasses

import pytest
import torch

from klppo_compile import LossConfig, klpen_ppo_loss
from klppo_compile.backends import interpreted
from klppo_compile.records import PolicyHead
from tests.kernel_cases import batch, head

pytest.importorskip("triton", reason="Triton has no wheel here")

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or interpreted(),
    reason="needs a CUDA device and TRITON_INTERPRET=0: an interpreted kernel can't be captured",
)
CONFIG = LossConfig(clip_value=0.2, max_importance_ratio=5.0)
HEADS = {
    "normal": lambda: [head("normal", 300, 6)],
    "tanh_normal": lambda: [head("tanh_normal", 300, 3)],
    "multi-discrete": lambda: [head("categorical", 300, D) for D in (3, 7)],
    "vocabulary": lambda: [head("categorical", 8, 50_257, dtype=torch.bfloat16)],
}


def on_device(record):
    """A head or a minibatch on the GPU."""

    def move(x):
        if isinstance(x, torch.Tensor):
            return x.cuda()
        if isinstance(x, tuple):
            return tuple(move(y) for y in x)
        return on_device(x) if isinstance(x, PolicyHead) else x

    fields = {f.name: move(getattr(record, f.name)) for f in dataclasses.fields(record)}
    return dataclasses.replace(record, **fields)


def step_of(minibatch, beta):
    """One loss and its gradients, as tensors."""
    inputs = [x.requires_grad_() for h in minibatch.policy for x in h.new]
    inputs.append(minibatch.value.requires_grad_())

    def step():
        out = klpen_ppo_loss(minibatch, beta, CONFIG, "triton")
        total = out.loss_objective + out.loss_entropy + out.loss_critic
        return (total.detach(), out.next_beta, out.kl, *torch.autograd.grad(total, inputs))

    return step


@pytest.mark.parametrize("kind", HEADS)
def test_a_cuda_graph_follows_beta_and_data(kind):
    minibatch = on_device(batch(*HEADS[kind](), masks=True))
    beta = torch.tensor(1.3, device="cuda")
    step = step_of(minibatch, beta)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    before = [x.clone() for x in step()]
    with torch.no_grad():
        beta.fill_(0.4)
        minibatch.advantage.neg_()
        for h in minibatch.policy:
            h.new[0].mul_(1.01)
    graph.replay()
    replayed = [x.clone() for x in captured]
    assert all(torch.equal(x, y) for x, y in zip(replayed, step(), strict=True))
    assert not torch.equal(replayed[0], before[0])


@pytest.mark.parametrize("kind", HEADS)
def test_nothing_waits_for_the_device(kind):
    step = step_of(on_device(batch(*HEADS[kind](), masks=True)), torch.tensor(1.3, device="cuda"))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
