"""Who is timed on a GPU: from a problem to its losses' sum, and the truth that each is held to."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from klppo_compile.perf.gpu.cases import (
    INDUCTOR,
    LIGER,
    OURS,
    TORCHRL,
    TORCHRL_COMPILED,
    part_of,
)
from klppo_compile.perf.providers import (
    Answer,
    pure_losses,
    samples_of,
    step_of,
    torchrl_loss,
)
from klppo_compile.perf.workloads import Problem

Total = Callable[[Problem], Tensor]
CHUNK = 2**26  # elements of a head that are computed in float64 at a time


@dataclass(frozen=True)
class Contender:
    """Someone who computes the losses.

    Attributes:
        build: from the first problem, and the compiler to use, to a function of any problem alike.
        truth: the right losses and gradients of a problem.
        replayed: whether its step can be captured in a CUDA graph; one that waits for the device
            can't.
        tolerance: how far a gradient may lie from the truth, relative to the largest of its tensor.
        seconds: that building it and timing it take, about: it isn't begun with less left.
        package: that must be installed.
    """

    build: Callable[[Problem, str], Total]
    truth: Callable[[Problem], Answer]
    replayed: bool = True
    tolerance: float = 1e-4
    seconds: float = 5.0
    package: str = "klppo_compile"

    @property
    def missing(self) -> bool:
        """Whether its package isn't installed; looked for, not imported."""
        return importlib.util.find_spec(self.package) is None

    def allowed(self, case: Problem) -> float:
        """Its tolerance, or a unit in the last place of bfloat16: the interpreter truncates."""
        return max(self.tolerance, 0.0 if case.workload.dtype == "float32" else 8e-3)


def ours(case: Problem, backend: str, compiler: str | None = None) -> Total:
    """The pure function on given heads, by one of our backends."""
    losses, beta = pure_losses(case, backend), torch.ones((), device=case.device)
    if compiler:
        losses = torch.compile(losses, fullgraph=True, dynamic=False, backend=compiler)

    def total(problem: Problem) -> Tensor:
        objective, entropy, critic, *_ = losses(beta, samples_of(problem), *problem.leaves)
        return objective + entropy + critic

    return total


def torchrl(case: Problem, compiler: str | None = None) -> Total:
    """TorchRL's module; its KL is in the band, where it compiles and leaves beta alone."""
    loss = torchrl_loss(case)
    if compiler:
        loss = torch.compile(loss, dynamic=False, backend=compiler)

    def total(problem: Problem) -> Tensor:
        out = loss(problem.data)
        losses: Tensor = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
        return losses

    return total


def exact(case: Problem) -> Answer:
    """TorchRL's losses and gradients in float64, rows by rows: they are means over the rows."""
    rows, N = max(1, CHUNK // case.workload.width), case.workload.batch
    total = torch.zeros((), dtype=torch.float64, device=case.device)
    grads = tuple(torch.empty_like(x, dtype=torch.float32) for x in case.leaves)
    for start in range(0, N, rows):
        piece = part_of(case, start, min(N, start + rows), torch.float64)
        share = piece.workload.batch / N
        loss, found = step_of(torchrl_loss(piece), piece)()
        total += share * loss
        for grad, part in zip(grads, found, strict=True):
            grad[start : start + rows] = share * part
    return total, grads


# Liger's loss is another one: it knows the old policy by the log-prob of the token only, and
# estimates KL from it. It is comparable in what it does for a row: a softmax over the vocabulary,
# forward and backward. So it has a formula and a truth of its own, and a lower floor than ours.
CLIP, WEIGHT, SEQUENCES = 0.2, 0.04, 8


def liger(problem: Problem) -> Tensor:
    """Liger's GRPO loss on the new logits, cut into sequences; the last token of each is unused."""
    from liger_kernel.transformers.grpo_loss import (  # type: ignore[import-not-found]
        triton_grpo_loss,
    )

    logits, ids, old, advantage = sequences(problem)
    options = {"temperature": 1.0, "beta": WEIGHT, "eps_low": CLIP, "eps_high": CLIP}
    loss, *_ = triton_grpo_loss(logits, old, old, ids, advantage, inplace=False, **options)
    mean: Tensor = loss.mean()
    return mean


def sequences(case: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits `[B, L + 1, A]`, tokens and old log-probs `[B, L]`, advantages `[B]`."""
    B = min(SEQUENCES, max(1, case.workload.batch // 2))
    ids, old = (case.data[name].view(B, -1)[:, :-1] for name in ("action", "action_log_prob"))
    advantage = case.data["advantage"].view(B, -1)[:, 0]
    logits = case.leaves[0].view(B, -1, case.workload.width)
    return logits, ids.contiguous(), old.contiguous(), advantage.contiguous()


def exact_liger(case: Problem) -> Answer:
    """Liger's formula by autograd in float64, sequence by sequence."""
    logits, ids, old, advantage = sequences(case)
    gradient = torch.zeros_like(logits, dtype=torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=case.device)
    for i in range(len(ids)):
        z = logits[i].detach().double().requires_grad_()
        log_prob = z[:-1].log_softmax(-1).gather(-1, ids[i, :, None]).squeeze(-1)
        gap = old[i].double() - log_prob
        ratio, gain = torch.exp(-gap), advantage[i].double()
        surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
        loss = (WEIGHT * (gap.exp() - gap - 1) - surrogate).sum() / ids.numel()
        gradient[i] = torch.autograd.grad(loss, z)[0]
        total += loss.detach()
    return total, (gradient.view_as(case.leaves[0]),)


CONTENDERS = {
    OURS: Contender(lambda case, _: ours(case, "triton"), exact),
    INDUCTOR: Contender(lambda case, by: ours(case, "torch", by), exact, seconds=25.0),
    TORCHRL: Contender(
        lambda case, _: torchrl(case), exact, replayed=False, tolerance=1e-2, package="torchrl"
    ),
    TORCHRL_COMPILED: Contender(
        torchrl, exact, replayed=False, tolerance=1e-2, seconds=60.0, package="torchrl"
    ),
    LIGER: Contender(
        lambda *_: liger, exact_liger, tolerance=1e-3, seconds=15.0, package="liger_kernel"
    ),
}
