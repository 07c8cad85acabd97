"""`python -m klppo_compile.perf`: measure the loss here, on a CPU or on a GPU."""

import importlib.util
import math
import os
import sys
from fnmatch import fnmatch
from pathlib import Path

import click

from klppo_compile.cli import print_every_letter, run
from klppo_compile.exit_codes import BadInputError, ExitCode, FailedError, MissingRequirementError

NEEDS_TORCHRL = "The comparison needs torchrl: pip install 'klppo-compile[perf]'"
NEEDS_TRITON = "This needs Triton: pip install 'klppo-compile[triton]', on Linux"
CHIPS = ("sm_80", "sm_90", "sm_100")
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A JSON file, or a folder that gets a named one.",
)


def above_0(ctx: click.Context, param: click.Parameter, value: float) -> float:  # noqa: ARG001 - click's signature
    """A positive number of the command line.

    Raises:
        BadParameter: it is none, or no finite one.
    """
    if not 0 < value < math.inf:
        raise click.BadParameter(f"it must be above 0; got {value}")
    return value


def launches_enough(ctx: click.Context, param: click.Parameter, value: int) -> int:  # noqa: ARG001
    """One launch, or enough for an interval of launches."""
    if value == 1:
        return value
    from klppo_compile.perf.statistics import LEAST

    if value < LEAST:
        raise click.BadParameter(
            f"must be 1, or {LEAST} or more, which an interval of launches needs; got {value}"
        )
    return value


def require(package: str, text: str) -> None:
    """Refuse where a package is not installed.

    Raises:
        MissingRequirementError: it isn't.
    """
    if sys.modules.get(package, ...) is None or importlib.util.find_spec(package) is None:
        raise MissingRequirementError(text)


class Suites(click.Group):
    """The commands here, and `onnx`, whose module loads torch: only when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        return [*super().list_commands(ctx), "onnx"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the one that lives elsewhere."""
        if name != "onnx":
            return super().get_command(ctx, name)
        from klppo_compile.perf.timed import evaluating

        command: click.Command = evaluating.command
        return command


@click.group(cls=Suites, context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def group() -> None:
    """Hold the subcommands."""


@group.command()
@click.option("--workload", default="*", help="Pattern of workload names: 'normal/heads/*'.")
@click.option("--rounds", type=int, callback=above_0, default=200, help="Calls of each, at most.")
@click.option("--seconds", type=int, callback=above_0, default=20, help="Per workload, at most.")
@click.option("--quick", is_flag=True, help="Seconds per workload, B <= 4096.")
@click.option(
    "--launches",
    type=int,
    callback=launches_enough,
    default=1,
    show_default=True,
    help="Fresh processes, 3 or more, that each count once in the intervals; 1 is this one.",
)
@OUT
def cpu(
    workload: str, rounds: int, seconds: int, quick: bool, launches: int, out: Path | None
) -> None:
    """Time the loss on one thread, beside torchrl's."""
    from klppo_compile.commands.bench_run import page
    from klppo_compile.compiler import require_compiler
    from klppo_compile.perf.machine import run_header
    from klppo_compile.perf.rows import Row, require_place, write_result
    from klppo_compile.perf.table import table_of
    from klppo_compile.perf.timed.cpu import WrongAnswerError, measure_workload
    from klppo_compile.perf.timed.launches import measure_launches
    from klppo_compile.perf.workloads import WORKLOADS

    require("torchrl", NEEDS_TORCHRL)
    limits = (50, 3) if quick else (rounds, seconds)
    chosen = [w for w in WORKLOADS if fnmatch(w.name, workload) and not (quick and w.batch > 4096)]
    if not chosen:
        names = ", ".join(w.name for w in WORKLOADS)
        raise BadInputError(
            f"--workload must match a workload; {workload!r} matches none of {names}"
        )
    require_place(out)
    require_compiler()
    rows: list[Row] = []
    console = page()
    for one in chosen:
        try:
            if launches == 1:
                measured = measure_workload(one, *limits)
            else:
                with console.status(one.name) as status:
                    measured = measure_launches(one, *limits, launches, status.update)
        except WrongAnswerError as error:
            raise FailedError(f"no speed for a wrong answer: {error}") from error
        console.print(table_of(one, measured))
        rows += measured
    if out is not None:
        header = run_header("python -m klppo_compile.perf " + " ".join(sys.argv[1:]))
        path = write_result(out, header, rows)
        console.print(f"rows written to {path}", soft_wrap=True)


@group.command()
@click.option(
    "--minutes",
    type=float,
    callback=above_0,
    default=10.0,
    show_default=True,
    help="For all of it.",
)
@click.option("--interpret", is_flag=True, help="Tiny sizes on the CPU, to try the suite out.")
@click.option("--tests/--no-tests", default=True, help="The kernel tests before all else.")
@click.option(
    "--checkout",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder with tests/, where that isn't this package's own.",
)
@OUT
def gpu(
    minutes: float, interpret: bool, tests: bool, checkout: Path | None, out: Path | None
) -> ExitCode:
    """Test the kernels on a GPU, then time them beside their peers; goes on where it ended."""
    require("torchrl", NEEDS_TORCHRL)
    require("triton", NEEDS_TRITON)
    if interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before torch loads Triton
    from klppo_compile.perf.gpu.suite import run_gpu_suite

    return run_gpu_suite(
        minutes=minutes, out=out, interpret=interpret, tests=tests, checkout=checkout
    )


@group.command()
@click.option("--chips", type=click.Choice(CHIPS), multiple=True, default=["sm_90"])
@click.option("--head", "heads", multiple=True, help="family-columns, as normal-17; several.")
@click.option("--rows", type=int, callback=above_0, default=1_048_576, show_default=True, help="N.")
@OUT
def inductor(chips: tuple[str, ...], heads: tuple[str, ...], rows: int, out: Path | None) -> None:
    """Read Inductor's kernels for the torch text beside ours, without a GPU."""
    require("triton", NEEDS_TRITON)
    from klppo_compile.perf.gpu.inductor import show

    show(chips, heads, rows, out)


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code; errors are printed, never raised."""
    print_every_letter()
    given = sys.argv[1:] if arguments is None else arguments
    return run(given, group, "python -m klppo_compile.perf")


if __name__ == "__main__":
    sys.exit(main())
