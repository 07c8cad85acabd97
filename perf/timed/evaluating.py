"""`python -m klppo_compile.perf onnx`: a million rows evaluated, ONNX Runtime against PyTorch.

Forward alone, no gradients, one thread. One round gives every contender the next minibatch, so that
a disturbance hits all alike; every minibatch of the rollout goes through each of them once.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from tensordict import TensorDict

from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.compiler import require_compiler
from klppo_compile.compiling import compile_loss
from klppo_compile.exit_codes import FailedError, MissingRequirementError
from klppo_compile.perf.machine import run_header
from klppo_compile.perf.measure import ENOUGH, estimate, interleave, ratios
from klppo_compile.perf.providers import (
    OURS,
    OURS_COMPILED,
    TORCHRL,
    our_loss,
    torchrl_loss,
)
from klppo_compile.perf.rows import Row, require_place, write_result
from klppo_compile.perf.timed.cpu import WrongAnswerError
from klppo_compile.perf.workloads import WIDTHS, Problem, Workload, problem

if TYPE_CHECKING:
    from klppo_compile.export.runtime import OnnxFile

ROWS = 2**20
BATCHES = (256, 4096)
ONNX, ONNX_BOUND, ONNX_ROWS = "ONNX Runtime", "ONNX Runtime, bound", "ONNX Runtime, rows"
"""The loss's own outputs; the same by I/O binding; and those of each row that `klppo evaluate`
reads."""
OUTPUTS = (
    "loss_objective",
    "loss_entropy",
    "loss_critic",
    "kl",
    "kl_approx",
    "entropy",
    "explained_variance",
    "nonfinite",
)
ROW_OUTPUTS = ("kl", "log_prob", "ratio", "entropy_rows", "critic_rows", "value")
COMPARED = ("loss_objective", "loss_entropy", "loss_critic", "kl")
SPEED_OVER = (TORCHRL, OURS_COMPILED)
TOLERANCE = {TORCHRL: 1e-3}
"""Of a minibatch's losses and mean KL, relative; torchrl's KL cancels in float32."""
USUAL_TOLERANCE = 2e-5

Numbers = Mapping[str, Any]
Evaluate = Callable[[int], Numbers]


@dataclass(frozen=True)
class Recorded:
    """A rollout cut into minibatches, as each side takes them: views, made before the clock runs.

    Attributes:
        name: of the workload.
        problem: the networks and the whole rollout.
        tensordicts: for PyTorch.
        arrays: for ONNX Runtime, by the graph's inputs.
    """

    name: str
    problem: Problem
    tensordicts: list[TensorDict]
    arrays: list[dict[str, NDArray[Any]]]


def contenders(
    case: Problem, cut: list[TensorDict], file: "OnnxFile"
) -> tuple[Recorded, dict[str, Evaluate]]:
    """Each contender as a function from the number of a minibatch to its outputs."""
    arrays = [{s.name: part[s.key].numpy() for s in file.manifest.inputs} for part in cut]
    recorded = Recorded(f"evaluate/{case.workload.name}", case, cut, arrays)
    ours, theirs = our_loss(case).eval(), torchrl_loss(case)
    compiled = compile_loss(our_loss(case).eval())

    def of_torch(loss: Callable[[TensorDict], Any]) -> Evaluate:
        def evaluate(i: int) -> Numbers:
            with torch.no_grad():
                out: Numbers = loss(cut[i])
            return out

        return evaluate

    return recorded, {
        TORCHRL: of_torch(theirs),
        OURS: of_torch(ours),
        OURS_COMPILED: of_torch(compiled),
        ONNX: lambda i: file.run(arrays[i], OUTPUTS),
        ONNX_BOUND: bound(file, arrays),
        ONNX_ROWS: lambda i: file.run(arrays[i], ROW_OUTPUTS),
    }


def bound(file: "OnnxFile", arrays: list[dict[str, NDArray[Any]]]) -> Evaluate:
    """By I/O binding: outputs are bound once, for all minibatches are of one size."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    binding = file.session.io_binding()
    for name in OUTPUTS:
        binding.bind_output(name)

    def evaluate(i: int) -> Numbers:
        for name, x in arrays[i].items():
            binding.bind_cpu_input(name, x)
        file.session.run_with_iobinding(binding, options)
        return dict(zip(OUTPUTS, binding.copy_outputs_to_cpu(), strict=True))

    return evaluate


@contextmanager
def prepared(family: str, batch: int, rows: int) -> Iterator[tuple[Recorded, dict[str, Evaluate]]]:
    """The rollout and its contenders, while the exported file is there."""
    from klppo_compile.export import export_loss
    from klppo_compile.export.runtime import open_file

    whole = problem(Workload(family, rows, networks=True))
    case = replace(whole, workload=Workload(family, batch, networks=True))
    cut = list(case.data.split(batch, 0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loss.onnx"
        export_loss(our_loss(case), cut[0], path)
        yield contenders(case, cut, open_file(path, "cpu", threads=1))


def require_right(recorded: Recorded, evaluates: Mapping[str, Evaluate]) -> None:
    """Hold every contender against torchrl in float64, on the first and the last minibatch.

    Raises:
        WrongAnswerError: names each contender that is off, and where.
    """
    exact = recorded.problem
    batch = recorded.tensordicts[0].shape[0]
    double = problem(Workload(exact.workload.family, len(exact.data), networks=True), torch.float64)
    truth, wrong = torchrl_loss(double), []
    for i in (0, len(recorded.tensordicts) - 1):
        with torch.no_grad():
            true = truth(double.data[i * batch : (i + 1) * batch])
        for name, evaluate in evaluates.items():
            wrong += [
                f"{name}: {key} of minibatch {i} is off by {error:.1e}"
                for key, error in errors(evaluate(i), true).items()
                if not error <= TOLERANCE.get(name, USUAL_TOLERANCE)
            ]
    if wrong:
        raise WrongAnswerError(f"{recorded.name}: {'; '.join(wrong)}")


def errors(found: Numbers, true: Numbers) -> dict[str, float]:
    """How far the losses and the mean KL are from the truth, relatively; what is missing isn't."""
    out = {}
    for key in COMPARED:
        if key in found:
            got, wanted = (float(np.mean(np.asarray(x[key], np.float64))) for x in (found, true))
            out[key] = abs(got - wanted) / abs(wanted)
    return out


def measure(recorded: Recorded, evaluates: Mapping[str, Evaluate]) -> list[Row]:
    """Time every contender over all minibatches, after its answers were found right."""
    with warnings.catch_warnings():
        # Of compiling torchrl's modules, which are its own.
        warnings.simplefilter("ignore")
        for evaluate in evaluates.values():
            for _ in range(3):
                evaluate(0)
        require_right(recorded, evaluates)
    count = len(recorded.tensordicts)

    def step(evaluate: Evaluate) -> Callable[[], object]:
        turn = cycle(range(count))
        return lambda: evaluate(next(turn))

    steps = {name: step(evaluate) for name, evaluate in evaluates.items()}
    # The process's clock, so that a thread of somebody's own would be counted as well.
    times = interleave(steps, count, float("inf"), time.process_time)
    return rows_of(recorded.name, len(recorded.problem.data), times)


def rows_of(name: str, rows: int, times: Mapping[str, list[float]]) -> list[Row]:
    """Times of a minibatch and of them all, and who is how much faster than whom."""
    found = []
    for provider, samples in times.items():
        each = estimate([1e6 * t for t in samples])
        found.append(Row(name, provider, "time", "us", *each, "lower"))
        total = sum(samples)
        metric = f"time of {rows:,} rows"
        found.append(Row(name, provider, metric, "s", total, total, total, 1, "lower"))
        for other in SPEED_OVER:
            if other in times:
                speed = ratios(times[other], samples)
                found.append(Row(name, provider, f"speed over {other}", "x", *speed, "higher"))
    return found


def table_of(name: str, rows: list[Row]) -> Table:
    """One line per contender."""
    table = Table(title=f"{name}: forward, no gradients, one thread", title_justify="left")
    metrics = list(dict.fromkeys(row.metric for row in rows))
    add_columns(table, "")
    add_columns(table, *metrics, justify="right")
    for provider in dict.fromkeys(row.provider for row in rows):
        mine = {row.metric: row for row in rows if row.provider == provider}
        table.add_row(provider, *[_cell(mine[metric]) for metric in metrics])
    return table


def _cell(row: Row) -> str:
    if row.unit != "x":
        return f"{row.value:,.0f} us" if row.unit == "us" else f"{row.value:.2f} {row.unit}"
    if row.samples < ENOUGH:
        return f"{row.value:.2f}x"
    return f"{row.value:.2f}x [{row.low:.2f}, {row.high:.2f}]"


@click.command("onnx")
@click.option(
    "--family",
    type=click.Choice(["all", *WIDTHS]),
    default="all",
    show_default=True,
    help="Policy.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=2 * max(BATCHES)),
    default=ROWS,
    show_default=True,
    help="Of the rollout; what doesn't fill a minibatch is left out.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A JSON file, or a folder that gets a named one."
)
def command(family: str, rows: int, out: Path | None) -> None:
    """Evaluate a rollout, forward alone, on one thread: ONNX Runtime beside PyTorch."""
    for package, extra in (("torchrl", "perf"), ("onnxruntime", "export")):
        if find_spec(package) is None:
            raise MissingRequirementError(
                f"This needs {package}: pip install 'klppo-compile[{extra}]'"
            )
    require_place(out)
    require_compiler()
    torch.set_num_threads(1)
    console, found = plain(), []
    for name in WIDTHS if family == "all" else (family,):
        for batch in BATCHES:
            torch.compiler.reset()
            with prepared(name, batch, rows - rows % batch) as (recorded, evaluates):
                try:
                    measured = measure(recorded, evaluates)
                except WrongAnswerError as error:
                    raise FailedError(f"no speed for a wrong answer: {error}") from error
            console.print(table_of(recorded.name, measured))
            found += measured
    if out is not None:
        header = run_header(f"python -m klppo_compile.perf onnx --family {family} --rows {rows}")
        path = write_result(out, header, found, "-onnx")
        console.print(f"rows written to {path}", soft_wrap=True)
