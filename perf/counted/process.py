"""`python -m klppo_compile.perf.counted.process FOLDER WORKLOAD ...`: one process under Callgrind.

`instructions.py` runs it, after `build.py` has made the packages. Nothing is compiled here.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch._inductor import aoti_load_package

from klppo_compile.perf.counted.instructions import EAGER, EXPORTED, SEPARATOR
from klppo_compile.perf.counted.requests import START, STOP, ZERO, Callgrind
from klppo_compile.perf.exact.metrics import understood
from klppo_compile.perf.providers import our_loss, step_of
from klppo_compile.perf.workloads import Workload, problem

DUMPS = 11
WARM_UP = 3


def package_of(folder: Path, workload: str) -> Path:
    """The AOTInductor package of a workload; its inputs lie beside it, as `.pt`."""
    return folder / f"{workload.replace('/', '-')}.pt2"


def steps_of(workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is counted: the eager loss both ways, the exported one forward."""
    case = problem(workload)
    yield EAGER, step_of(our_loss(case), case)
    path = package_of(folder, workload.name)
    package = aoti_load_package(str(path))
    inputs = torch.load(path.with_suffix(".pt"))

    def forward() -> object:
        with torch.no_grad():
            return package(*inputs)

    yield EXPORTED, forward


def main(arguments: list[str]) -> int:
    """Run every step under the counter, a dump per call."""
    folder, *texts = arguments
    torch.set_num_threads(1)
    counter = Callgrind()
    if not counter.is_there():
        print(
            "valgrind does not answer: did `instructions.py` start this?",
            file=sys.stderr,
        )
        return 1
    for workload in map(understood, texts):
        for what, step in steps_of(workload, Path(folder)):
            for _ in range(WARM_UP):
                step()
            gc.collect()
            gc.disable()
            counter.ask(START)
            step()
            for _ in range(DUMPS):
                counter.ask(ZERO)
                step()
                counter.dump(f"{workload.name}{SEPARATOR}{what}")
            counter.ask(STOP)
            gc.enable()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
