"""`python -m klppo_compile.perf.exact_loss OUT WORKLOAD PART ...`: one workload, one process.

Writes the rows as JSON; `exact.py` runs it.
"""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from klppo_compile.perf.cpu import WrongAnswerError, check
from klppo_compile.perf.exact import WRONG_ANSWER, exact_row, understood
from klppo_compile.perf.exact_compiled import count_compiled, count_peer
from klppo_compile.perf.exact_onnx import count_onnx
from klppo_compile.perf.exact_step import Counts, count_eager
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
    workload = understood(text)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    try:
        for part in (part for part in PARTS if part in chosen):
            for provider, count in PARTS[part].items():
                torch.compiler.reset()
                for metric, (value, unit) in count(workload).items():
                    rows.append(exact_row(workload.name, provider, metric, unit, value))
    except WrongAnswerError as error:
        print(error, file=sys.stderr)
        return WRONG_ANSWER
    Path(out).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
