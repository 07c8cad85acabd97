"""The loss on one CPU thread: contenders on workloads, checked, then timed side by side."""

import torch

from klppo_compile.perf.measure import AGAIN, Estimate, estimate, ratios, take_turns
from klppo_compile.perf.providers import (
    FLOOR,
    NETWORKS,
    PROVIDERS,
    TORCHRL,
    TORCHRL_COMPILED,
    YARDSTICKS,
    Provider,
    Step,
    faults,
    step_of,
    torchrl_loss,
)
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import Problem, Workload, problem

SPEED_OVER = (TORCHRL, TORCHRL_COMPILED)
TIMES_OF = (NETWORKS, FLOOR)


class WrongAnswerError(Exception):
    """A contender's losses or gradients are not right, so that its speed means nothing."""


def measure_workload(workload: Workload, rounds: int, seconds: float) -> list[Row]:
    """Time forward and backward of every contender, on one thread: in turn, and once again.

    Raises:
        WrongAnswerError: a contender's losses or gradients are off.
    """
    torch.set_num_threads(1)
    torch.compiler.reset()
    case = problem(workload)
    contenders = [
        p for p in (*PROVIDERS, *YARDSTICKS) if (p.networks if workload.networks else p.given)
    ]
    steps = {p.name: p.build(case) for p in contenders}
    check(case, {p: steps[p.name] for p in contenders if p in PROVIDERS})
    in_turn, again = take_turns(steps, rounds, seconds, calls=2)
    return rows_of(case, in_turn) + rows_of(case, again, AGAIN)


def check(case: Problem, steps: dict[Provider, Step]) -> None:
    """Hold every contender against torchrl in float64.

    Raises:
        WrongAnswerError: names each contender that is off, and where.
    """
    exact = problem(case.workload, torch.float64)
    truth = step_of(torchrl_loss(exact), exact)()
    wrong = [
        f"{provider.name}: {fault}"
        for provider, step in steps.items()
        for fault in faults(step(), truth, provider.tolerance)
    ]
    if wrong:
        raise WrongAnswerError(f"{case.workload.name}: {'; '.join(wrong)}")


def rows_of(case: Problem, times: dict[str, list[float]], end: str = "") -> list[Row]:
    """Times, and what follows from them: memory rate, speed over torchrl, yardsticks.

    `end`: of the metrics' names.
    """
    rows = []

    def add(provider: str, metric: str, unit: str, found: Estimate, better: str) -> None:
        rows.append(Row(case.workload.name, provider, metric + end, unit, *found, better))

    for name, samples in times.items():
        add(name, "time", "us", estimate([1e6 * t for t in samples]), "lower")
        rate = estimate([case.minimum_bytes / t / 1e9 for t in samples])
        add(name, "minimum bytes over time", "GB/s", rate, "higher")
        for other in SPEED_OVER:
            add(name, f"speed over {other}", "x", ratios(times[other], samples), "higher")
        for other in TIMES_OF:
            if other in times:
                add(name, f"time over {other}", "x", ratios(samples, times[other]), "lower")
    return rows
