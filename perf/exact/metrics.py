"""Metrics that are the same in every run: each workload is counted in a process of its own.

A fresh process, for what was compiled before changes what is compiled next; one thread and AVX2,
so that neither the number of cores nor the instruction set shows. The package under test may lie in
any folder: two revisions are counted by the same text.
"""

import json
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from klppo_compile.exit_codes import CannotError, FailedError, RefusalError
from klppo_compile.perf.processes import environment, last_words, run_process
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import Workload

Progress = Callable[[str], None]


class RaisedError(CannotError):
    """What was to be measured raised an error, or ended its process."""


ROOM = "klppo_compile.perf"
TIMEOUT = 1800
WRONG_ANSWER = 11
"""Exit status of a measuring process whose loss is wrong: its numbers would mean nothing."""
PINNED = {
    # A graph from the cache isn't counted; compiled C++ may come from there.
    "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
    "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
    # Triton writes paths and lines into its binaries, and its default for this is to change.
    "TRITON_DISABLE_LINE_INFO": "1",
    "TRITON_DEFAULT_FP_FUSION": "1",
}
X86 = {"ATEN_CPU_CAPABILITY": "avx2", "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3"}


def measure_exact(
    workloads: Iterable[Workload],
    python_path: Path | None = None,
    progress: Progress | None = None,
    *,
    parts: Iterable[str] = ("compiled", "eager", "onnx"),
) -> list[Row]:
    """Count everything about the loss that has no noise, on workloads.

    Args:
        workloads: what to compute.
        python_path: a folder whose package is measured; None is the one that runs.
        progress: told a line when a workload begins.
        parts: what to count: our loss "compiled", "eager" and as "onnx"; "peers" is torchrl's.

    Raises:
        FailedError: the loss's answer is wrong, which makes its numbers worthless.
        CannotError: a measuring process died.
    """
    rows = []
    for workload in workloads:
        if progress is not None:
            progress(f"counting {workload.name}")
        rows += rows_of_process("exact.loss", [told(workload), *parts], workload.name, python_path)
    return rows


def told(workload: Workload) -> str:
    """A workload as an argument of a process."""
    return json.dumps(asdict(workload))


def understood(text: str) -> Workload:
    """The workload that `told` told."""
    return Workload(**json.loads(text))


def exact_row(workload: str, provider: str, metric: str, unit: str, value: float) -> Row:
    """A row without noise: its interval is itself, and less is better."""
    return Row(workload, provider, metric, unit, value, value, value, 1, "lower", "exact")


def rows_of_process(
    module: str, arguments: list[str], name: str, python_path: Path | None = None
) -> list[Row]:
    """Run a measuring module of this room in a fresh interpreter and return the rows it writes.

    Raises:
        FailedError: it found a wrong answer.
        CannotError: it died.
    """
    found = result_of_process(module, arguments, name, environment(python_path, pinned()))
    return [Row(**row) for row in found]


def result_of_process(
    module: str, arguments: list[str], name: str, variables: dict[str, str]
) -> Any:
    """What a module of this room writes as JSON, run in a fresh interpreter.

    Raises:
        FailedError: it found a wrong answer.
        RaisedError: what it measures broke.
        CannotError: it died, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="klppo-perf-") as folder:
        out = Path(folder) / "result.json"
        # -P: the current folder has no say in which package is found.
        command = [sys.executable, "-P", "-m", f"{ROOM}.{module}", str(out), *arguments]
        done = run_process(name, command, variables, TIMEOUT)
        if done.returncode or not out.exists():
            raise refusal(name, done)
        return json.loads(out.read_text(encoding="utf-8"))


def answer(out: str, measure: Callable[[], list[Row]]) -> int:
    """Write in such a process the rows that `result_of_process` waits for; its exit status.

    On one thread, and with nothing on standard error but why an answer is wrong.
    """
    import torch

    from klppo_compile.perf.timed.cpu import WrongAnswerError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        rows = measure()
    except WrongAnswerError as error:
        print(error, file=sys.stderr)
        return WRONG_ANSWER
    Path(out).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    return 0


def pinned() -> dict[str, str]:
    """The variables that pin what is counted."""
    return PINNED | (X86 if platform.machine().lower() in {"x86_64", "amd64"} else {})


def refusal(name: str, done: "subprocess.CompletedProcess[str]") -> RefusalError:
    """What to say of a measuring process that failed."""
    said = last_words(done)
    if done.returncode == WRONG_ANSWER:
        return FailedError(f"no numbers for a wrong answer: {said}")
    # Python ends with 1 by an error that nobody caught.
    return (RaisedError if done.returncode in {0, 1} else CannotError)(
        f"{name} could not be measured: its process ended with {done.returncode}: {said}"
    )
