"""`klppo bench run` and `klppo bench compare`: measure into a file, compare two files."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.plain import plain
from klppo_compile.exit_codes import BadInputError, ExitCode

if TYPE_CHECKING:
    from klppo_compile.perf.suites import Outcome

# As `perf.suites.PARTS` and `SUITES`, which a test holds equal; that room isn't loaded for --help.
PARTS = ("exact", "kernels", "counted", "timed", "cold")
SUITES = ("quick", "full", "gpu")
LOG_WIDTH = 180


@click.command()
@click.option(
    "--suite",
    type=click.Choice(SUITES),
    default="quick",
    show_default=True,
    help="quick: minutes, for CI. full: every workload and kernel. gpu: on a CUDA device.",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Only this; may be repeated. What it needs must be there.",
)
@click.option(
    "--workload", "workloads", multiple=True, help="Only this of the suite's; may be repeated."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A .json file, or a folder that gets one named by date, commit and machine.",
)
def run(suite: str, parts: tuple[str, ...], workloads: tuple[str, ...], out: Path) -> ExitCode:
    """Measure the loss here and write a result file.

    A loss whose answer is wrong gets no numbers: that fails.
    """
    from klppo_compile.perf.rows import require_place, write_result

    require_place(out)
    if suite == "gpu":
        if parts or workloads:
            raise BadInputError("--suite gpu takes neither --part nor --workload: it has no parts.")
        from klppo_compile.perf.gpu.suite import run_gpu_suite

        return run_gpu_suite(out=out)
    with loading():
        from klppo_compile.perf.suites import header_of, require_known, run_suite

    require_known(suite, workloads)
    console = page()
    with progress() as tell:
        outcome = run_suite(suite, tell, parts, workloads)
    narrowed = [f"--part {part}" for part in parts] + [f"--workload {name}" for name in workloads]
    command = " ".join(["klppo bench run --suite", suite, *narrowed])
    header = header_of(command, suite, outcome)
    path = write_result(out, header, outcome.rows)
    show(outcome, console)
    console.print(f"{len(outcome.rows)} rows written to {path}", soft_wrap=True, highlight=False)
    return ExitCode.GOOD


def page() -> Console:
    """Standard output; in a log as wide as the tables, not as a terminal of 80 columns."""
    console = plain()
    return console if console.is_terminal else plain(width=LOG_WIDTH)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Tell what is under way: a spinner on a terminal, a line each with the seconds in a log."""
    # On stderr, so that a pipe gets only the result.
    console, began = plain(stderr=True), time.monotonic()

    def line(text: str) -> None:
        console.print(f"{time.monotonic() - began:4.0f} s  {text}", highlight=False)

    if not console.is_terminal:
        yield line
        return
    with console.status("starting") as status:
        # A spinner reads a str as markup, whatever its console does.
        yield lambda text: status.update(Text(f"{text}  ({time.monotonic() - began:.0f} s)"))


def show(outcome: "Outcome", console: Console) -> None:
    """Print the tables of what was measured, and what was left out."""
    from klppo_compile.perf.comparing.table import count_tables, timed_tables

    for table in (*count_tables(outcome.rows), *timed_tables(outcome.rows)):
        console.print(table)
    for sentence in outcome.left_out:
        console.print(sentence, soft_wrap=True, highlight=False)


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--accepted",
    type=click.Path(path_type=Path),
    help="TOML of the exact changes that were decided on.  [default: perf/accepted.toml]",
)
@click.option(
    "--across-machines",
    is_flag=True,
    help="Of files of two machines, compare what depends on none: exact and counted metrics.",
)
@click.option("--all", "everything", is_flag=True, help="Show what did not move, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def compare(
    base: Path,
    new: Path,
    accepted: Path | None,
    across_machines: bool,
    everything: bool,
    as_json: bool,
) -> ExitCode:
    """Say which metrics moved between the result files BASE and NEW, by how much, how surely.

    Exact and counted metrics are judged. Times of two runs are no proof: of them only our speed
    over torchrl eager is compared, a slowdown of it that shows ends with 3, and `klppo bench ab`
    decides it. Up to some 30 % none shows, so PASS says little of times; how little is printed.
    """
    with loading():
        from klppo_compile.perf.comparing.accepting import FILE, read_accepted
        from klppo_compile.perf.comparing.documents import compare_documents, open_document
        from klppo_compile.perf.comparing.findings import exit_code, told
        from klppo_compile.perf.comparing.table import conclusion, findings_table

    decisions = read_accepted(accepted or FILE)
    found = compare_documents(open_document(base), open_document(new), decisions, across_machines)
    code = exit_code(found.findings)
    if as_json:
        text = {
            "verdict": conclusion(found.findings),
            "exit_code": int(code),
            "notes": found.notes,
            "findings": [told(finding) for finding in found.findings],
        }
        click.echo(json.dumps(text, indent=1, ensure_ascii=False, allow_nan=False))
        return code
    console = page()
    table = findings_table(found.findings, everything)
    if table.row_count:
        console.print(table)
    for note in found.notes:
        console.print(note, soft_wrap=True, highlight=False)
    console.print(conclusion(found.findings), soft_wrap=True, highlight=False)
    return code
