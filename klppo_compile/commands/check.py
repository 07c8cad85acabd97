"""`klppo check`: an exported file, checked again."""

import json
from pathlib import Path

import click

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.verdict import positive, provider_option
from klppo_compile.exit_codes import ExitCode, FailedError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Rollout to check it on."
)
@click.option("--target", help="Run folder or module:factory that it was exported from.")
@click.option("--checkpoint", metavar="NAME|FILE", help="As for klppo export.")
@provider_option
@click.option(
    "--tolerance", type=float, callback=positive, help="[default: the one it was exported with]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    file: Path,
    data: Path,
    target: str | None,
    checkpoint: str | None,
    provider: str,
    tolerance: float | None,
    as_json: bool,
) -> ExitCode:
    """Check an exported FILE: its hash, its graph, and its numbers on this machine.

    With --target against eager PyTorch, as the export did. Without, which needs no torch, row by
    row against the CPU provider.
    """
    if checkpoint is not None and target is None:
        raise click.UsageError("--checkpoint is of a target. Give --target too, or leave it out.")
    with loading("onnxruntime", "onnx", *(["torch"] if target else [])):
        from klppo_compile.export.checking import check_file
        from klppo_compile.export.report import to_json_number

    found = check_file(
        file,
        data,
        target=target,
        checkpoint=checkpoint,
        provider=provider,
        tolerance=tolerance,
    )
    values = {
        "file": str(file),
        "sha256": found.file.sha256,
        "verified": found.file.verified,
        "tolerance_met": found.file.tolerance_met,
        "provider": found.file.provider,
        "against": found.against,
        "tolerance": found.tolerance,
        "errors": {name: to_json_number(x) for name, x in found.errors.items()},
        "notes": found.notes,
    }
    if found.problem:
        raise FailedError(found.problem, values)
    if as_json:
        click.echo(json.dumps(values, indent=2, allow_nan=False))
        return ExitCode.GOOD
    for note in found.notes:
        click.echo(f"Note: {note}.")
    click.echo(
        f"{file}: good on {found.file.provider}; every output is within"
        f" {max(found.errors.values()):.1e} of {found.against} (asked for {found.tolerance:g})."
    )
    return ExitCode.GOOD
