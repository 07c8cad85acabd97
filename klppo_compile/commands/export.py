"""`klppo export`: a loss as a checked file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.outputs import require_apart
from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.commands.verdict import positive, row_number
from klppo_compile.exit_codes import BadInputError, ExitCode

if TYPE_CHECKING:
    from klppo_compile.export.exporting import Exported

CODE = (
    "Warning: a package ({}) is code: whoever loads it runs it. Load only files that you made, and"
    " check their SHA-256 first."
)


@click.command()
@click.argument("target")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write; FILE.json goes beside it.",
)
@click.option(
    "--checkpoint",
    metavar="NAME|FILE",
    help="Of a run folder: early, best or last. Of a factory: a safetensors file, or a .pt of"
    " tensors.  [default: best, or the factory's own weights]",
)
@click.option("--graph", type=click.Choice(["loss", "policy", "critic"]), default="loss")
@click.option("--format", "form", type=click.Choice(["onnx", "pt2", "aoti"]), default="onnx")
@click.option("--opset", type=int, default=20, show_default=True, help="Of ONNX, 18 to 21.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the networks' matrix products; the loss is in float32.",
)
@click.option("--batch", default="dynamic", show_default=True, help="dynamic, or a fixed size.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Example rollout.  [default: the run's last, or the factory's]",
)
@click.option(
    "--tolerance", type=float, callback=positive, help="[default: 1e-5, with float16 networks 2e-2]"
)
@click.option("--no-check", is_flag=True, help="Write the file unchecked; its sidecar says so.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    target: str,
    out: Path,
    checkpoint: str | None,
    graph: str,
    form: str,
    opset: int,
    dtype: str,
    batch: str,
    data: Path | None,
    tolerance: float | None,
    no_check: bool,
    as_json: bool,
) -> ExitCode:
    """Write the loss of TARGET as one file, checked against eager PyTorch.

    TARGET is a run folder of klppo train, or module:factory: a callable that returns a
    KLPENPPOLoss, or that and an example rollout. A factory's module is run.
    """
    size = _batch(batch)
    with loading("onnxscript", "onnxruntime"):
        from klppo_compile.export.exporting import export_loss, require_ready
        from klppo_compile.export.target import resolve

    require_ready(form, opset, out, size)
    # A run's other files have other endings, and an export may lie beside them.
    require_apart({"--out": out}, [Path(target) / "rollout", *([] if data is None else [data])])
    found = resolve(target, checkpoint, data)
    if found.example is None:
        raise BadInputError(
            f"an example rollout is needed; {target} returned a loss alone. Give --data, or let it"
            " return (loss, example)."
        )
    if form != "onnx":
        click.echo(CODE.format(form), err=True)
    done = export_loss(
        found.loss,
        found.example,
        out,
        graph=graph,
        format=form,
        opset=opset,
        dtype=dtype,
        batch=size,
        tolerance=tolerance,
        checked=not no_check,
    )
    _print(done, as_json)
    return ExitCode.GOOD


def _batch(text: str) -> int:
    if text == "dynamic":
        return 0
    size = row_number(text, "--batch") if text.isdecimal() else 0
    if size < 1:
        raise click.UsageError(f"--batch is dynamic, or a number of rows; got {text!r}.")
    return size


def _print(done: "Exported", as_json: bool) -> None:
    manifest, parity = done.manifest, done.parity
    if as_json:
        values = {
            "file": str(done.path),
            "bytes": done.size,
            "sha256": done.sha256,
            "checked": parity is not None,
            "tolerance": manifest.tolerance,
            "errors": None if parity is None else parity.errors(),
            "cases": [] if parity is None else parity.cases,
            "manifest": json.loads(manifest.to_json()),
        }
        click.echo(json.dumps(values, indent=2, allow_nan=False))
        return
    opset = f", opset {manifest.opset}" if manifest.opset else ""
    click.echo(
        f"{done.path}: {manifest.graph} of a {manifest.family} policy{opset}, {done.size:,} bytes"
    )
    for note in done.notes:
        click.echo(f"Note: {note}.")
    if parity is None:
        click.echo("Not checked (--no-check).")
        return
    table = Table(title=f"Largest difference from eager float32 in {len(parity.cases)} cases")
    add_columns(table, "output")
    add_columns(table, "error", justify="right")
    add_columns(table, "where")
    for name, worst in sorted(parity.worst.items(), key=lambda item: -item[1].error):
        table.add_row(name, f"{worst.error:.1e}", worst.case if worst.error else "")
    plain().print(table)
    click.echo(
        f"Checked: every output is within {parity.needed:.1e} of eager PyTorch"
        f" (asked for {parity.tolerance:g})."
    )
    if parity.near_threshold:
        click.echo(
            "beta_next was not compared where the KL is within the tolerance of a threshold:"
            f" {', '.join(parity.near_threshold)}."
        )
