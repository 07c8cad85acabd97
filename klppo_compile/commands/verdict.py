"""What evaluate, compare and merge share: their options, the bar, the table, the gates."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from klppo_compile.commands.outputs import drawable, writable
from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.exit_codes import ExitCode

if TYPE_CHECKING:
    from klppo_compile.export.runtime import OnnxFile
    from klppo_compile.export.totals import Evaluation

Decorator = Callable[..., Any]

# As `export.gates.GATES`, which tests hold equal; that room is not loaded for --help.
LIMITS = {
    "max-kl": "Largest mean KL, in nats.",
    "max-row-kl": "Largest KL of any row, in nats.",
    "max-ratio": "Largest ratio of any row.",
    "min-ess": "Least effective sample size, as a share of the rows.",
    "min-entropy": "Least mean entropy, in nats.",
    "min-explained-variance": "Least explained variance.",
}

MOST_DIGITS = 18
"""Of a number of rows: what an index of 64 bits holds."""

provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Of ONNX Runtime; one that is asked for and not active is an error.",
)


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:  # noqa: ARG001  click's signature
    """A number that something can be held against.

    Raises:
        BadParameter: NaN or infinity.
    """
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"it must be a finite number; got {value}.")
    return value


def positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A finite number above 0.

    Raises:
        BadParameter: another one.
    """
    if finite(ctx, param, value) is not None and not value > 0:  # type: ignore[operator]
        raise click.BadParameter(f"it must be above 0; got {value}.")
    return value


def result_options(function: Decorator) -> Decorator:
    """Gates, and where the result goes."""
    for name, text in reversed(LIMITS.items()):
        gate = click.option(
            f"--{name}", type=float, callback=finite, metavar="X", help=f"Gate: {text}"
        )
        function = gate(function)
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--picture",
            type=click.Path(path_type=Path),
            callback=drawable,
            help="Draw KL and ratio (.png, .svg, .pdf).",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            callback=writable,
            help="Save the result, also for klppo merge; a gate that fails saves it too.",
        ),
    ):
        function = option(function)
    return function


def results(options: Mapping[str, Any]) -> dict[str, Path | None]:
    """Where `result_options` write to."""
    return {f"--{name}": options[name] for name in ("out", "picture")}


def stream_options(function: Decorator) -> Decorator:
    """Which rows, how many at once, and where."""
    for option in (
        click.option(
            "--batch-rows", type=click.IntRange(min=1), help="Rows that go through at once."
        ),
        click.option("--rows", metavar="A:B", help="Only these rows of the rollout."),
        provider_option,
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            required=True,
            help="Rollout: TensorDict memmap folder, .npz or .safetensors.",
        ),
    ):
        function = option(function)
    return function


def row_number(text: str, option: str) -> int:
    """Decimal digits as a number of rows.

    Raises:
        UsageError: more digits than any file's rows have; Python reads no more than 4300.
    """
    if len(text) > MOST_DIGITS:
        raise click.UsageError(
            f"{option} takes numbers of at most {MOST_DIGITS} digits; got one of {len(text):,}."
        )
    return int(text)


def rows_range(text: str | None) -> tuple[int, int | None]:
    """A:B as numbers; either may be left out."""
    if text is None:
        return 0, None
    start, colon, stop = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (start, stop)):
        raise click.UsageError(
            f"--rows is A:B, the first row and the one after the last; got {text!r}."
        )
    first, end = (row_number(part, "--rows") if part else None for part in (start, stop))
    return first or 0, end


@contextmanager
def row_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over rows on a terminal; gives what to call after each batch."""
    console = plain(stderr=True)
    progress = Progress(
        TextColumn("rows", style="bold"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        disable=not console.is_terminal,
        transient=True,
    )
    with progress:
        task = progress.add_task("rows", total=total)
        yield lambda rows: progress.update(task, advance=rows)


def say_file(file: "OnnxFile", as_json: bool) -> None:
    """Which provider was taken, and whether the bytes are the checked ones."""
    if not as_json:
        click.echo(f"{file.path}: on {file.provider}", err=True)
    if file.doubt:
        click.echo(f"Warning: {file.doubt}.", err=True)


def given_limits(options: Mapping[str, Any]) -> dict[str, float]:
    """The gates among a command's options that were given, by the names on the command line."""
    found = {name.replace("_", "-"): x for name, x in options.items() if x is not None}
    return {name: x for name, x in found.items() if name in LIMITS}


def conclude(
    evaluation: "Evaluation",
    title: str,
    *,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
    whole: bool = False,
    **limits: float | None,
) -> ExitCode:
    """Print, save and draw a result, and judge it; `whole` says that it is of all the rows."""
    from klppo_compile.export.gates import judge, require_able_to_fail
    from klppo_compile.export.manifest import write_together
    from klppo_compile.export.report import report, to_json_number

    numbers = report(evaluation)
    given = given_limits(limits)
    require_able_to_fail(given, evaluation.scalars)
    verdicts = judge(numbers, given)
    for start, stop in evaluation.missing() if whole else ():
        click.echo(f"Warning: rows {start:,}:{stop:,} of the rollout are in no part.", err=True)
    if out is not None:
        write_together([(out, evaluation.to_json().encode())])
    if picture is not None:
        from klppo_compile.export.picture import draw

        draw(evaluation, picture, title)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if as_json:
        values = {
            "report": {name: to_json_number(x) for name, x in numbers.items()},
            "ranges": evaluation.ranges,
            "worst_rows": [
                [row, to_json_number(kl)] for row, kl in evaluation.totals.kl_worst.rows
            ],
            "gates": [
                {"gate": v.gate.option, "limit": v.limit, "found": to_json_number(v.found)}
                | {"passed": v.passed}
                for v in verdicts
            ],
        }
        click.echo(json.dumps(values, indent=2, allow_nan=False))
    else:
        print_report(evaluation, numbers, title)
        for verdict in verdicts:
            click.echo(str(verdict))
    return ExitCode.FAILED if failed else ExitCode.GOOD


def print_report(evaluation: "Evaluation", numbers: dict[str, Any], title: str) -> None:
    """The table of a result."""
    ranges = ", ".join(f"{start:,}:{stop:,}" for start, stop in evaluation.ranges)
    table = Table(title=f"{title}, rows {ranges} of {evaluation.rollout_rows:,}")
    add_columns(table, "number")
    add_columns(table, "value", justify="right")
    for name, x in numbers.items():
        table.add_row(name, f"{x:,}" if isinstance(x, int) else f"{x:.6g}")
    worst = ", ".join(f"{row} ({kl:.3g})" for row, kl in evaluation.totals.kl_worst.rows[:5])
    plain().print(table)
    click.echo(f"Rows of largest KL: {worst or 'none'}")
