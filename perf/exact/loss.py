"""`python -m klppo_compile.perf.exact.loss OUT WORKLOAD PART ...`: one workload, one process.

Writes the rows as JSON; `metrics.py` runs it.
"""

import sys
from collections.abc import Callable, Collection

import torch

from klppo_compile.perf.exact.compiled import count_compiled, count_peer
from klppo_compile.perf.exact.metrics import answer, exact_row, understood
from klppo_compile.perf.exact.onnx import count_onnx
from klppo_compile.perf.exact.step import Counts, count_eager
from klppo_compile.perf.providers import (
    OURS,
    OURS_COMPILED,
    PROVIDERS,
    TORCHRL,
    TORCHRL_COMPILED,
    our_loss,
    step_of,
    torchrl_loss,
)
from klppo_compile.perf.rows import Row
from klppo_compile.perf.timed.cpu import check
from klppo_compile.perf.workloads import Workload, problem


def ours_eager(workload: Workload) -> Counts:
    """Our eager loss.

    Raises:
        WrongAnswerError: its losses or gradients are off.
    """
    case = problem(workload)
    loss = our_loss(case)
    provider = next(p for p in PROVIDERS if p.name == OURS)
    check(case, {provider: step_of(loss, case)})
    return count_eager(loss, case)


def torchrl_eager(workload: Workload) -> Counts:
    """The peer's eager loss."""
    case = problem(workload)
    return count_eager(torchrl_loss(case), case)


PARTS: dict[str, dict[str, Callable[[Workload], Counts]]] = {
    "compiled": {OURS_COMPILED: count_compiled},
    "eager": {OURS: ours_eager},
    "onnx": {"ours exported": count_onnx},
    "peers": {TORCHRL: torchrl_eager, TORCHRL_COMPILED: count_peer},
}
"""Of each part its providers and who counts them; in the order in which they are counted."""


def main(arguments: list[str]) -> int:
    """Count, write, and return the status."""
    out, text, *chosen = arguments
    return answer(out, lambda: rows_of(understood(text), chosen))


def rows_of(workload: Workload, chosen: Collection[str]) -> list[Row]:
    """The counts of the chosen parts' providers."""
    rows = []
    for part in (part for part in PARTS if part in chosen):
        for provider, count in PARTS[part].items():
            torch.compiler.reset()
            for metric, (value, unit) in count(workload).items():
                rows.append(exact_row(workload.name, provider, metric, unit, value))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
