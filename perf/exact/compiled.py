"""What Dynamo captures of the compiled loss and what Inductor makes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch._logging._internal import set_logs

from klppo_compile.compiling import compile_loss
from klppo_compile.exit_codes import CannotError
from klppo_compile.loss import KLPENPPOLoss
from klppo_compile.perf.exact.step import Counts, count_step, sum_of_losses
from klppo_compile.perf.providers import (
    OURS_COMPILED,
    PROVIDERS,
    Loss,
    mean_kl,
    our_loss,
    step_of,
    torchrl_loss,
)
from klppo_compile.perf.timed.cpu import check
from klppo_compile.perf.workloads import Problem, Workload, problem

SIZES = (3 / 8, 5 / 8)
"""Further batch sizes of the training sequence, as parts of the workload's."""


def count_compiled(workload: Workload) -> Counts:
    """Everything of our compiled loss: a first step, a later one, a training sequence.

    Raises:
        WrongAnswerError: its losses or gradients are off.
        CannotError: beta did not move as the sequence means it to.
    """
    case = problem(workload)
    loss = our_loss(case)
    with breaks_allowed():
        compiled = compile_loss(loss)
    found = count_first(compiled, case)
    provider = next(p for p in PROVIDERS if p.name == OURS_COMPILED)
    check(case, {provider: step_of(compiled, case)})
    found |= count_step(compiled, case)
    found |= count_sequence(loss, compiled, case)
    return found | count_calls(workload)


def count_peer(workload: Workload) -> Counts:
    """What there is to count of torchrl's loss, compiled: its beta can't move there."""
    case = problem(workload)
    compiled: Loss = torch.compile(torchrl_loss(case))
    return count_first(compiled, case) | count_step(compiled, case)


@contextmanager
def breaks_allowed() -> Iterator[None]:
    """`torch.compile` without `fullgraph`, so that a graph break is counted and doesn't raise."""
    compile_it = torch.compile

    def tolerant(*args: Any, fullgraph: bool = False, **options: Any) -> Any:  # noqa: ARG001  what is taken away
        return compile_it(*args, **options)

    with patch.object(torch, "compile", tolerant):
        yield


def count_first(compiled: Loss, case: Problem) -> Counts:
    """Graphs of the first forward and backward, their kernels and the bytes Inductor estimates."""
    # Inductor only counts bytes for this log.
    set_logs(inductor_metrics=True)
    counters.clear()
    metrics.reset()
    step_of(compiled, case)()
    set_logs()
    return {
        "graphs": (counters["stats"]["unique_graphs"], "graphs"),
        "graph breaks": (sum(counters["graph_break"].values()), "breaks"),
        "kernels": (metrics.generated_kernel_count, "kernels"),
        "extern calls": (counters["inductor"]["extern_calls"], "calls"),
        "bytes of the kernels": (metrics.num_bytes_accessed, "B"),
    }


def count_sequence(loss: KLPENPPOLoss, compiled: Loss, case: Problem) -> Counts:
    """Recompilations while training goes on: beta rises, falls and rests, a coefficient is set.

    Then the batch size changes twice; the first change costs one graph for every size.

    Raises:
        CannotError: beta moved otherwise.
    """
    nats, graphs = mean_kl(case), counters["stats"]["unique_graphs"]
    kernels = metrics.generated_kernel_count
    sizes = [case.workload.batch] * 4 + [int(case.workload.batch * part) for part in SIZES]
    settings = [
        {"dtarg": nats / 10},
        {"dtarg": nats * 10},
        {"dtarg": nats},
        {"entropy_coeff": 0.02},
        {},
        {},
    ]
    betas = [float(loss.beta)]
    for rows, changes in zip(sizes, settings, strict=True):
        for name, value in changes.items():
            setattr(loss, name, value)
        sum_of_losses(compiled(case.data[:rows].clone())).backward()
        betas.append(float(loss.beta))
    moves = [new / old for old, new in pairwise(betas[:4])]
    if moves != [2.0, 0.5, 1.0]:
        raise CannotError(
            "beta must double, halve and rest in the training sequence; its factors were"
            f" {moves}, which no count can be read from. Look at the rule of beta first."
        )
    return {
        "recompiles in training": (counters["stats"]["unique_graphs"] - graphs, "graphs"),
        "kernels of any batch size": (metrics.generated_kernel_count - kernels, "kernels"),
    }


def count_calls(workload: Workload) -> Counts:
    """How often the captured graphs call the actor's and the critic's network."""
    case, graphs = problem(workload), []
    case.actor[0].module = Seen(case.actor[0].module, actor_called)
    case.critic.module = Seen(case.critic.module, critic_called)

    def keep(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with breaks_allowed():
        compile_loss(our_loss(case), backend=keep)(case.data)
    targets = [node.target for graph in graphs for node in graph.graph.nodes]
    return {
        "actor calls": (targets.count(actor_called), "calls"),
        "critic calls": (targets.count(critic_called), "calls"),
    }


class Seen(nn.Module):
    """A network whose every call leaves a mark in the graph."""

    def __init__(self, network: nn.Module, mark: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.mark = network, mark

    def forward(self, first: Tensor, *others: Tensor) -> Any:
        """Mark, then call."""
        return self.network(self.mark(first), *others)


def actor_called(x: Tensor) -> Tensor:
    """The actor's mark."""
    return x.view_as(x)


def critic_called(x: Tensor) -> Tensor:
    """The critic's mark."""
    return x.view_as(x)


for mark in (actor_called, critic_called):
    torch.compiler.allow_in_graph(mark)
