"""`klppo inspect`: what a file is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.exit_codes import ExitCode

if TYPE_CHECKING:
    from klppo_compile.export.manifest import Manifest


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(file: Path, as_json: bool) -> ExitCode:
    """Print what an exported FILE is: manifest, inputs, outputs, operators, hyper-parameters."""
    with loading("onnx"):
        from klppo_compile.export.inspection import inspect_file

    found = inspect_file(file)
    manifest = found.manifest
    if as_json:
        values = {
            "sha256": found.sha256,
            "verified": found.verified,
            "tolerance_met": found.tolerance_met,
            "doubt": found.doubt,
            "operators": found.operators,
            "manifest": json.loads(manifest.to_json()),
        }
        click.echo(json.dumps(values, indent=2, allow_nan=False))
        return ExitCode.GOOD
    click.echo(f"{file}: {manifest.graph} of a {manifest.family} policy, {found.size:,} bytes")
    click.echo(
        f"SHA-256 {found.sha256}{' (the bytes that were exported)' if found.verified else ''}"
    )
    if found.tolerance_met is None:
        click.echo(f"Warning: {found.doubt}.")
    else:
        click.echo(f"Checked: every output is within {found.tolerance_met:.1e} of eager PyTorch.")
    for note in manifest.notes:
        click.echo(f"Note: {note}.")
    console = plain()
    console.print(_arrays(manifest))
    facts = Table(title="Graph")
    add_columns(facts, "what", "value")
    batch = manifest.batch or "dynamic"
    asked = f"{manifest.tolerance:g}{', never checked' if found.tolerance_met is None else ''}"
    for name, value in (
        ("batch", f"{batch}, {manifest.batch_dims} dimension(s)"),
        ("networks", manifest.dtype),
        ("opset", manifest.opset or "none"),
        ("tolerance asked for", asked),
        ("parameters", f"SHA-256 {manifest.parameters_sha256[:16]}…"),
        *((name, f"{x:g} (optional input)") for name, x in manifest.scalars.items()),
        # What tells one distribution from another is numbers for `klppo compare`.
        *((name, x) for name, x in manifest.settings.items() if name != "distribution"),
        *((f"{name} version", x) for name, x in manifest.versions.items()),
        ("operators", ", ".join(f"{name} {n}" for name, n in found.operators.items())),
    ):
        facts.add_row(str(name), str(value))
    console.print(facts)
    return ExitCode.GOOD


def _arrays(manifest: "Manifest") -> Table:
    from klppo_compile.export.manifest import DIMENSIONS

    lead = DIMENSIONS[: manifest.batch_dims]
    first = [str(manifest.batch), *lead[1:]] if manifest.batch else list(lead)
    table = Table()
    add_columns(table, "", "name", "shape", "type", "tensordict key")
    for spec in manifest.inputs:
        shape = ", ".join([*first, *map(str, spec.shape)])
        table.add_row("in", spec.name, f"[{shape}]", spec.dtype, spec.key)
    for output in manifest.outputs:
        shape = ", ".join([*(first if output.rows else []), *map(str, output.shape)])
        table.add_row("out", output.name, f"[{shape}]", "", "")
    return table
