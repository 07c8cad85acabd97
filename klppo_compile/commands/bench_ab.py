"""`klppo bench ab` and `klppo bench calibrate`: two revisions, interleaved on this machine."""

import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from klppo_compile.commands.bench_run import page, progress
from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.plain import add_columns
from klppo_compile.exit_codes import ExitCode

if TYPE_CHECKING:
    from klppo_compile.perf.gate.run import Result


def finite(ctx: click.Context, param: click.Parameter, value: float) -> float:  # noqa: ARG001  click's signature
    """A number that time can be; a range takes infinity, and what is no number.

    Raises:
        BadParameter: it is none.
    """
    if not math.isfinite(value):
        raise click.BadParameter(f"it must be a number of minutes; got {value}")
    return value


workload_option = click.option(
    "--workload",
    metavar="PATTERN",
    help="Only workloads of this name, normal/heads/*.  [default: the gate's two]",
)
minutes_option = click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    default=5.0,
    show_default=True,
    help="Time for all of it; it ends early once it is decided.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="A .json file for the rows, or a folder."
)


@click.command()
@click.argument("rev_a")
@click.argument("rev_b")
@workload_option
@minutes_option
@click.option(
    "--launches",
    type=click.IntRange(min=3),
    help="Launches of the screen, and of a confirmation.  [default: as many as decide]",
)
@json_option
@out_option
def ab(
    rev_a: str,
    rev_b: str,
    workload: str | None,
    minutes: float,
    launches: int | None,
    as_json: bool,
    out: Path | None,
) -> ExitCode:
    """Measure revision REV_B against REV_A, both on this machine, call by call in turns.

    A revision is what git knows, or . for the working tree. Exact metrics come first; where one is
    worse, nothing is timed. Ends with 1 for a regression that a second set of launches confirmed,
    with 3 where the machine is too noisy to tell.
    """
    with loading():
        from klppo_compile.compiler import require_compiler
        from klppo_compile.perf.comparing.findings import exit_code, told
        from klppo_compile.perf.comparing.table import conclusion, findings_table
        from klppo_compile.perf.gate.run import compare_revisions
        from klppo_compile.perf.rows import require_place

    require_place(out)
    require_compiler()
    with progress() as tell, tempfile.TemporaryDirectory(prefix="klppo-ab-") as folder:
        result = compare_revisions(rev_a, rev_b, workload, minutes, launches, Path(folder), tell)
    code = exit_code(result.findings)
    if out is not None:
        write(out, f"klppo bench ab {rev_a} {rev_b}", result)
    if as_json:
        text = {
            "base": result.base,
            "new": result.new,
            "verdict": conclusion(result.findings),
            "exit_code": int(code),
            "notes": result.notes,
            "findings": [told(finding) for finding in result.findings],
        }
        click.echo(json.dumps(text, indent=1, ensure_ascii=False, allow_nan=False))
        return code
    console = page()
    for kinds, everything in ((("exact",), False), (("timed",), True)):
        table = findings_table((f for f in result.findings if f.kind in kinds), everything)
        if table.row_count:
            console.print(table)
    for note in result.notes:
        console.print(note, soft_wrap=True, highlight=False)
    words = conclusion(result.findings).split(" Times:")[0]
    console.print(f"{result.new} against {result.base}: {words}", soft_wrap=True, highlight=False)
    return code


@click.command()
@workload_option
@minutes_option
@json_option
def calibrate(workload: str | None, minutes: float, as_json: bool) -> ExitCode:
    """Measure the working tree against itself: the noise here, and the least slowdown that shows.

    It takes all of its minutes.
    """
    with loading():
        from klppo_compile.compiler import require_compiler
        from klppo_compile.perf.gate.run import calibrate as measure

    require_compiler()
    with progress() as tell, tempfile.TemporaryDirectory(prefix="klppo-ab-") as folder:
        found, _ = measure(workload, minutes, Path(folder), tell)
    if as_json:
        click.echo(json.dumps({"workloads": [asdict(x) for x in found]}, indent=1, allow_nan=False))
        return ExitCode.GOOD
    table = Table()
    add_columns(table, "workload")
    numbers = ("forward and backward", "the same again", "spread of a launch", "launches")
    add_columns(table, *numbers, "smallest slowdown that shows", justify="right")
    for noise in found:
        table.add_row(
            noise.workload,
            f"{1e6 * noise.seconds:,.0f} us",
            f"{noise.mean:+.2%} [{noise.low:+.1%}, {noise.high:+.1%}]",
            f"{noise.spread:.2%}",
            str(noise.launches),
            f"{noise.visible:.1%}",
        )
    page().print(table)
    return ExitCode.GOOD


def write(out: Path, command: str, result: "Result") -> None:
    """Write what was measured of the new side as a result file, under the new side's commit."""
    from klppo_compile.perf.machine import run_header
    from klppo_compile.perf.rows import write_result

    path = write_result(out, run_header(command) | result.measured, result.rows)
    click.echo(f"{len(result.rows)} rows written to {path}", err=True)
