"""The contenders: who computes a workload's losses and gradients, and how each is told to.

Every provider turns a problem into a step: one forward and one backward, which returns the sum of
the losses and the gradients. All compute every output they have, on the same data.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from tensordict import TensorDictBase
from torch import Tensor

from klppo_compile.compiling import compile_loss
from klppo_compile.distributions import FAMILIES
from klppo_compile.functional import klpen_ppo_loss
from klppo_compile.loss import KLPENPPOLoss
from klppo_compile.perf.workloads import PARAMETERS, Problem, Workload
from klppo_compile.records import LossConfig, Minibatch, PolicyHead

Answer = tuple[Tensor, tuple[Tensor, ...]]
Step = Callable[[], Answer]
Loss = Callable[[TensorDictBase], TensorDictBase]
Samples = dict[str, Tensor]


@dataclass(frozen=True)
class Provider:
    """A contender.

    Attributes:
        name: what the tables call it.
        build: from a problem to its step.
        given, networks: whether it takes part where heads are given, and where networks give them.
        tolerance: how far its gradients may lie from float64's, relative to the largest of each.
    """

    name: str
    build: Callable[[Problem], Step]
    given: bool = True
    networks: bool = True
    tolerance: float = 1e-4


def step_of(loss: Loss, problem: Problem) -> Step:
    """Forward and backward of a loss module."""

    def step() -> Answer:
        out = loss(problem.data)
        total = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
        return total.detach(), torch.autograd.grad(total, problem.leaves)

    return step


def mean_kl(problem: Problem) -> float:
    """KL(old || new) of the workload, by torch's own formula in float64: the KL to aim at.

    Of as many rows as fit in memory with it.
    """
    kind = problem.actor[-1].distribution_class
    names, rows = PARAMETERS[problem.workload.family], max(1, 2**24 // problem.workload.width)
    old, new = (
        kind(**{name: x[:rows].double() for name, x in zip(names, side, strict=True)})
        for side in (problem.old, problem.new)
    )
    return torch.distributions.kl_divergence(old, new).mean().item()


def torchrl_loss(problem: Problem) -> Loss:
    """TorchRL's loss, its KL held in the band: out of it, the compiled loss crashes."""
    from torchrl.objectives import KLPENPPOLoss as TorchRLLoss

    loss = TorchRLLoss(problem.actor, problem.critic, functional=False, dtarg=mean_kl(problem))
    module: Loss = loss.to(problem.device).eval()
    return module


def our_loss(problem: Problem) -> KLPENPPOLoss:
    """Ours, on the same terms, and in training: it moves beta, on the device."""
    return KLPENPPOLoss(problem.actor, problem.critic, functional=False, dtarg=mean_kl(problem))


def samples_of(problem: Problem) -> Samples:
    """What the pure function reads beside the leaves: old parameters and samples."""
    names = ("action", "action_log_prob", "advantage", "value_target")
    return {name: problem.data[name] for name in (*PARAMETERS[problem.workload.family], *names)}


def minibatch(data: Samples, workload: Workload, leaves: tuple[Tensor, ...]) -> Minibatch:
    """What the pure function reads: samples, and given heads and values as leaves."""
    family, (*new, value) = FAMILIES[workload.family], leaves
    old, action = [data[name] for name in PARAMETERS[workload.family]], data["action"]
    if workload.family == "categorical":
        action, shape = action.unsqueeze(-1), (-1, 1, workload.width)
        old, new = ([x.view(shape) for x in side] for side in (old, new))
    return Minibatch(
        (PolicyHead(family, action, tuple(old), tuple(new)),),
        data["action_log_prob"],
        data["advantage"].squeeze(-1),
        value.squeeze(-1),
        data["value_target"].squeeze(-1),
    )


def pure_losses(problem: Problem, backend: str = "auto") -> Callable[..., tuple[Tensor, ...]]:
    """Beta, samples and leaves to the losses and all the rest that the pure function returns."""
    workload, config = problem.workload, LossConfig(dtarg=mean_kl(problem))

    def losses(beta: Tensor, data: Samples, *leaves: Tensor) -> tuple[Tensor, ...]:
        out = klpen_ppo_loss(minibatch(data, workload, leaves), beta, config, backend)
        results = tuple(getattr(out, f.name) for f in fields(out))
        return tuple(x for x in results if x is not None)

    return losses


def our_function(problem: Problem, compiled: bool) -> Step:
    """The pure function on tensors."""
    losses = pure_losses(problem)
    function = torch.compile(losses, fullgraph=True) if compiled else losses
    beta, samples = torch.ones(()), samples_of(problem)

    def step() -> Answer:
        objective, entropy, critic, *_ = function(beta, samples, *problem.leaves)
        total = objective + entropy + critic
        return total.detach(), torch.autograd.grad(total, problem.leaves)

    return step


def networks_alone(problem: Problem) -> Step:
    """The networks with a plain sum of what they give in the loss's place, compiled."""
    actor, critic, names = problem.actor[0].module, problem.critic.module, problem.leaves
    observation = problem.data["observation"]

    def total(x: Tensor) -> Tensor:
        heads = actor(x)
        heads = heads if isinstance(heads, tuple) else (heads,)
        out: Tensor = sum((h.sum() for h in heads), critic(x).sum())
        return out

    compiled = torch.compile(total, fullgraph=True)

    def step() -> Answer:
        out = compiled(observation)
        return out.detach(), torch.autograd.grad(out, names)

    return step


def copy_of_minimum(problem: Problem) -> Step:
    """A copy that moves the loss's minimum of bytes: half of them read, half written."""
    source = torch.randn(problem.minimum_bytes // 8)
    target = torch.empty_like(source)
    return lambda: (target.copy_(source), ())


def quietly(build: Callable[[Problem], Step]) -> Callable[[Problem], Step]:
    """Without the warnings of compiling torchrl, which are its own."""

    def quiet(problem: Problem) -> Step:
        step = build(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                step()
        return step

    return quiet


TORCHRL, TORCHRL_COMPILED = "torchrl eager", "torchrl compiled"
OURS, OURS_COMPILED = "ours eager", "ours compiled"
NETWORKS, FLOOR = "networks alone, compiled", "copy of the minimum bytes"

# torchrl's KL cancels in float32, and so does its gradient.
PROVIDERS = (
    Provider(TORCHRL, quietly(lambda p: step_of(torchrl_loss(p), p)), tolerance=1e-2),
    Provider(
        TORCHRL_COMPILED,
        quietly(lambda p: step_of(torch.compile(torchrl_loss(p)), p)),
        tolerance=1e-2,
    ),
    Provider(OURS, quietly(lambda p: step_of(our_loss(p), p))),
    Provider(OURS_COMPILED, quietly(lambda p: step_of(compile_loss(our_loss(p)), p))),
    Provider("our function, eager", quietly(lambda p: our_function(p, False)), networks=False),
    Provider("our function, compiled", quietly(lambda p: our_function(p, True)), networks=False),
)
# Not losses: what a loss is measured against.
YARDSTICKS = (
    Provider(NETWORKS, quietly(networks_alone), given=False),
    Provider(FLOOR, quietly(copy_of_minimum), networks=False),
)


def faults(answer: Answer, truth: Answer, tolerance: float) -> list[str]:
    """Where an answer departs from the truth by more than the tolerance, in words."""
    found = []
    for name, got, true in zip(
        ("loss", *(f"gradient {i}" for i in range(len(truth[1])))),
        (answer[0], *answer[1]),
        (truth[0], *truth[1]),
        strict=True,
    ):
        error = ((got - true).abs().max() / true.abs().max()).item()
        if not error <= tolerance:
            found.append(f"{name} is off by {error:.1e} of its largest, allowed {tolerance:.0e}")
    return found
