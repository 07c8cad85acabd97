"""`klppo bench report` and `klppo bench convert`: the history as a page, and for other tools."""

from pathlib import Path

import click

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.outputs import require_apart
from klppo_compile.exit_codes import BadInputError, ExitCode

FORMATS = (
    "pytest-benchmark",
    "bmf",
    "github-action",
    "hud-v3",
    "asv",
    "otava-csv",
    "openmetrics",
)


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("perf/results"),
    show_default=True,
    help="Folder of result files, one for each run.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="HTML file to write.")
@click.option(
    "--commit-url",
    metavar="URL",
    help="Start of a commit's web address, ending in /commit/.  [default: no links]",
)
@click.option(
    "--accepted",
    type=click.Path(path_type=Path),
    help="TOML of the exact changes that were decided on.  [default: perf/accepted.toml]",
)
def report(results: Path, out: Path, commit_url: str | None, accepted: Path | None) -> ExitCode:
    """Draw the history as one HTML file that works from disk."""
    with loading():
        from klppo_compile.perf.comparing.accepting import FILE, read_accepted
        from klppo_compile.perf.history.files import read_history
        from klppo_compile.perf.page.file import page

    require_apart({"--out": out}, (*results.glob("*.json"), accepted or FILE))
    runs = read_history(results)
    text = page(runs, commit_url, read_accepted(accepted or FILE))
    write(out, text)
    click.echo(
        f"{out}: {len(runs)} run{'s' * (len(runs) != 1)}, {len(text.encode()) / 1000:,.0f} kB"
    )
    return ExitCode.GOOD


@click.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--to", "form", type=click.Choice(FORMATS), required=True, help="Whose format.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write, for asv a folder.  [default: standard output]",
)
def convert(files: tuple[Path, ...], form: str, out: Path | None) -> ExitCode:
    """Write result files in the format of another tool.

    asv and otava-csv take several FILEs, one for each run; the others take one.
    """
    with loading():
        from klppo_compile.perf.formats.files import converted
        from klppo_compile.perf.history.files import read_run

    require_apart({"--out": out}, files)
    runs = [read_run(file) for file in files]
    documents, notes = converted(runs, form)
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    if list(documents) == [""]:
        text = documents[""]
        click.echo(text, nl=False) if out is None else write(out, text)
        return ExitCode.GOOD
    if out is None:
        raise BadInputError(f"--to {form} writes several files; say where: --out FOLDER.")
    for name, text in documents.items():
        write(out / name, text)
    return ExitCode.GOOD


def write(path: Path, text: str) -> None:
    """Write a text file and the folders above it.

    Raises:
        BadInputError: the path can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"--out must be a path that can be written; {error}.") from error
