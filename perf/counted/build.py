"""`python -m klppo_compile.perf.counted.build OUT FOLDER WORKLOAD ...`: what Callgrind will count.

Packages of the exported loss with their inputs, checked, and the eager loss held to the truth. It
runs outside valgrind, where compiling would take minutes.
"""

import sys
from pathlib import Path

import torch

from klppo_compile.perf.counted.process import package_of
from klppo_compile.perf.exact.metrics import answer, understood
from klppo_compile.perf.providers import OURS, PROVIDERS, our_loss, step_of
from klppo_compile.perf.rows import Row
from klppo_compile.perf.timed.cpu import check
from klppo_compile.perf.workloads import Workload, problem


def build(workload: Workload, folder: Path) -> None:
    """Check the eager loss, write the package and the tensors it takes.

    Raises:
        WrongAnswerError: the eager loss is off.
        FailedError: the package is.
    """
    from klppo_compile.export.exporting import export_loss

    case = problem(workload)
    loss = our_loss(case)
    provider = next(p for p in PROVIDERS if p.name == OURS)
    check(case, {provider: step_of(loss, case)})
    path = package_of(folder, workload.name)
    data = case.data.detach()
    manifest = export_loss(our_loss(case), data, path, format="aoti").manifest
    inputs = [data.get(tuple(spec.key.split("."))) for spec in manifest.inputs]
    inputs += [torch.tensor(float(x)) for x in manifest.scalars.values()]
    torch.save(inputs, path.with_suffix(".pt"))


def main(arguments: list[str]) -> int:
    """Build for every workload; the rows, of which there are none, tell that all is there."""
    out, folder, *texts = arguments

    def measure() -> list[Row]:
        for text in texts:
            build(understood(text), Path(folder))
        return []

    return answer(out, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
