"""The GPU suite: test the kernels on the device, then time them beside their peers, in a budget.

Rows are written as they are measured, the most valuable first. A run that is repeated on the same
day, commit and machine goes on where the last one ended.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from klppo_compile.commands.plain import plain
from klppo_compile.exit_codes import BadInputError, CannotError, ExitCode, MissingRequirementError
from klppo_compile.perf.comparing.documents import open_document
from klppo_compile.perf.gpu import targets as gpu_targets
from klppo_compile.perf.machine import result_name, run_header
from klppo_compile.perf.rows import Row, require_place, write_document

if TYPE_CHECKING:
    from klppo_compile.perf.gpu.cases import Job
    from klppo_compile.perf.gpu.job import Outcome
    from klppo_compile.perf.gpu.timing import Device

NO_DEVICE = (
    "The GPU suite needs a CUDA device and a CUDA build of torch; this torch sees none."
    " To try the suite out on the CPU, at tiny sizes: python -m klppo_compile.perf gpu --interpret."
)
NO_ROOM = "it doesn't fit in this device's memory"
RESULTS = Path("perf/results")
TESTS_SHARE = 0.4  # of the budget, at most
COPIED = 2**28  # bytes copied to find the bandwidth; past every cache


@dataclass
class Record:
    """The document of a run, which may have begun earlier.

    Attributes:
        path: of the file.
        header: of the document; `refused` holds by workload and contender why there is no speed.
        rows: measured so far.
    """

    path: Path
    header: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def add(
        self, rows: list[Row], workload: str = "", refused: dict[str, str] | None = None
    ) -> None:
        """Keep what is new, and write the document.

        A backward that noise took to 0 or below, the difference of two times, is no measurement.
        """
        known = {(row.workload, row.provider, row.metric) for row in self.rows}
        sound = [row for row in rows if row.kind != "timed" or row.low > 0]
        self.rows += [r for r in sound if (r.workload, r.provider, r.metric) not in known]
        if refused:
            self.header["refused"].setdefault(workload, {}).update(refused)
        write_document(self.path, self.header, self.rows)

    def left_of(self, job: "Job") -> "Job | None":
        """The job without those who aren't installed, which is noted; None where all is there."""
        from klppo_compile.perf.gpu.contenders import CONTENDERS

        name = job.workload.name
        absent = {who for who in job.contenders if CONTENDERS[who].missing}
        refused = {who: f"{CONTENDERS[who].package} is not installed" for who in absent}
        self.add([], name, refused)
        present = tuple(who for who in job.contenders if who not in absent)
        known = self.header["refused"].get(name, {}).keys()
        known |= {row.provider for row in self.rows if row.workload == name}
        return replace(job, contenders=present) if set(present) - known else None


def run_gpu_suite(
    *,
    minutes: float = 10.0,
    out: Path | None = None,
    interpret: bool = False,
    tests: bool = True,
    checkout: Path | None = None,
) -> ExitCode:
    """Test, measure, print the targets.

    Args:
        minutes: that all of it may take; a job isn't begun that wouldn't fit in what is left.
        out: a JSON file, or a folder that gets a named one; a file of this commit and machine is
            continued. perf/results by default, a temporary folder for the interpreter.
        interpret: run tiny sizes on the CPU in Triton's interpreter, to try the suite out.
        tests: whether the kernel tests run first.
        checkout: the folder that holds them, where that isn't this file's own.

    Returns:
        GOOD even where a target is missed, which the table says; FAILED where our kernels raised
        or were wrong.

    Raises:
        RefusalError: no device, a red kernel test, a file of another run.
    """
    console, began = plain(), time.monotonic()
    if not interpret and not torch.cuda.is_available():
        raise MissingRequirementError(NO_DEVICE)
    if interpret:
        require_interpreter()
    command = "python -m klppo_compile.perf gpu" + (" --interpret" if interpret else "")
    record = open_record(header(command, interpret), out)
    if tests and record.header.get("kernel tests") is None:
        test_kernels(record, checkout, interpret, minutes, console)
    measure(record, interpret, began + 60 * minutes, console)
    from klppo_compile.perf.gpu.cases import jobs

    judged = [] if interpret else record.rows
    console.print(gpu_targets.table_of(gpu_targets.verdicts(judged, jobs(interpret))))
    if interpret:
        console.print("Interpreted on the CPU: no speed above means anything.", style="bold")
    console.print(f"rows written to {record.path}", soft_wrap=True)
    return outcome_of(record)


def require_interpreter() -> None:
    """Refuse where Triton won't interpret its kernels, which it decides when it loads.

    Raises:
        CannotError: it was loaded without.
    """
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(language.softmax, InterpretedFunction):
        raise CannotError(
            "To be interpreted, Triton must know before it loads, and it has loaded. Set"
            " TRITON_INTERPRET=1 from the start."
        )
    # It computes by numpy, which minds logits that aren't there: infinite, and selected away.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.runtime")


def header(command: str, interpret: bool) -> dict[str, Any]:
    """The head of the document; its machine is the GPU, in the words that tell CPUs apart."""
    import triton

    head = run_header(command)
    described: dict[str, Any] = {"host": head["machine"]["cpu"], "triton": triton.__version__}
    if interpret:
        described |= {"cpu": "interpreted", "isa": "no-speeds"}
    else:
        gpu = torch.cuda.get_device_properties()
        described |= {
            "cpu": gpu.name,
            "cores": gpu.multi_processor_count,
            "isa": f"sm_{gpu.major}{gpu.minor}",
            "memory": gpu.total_memory,
            "cache": gpu.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    notes = {"interpreted": interpret, "refused": {}}
    return head | notes | {"machine": head["machine"] | described}


def open_record(head: dict[str, Any], out: Path | None) -> Record:
    """A new document, or the one that a run like this has begun.

    Raises:
        BadInputError: the file belongs to another commit or machine, is broken or can't be written.
    """
    if out is None:
        out = Path(tempfile.mkdtemp()) if head["interpreted"] else RESULTS
    require_place(out)
    path = out if out.suffix == ".json" else out / result_name(head)
    if not path.exists():
        return Record(path, head)
    begun = open_document(path)
    for what in ("commit", "machine"):
        if begun.run.get(what) != head[what]:
            raise BadInputError(
                f"A run is continued on the same {what} only; {path.name} was begun on"
                f" {begun.run.get(what)}, this is {head[what]}. Name another --out."
            )
    return Record(path, begun.run, begun.rows)


def test_kernels(
    record: Record, checkout: Path | None, interpret: bool, minutes: float, console: Console
) -> None:
    """Run the kernel tests, and note that they passed."""
    from klppo_compile.perf.gpu import kernel_tests

    folder, device = kernel_tests.checkout(checkout), "cpu" if interpret else "cuda"
    with console.status(f"kernel tests on {device}"):
        result = kernel_tests.run_tests(folder, device, 60 * minutes * TESTS_SHARE)
    record.header["kernel tests"] = result
    record.add([])
    console.print(f"kernel tests on {device}: {result}", highlight=False)


def measure(record: Record, interpret: bool, deadline: float, console: Console) -> None:
    """Measure what the record lacks, as long as there is time."""
    from klppo_compile.perf.gpu.cases import jobs
    from klppo_compile.perf.gpu.contenders import CONTENDERS
    from klppo_compile.perf.gpu.job import line, measure_job
    from klppo_compile.perf.gpu.timing import CudaDevice, Device, InterpretedDevice

    device: Device = InterpretedDevice() if interpret else CudaDevice()
    rate = bandwidth(device, COPIED >> 8 if interpret else COPIED)
    record.add([rate])
    compiler = "aot_eager" if interpret else "inductor"
    plan, took = jobs(interpret), {name: c.seconds for name, c in CONTENDERS.items()}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(plan), now="")
        for planned in plan:
            job, began = record.left_of(planned), time.monotonic()
            fits = job is not None and began + max(took[who] for who in job.contenders) < deadline
            if job is not None and fits:
                name = job.workload.name
                bar.update(task, now=f"{name}: {', '.join(job.contenders)}")
                work = partial(measure_job, job, device, 1e9 * rate.value, compiler)
                found = attempt(work, job, record)
                record.add(found.rows, name, found.refused)
                told = line(name, found)
                bar.console.print(told, highlight=False, soft_wrap=True)
                slowest = max(job.contenders, key=took.__getitem__)
                took[slowest] = max(took[slowest], time.monotonic() - began)
            bar.advance(task)


def bandwidth(device: "Device", size: int) -> Row:
    """What a copy of `size` bytes reaches on the device."""
    from klppo_compile.perf.gpu.timing import copy_bandwidth
    from klppo_compile.perf.measure import estimate

    found = estimate([rate / 1e9 for rate in copy_bandwidth(device, size)])
    return Row("copy", "torch", "copy bandwidth", "GB/s", *found, "higher")


def attempt(work: "Callable[[], Outcome]", job: "Job", record: Record) -> "Outcome":
    """What a job finds; on a device too small for it, that.

    Raises:
        CannotError: the device answers no more in this process; the next one passes this job over.
    """
    from klppo_compile.perf.gpu.job import Outcome

    try:
        return work()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Outcome(refused=dict.fromkeys(job.contenders, NO_ROOM))
    except torch.AcceleratorError as error:
        why = f"the device failed: {str(error).splitlines()[0]}"
        record.add([], job.workload.name, dict.fromkeys(job.contenders, why))
        raise CannotError(
            f"{job.workload.name}, {' or '.join(job.contenders)}: {why}. What was measured is kept"
            " and what failed is noted: run again to go on with the rest."
        ) from error


def outcome_of(record: Record) -> ExitCode:
    """FAILED where our own kernels have no speed because they raised or were wrong."""
    from klppo_compile.perf.gpu.cases import OURS

    reasons = [names.get(OURS, NO_ROOM) for names in record.header["refused"].values()]
    failed = any(reason != NO_ROOM for reason in reasons)
    return ExitCode.FAILED if failed else ExitCode.GOOD
