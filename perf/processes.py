"""Measuring processes: fresh ones, that end in time, and what they said where they failed."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from klppo_compile.exit_codes import CannotError

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), "1"
)
UNWANTED = {"TRITON_INTERPRET", "TORCH_LOGS"}
"""Variables that would change what is measured."""
RUNNING: set["subprocess.Popen[str]"] = set()
"""Processes that are waited for, by any thread."""
ADVICE = (
    "Set TORCHDYNAMO_VERBOSE=1",
    "You can suppress this exception",
    "import torch._dynamo",
    "torch._dynamo.config.suppress_errors",
)
"""What torch ends an error of a compiler with, below its cause."""


def environment(first: Path | None, pinned: Mapping[str, str]) -> dict[str, str]:
    """This process's variables on one thread, with a folder in front of where it imports from."""
    kept = {k: v for k, v in os.environ.items() if k not in UNWANTED}
    here = [str(Path(folder or ".").resolve()) for folder in sys.path]
    before = [] if first is None else [str(first.resolve())]
    return kept | ONE_THREAD | {"PYTHONPATH": os.pathsep.join([*before, *here]), **pinned}


@contextmanager
def workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run processes; whatever breaks their work off ends the processes too.

    A signal may reach this process alone, and leaving the pool waits for what its threads wait for.
    """
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(RUNNING):
                process.kill()
            raise


def run_process(
    what: str, command: Sequence[str], variables: Mapping[str, str], seconds: float, given: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end, with `given` on its standard input.

    Raises:
        CannotError: it took longer.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603  this interpreter, or valgrind on it, on our modules
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(variables), text=True
    ) as process:
        RUNNING.add(process)
        try:
            out, errors = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise CannotError(
                f"{what} must end within {seconds:g} s; it did not. Close what else runs here, or"
                " measure fewer workloads."
            ) from error
        finally:
            RUNNING.discard(process)
            process.kill()
    return subprocess.CompletedProcess(list(command), process.returncode, out, errors)


def last_words(done: "subprocess.CompletedProcess[str]", ignored: str = "\0") -> str:
    """The last line of a process's errors that tells one, of those not begun with `ignored`."""
    said = (line.strip() for line in done.stderr.splitlines())
    lines = [line for line in said if line and not line.startswith((ignored, *ADVICE))]
    return lines[-1] if lines else "it said nothing"
