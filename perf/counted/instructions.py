"""Instructions of a step, counted by Callgrind: they don't depend on what else the machine does.

They are a sensitive detector of change and a poor measure of its size: compare times for that. One
process under valgrind counts every workload, a dump per call; the median of the dumps is the count.
"""

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from klppo_compile.exit_codes import CannotError, MissingRequirementError
from klppo_compile.perf.exact.metrics import pinned, rows_of_process, told
from klppo_compile.perf.measure import estimate
from klppo_compile.perf.processes import environment, last_words, run_process
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import Workload

TIMEOUT = 3600
SEPARATOR, EAGER, EXPORTED = "|", "eager", "exported"
"""The parts of a dump's name: a workload, and which of its steps."""
WHAT = {
    EAGER: ("ours eager", "instructions, forward + backward"),
    EXPORTED: ("ours exported", "instructions, forward"),
}
"""Of each step that the process counts, its provider and its metric."""


def missing() -> str:
    """What this machine lacks for counting, in words; "" where nothing."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return f"instructions are counted on x86-64 only; this is {platform.machine()}"
    if shutil.which("valgrind") is None:
        return "instructions are counted by valgrind, which is not installed: apt install valgrind"
    return ""


def valgrind_version() -> str:
    """The version of the valgrind on the path; "" without one."""
    path = shutil.which("valgrind")
    if path is None:
        return ""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603  asks for its version
    return done.stdout.strip().removeprefix("valgrind-")


def measure_counted(
    workloads: Iterable[Workload],
    python_path: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Count the instructions of our eager and our exported loss.

    Args:
        workloads: what to compute.
        python_path: a folder whose package is measured; None is the one that runs.
        progress: told a line when building and when counting begins.

    Raises:
        MissingRequirementError: no valgrind, or not x86-64.
        FailedError: the loss's answer is wrong.
        CannotError: a process died.
    """
    lacks = missing()
    if lacks:
        raise MissingRequirementError(lacks)
    tell = progress or (lambda _: None)
    texts = [told(workload) for workload in workloads]
    with tempfile.TemporaryDirectory(prefix="klppo-counted-") as text:
        folder = Path(text)
        tell("building what callgrind counts")
        rows_of_process("counted.build", [text, *texts], "the exported loss", python_path)
        tell(f"counting instructions of {len(texts)} workloads under callgrind")
        run_callgrind(folder, texts, python_path)
        return rows_in(folder)


def run_callgrind(folder: Path, texts: list[str], python_path: Path | None) -> None:
    """Run the counting process; its dumps lie in the folder.

    Raises:
        CannotError: it died, or took too long.
    """
    valgrind = shutil.which("valgrind")
    assert valgrind is not None
    command = [
        valgrind,
        "--tool=callgrind",
        "--instr-atstart=no",
        f"--callgrind-out-file={folder / 'dump'}",
        sys.executable,
        "-P",
        "-m",
        "klppo_compile.perf.counted.process",
        str(folder),
        *texts,
    ]
    done = run_process("callgrind", command, environment(python_path, pinned()), TIMEOUT)
    if done.returncode:
        raise CannotError(f"callgrind ended with {done.returncode}: {last_words(done, '==')}")


def rows_in(folder: Path) -> list[Row]:
    """The rows of a folder of dumps; the dump that ends the process carries no name."""
    counts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for path in sorted(folder.glob("dump.*")):
        found = read_dump(path.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            counts[found[:2]].append(found[2])
    return [row_of(*key, numbers) for key, numbers in counts.items()]


def row_of(workload: str, what: str, numbers: list[float]) -> Row:
    """The median of one step's dumps."""
    provider, metric = WHAT[what]
    unit, found = "instructions", estimate(numbers)
    return Row(workload, provider, metric, unit, *found, "lower", "counted")


def read_dump(text: str) -> tuple[str, str, int] | None:
    """Workload, step and instructions of a dump; None of one that nobody asked for."""
    name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
    total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    if name is None or total is None:
        return None
    workload, _, what = name[1].partition(SEPARATOR)
    return workload, what, int(total[1])
