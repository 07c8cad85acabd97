"""`klppo evaluate`: an exported loss over a recorded rollout, without torch."""

from pathlib import Path
from typing import Any

import click

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.outputs import require_apart
from klppo_compile.commands.verdict import (
    conclude,
    given_limits,
    result_options,
    results,
    row_bar,
    rows_range,
    say_file,
    stream_options,
)
from klppo_compile.exit_codes import ExitCode


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@stream_options
@click.option(
    "--set",
    "settings",
    metavar="NAME=X",
    multiple=True,
    help="Beta or a coefficient other than the file's; may be repeated.",
)
@result_options
def command(
    file: Path,
    data: Path,
    provider: str,
    rows: str | None,
    batch_rows: int | None,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> ExitCode:
    """Run the exported loss FILE over a rollout with ONNX Runtime alone.

    Prints how far its policy is from the one that recorded the rollout: KL, ratios, effective
    sample size, entropy, losses. Gates turn that into an exit code.
    """
    span = rows_range(rows)
    with loading("onnxruntime"):
        from klppo_compile.export.data import open_rollout
        from klppo_compile.export.evaluation import BATCH_ROWS, evaluate, read_scalars
        from klppo_compile.export.gates import require_able_to_fail
        from klppo_compile.export.manifest import sidecar_path
        from klppo_compile.export.runtime import open_file

    require_apart(results(options), (file, sidecar_path(file), data))
    opened = open_file(file, provider)
    say_file(opened, as_json)
    scalars = read_scalars(opened.manifest, settings)
    require_able_to_fail(given_limits(options), {**opened.manifest.scalars, **scalars})
    with open_rollout(data) as rollout:
        total = rollout.match(opened.manifest).rows
        with row_bar(total) as progress:
            found = evaluate(
                opened,
                rollout,
                scalars=scalars,
                rows=span,
                batch_rows=batch_rows or BATCH_ROWS,
                progress=progress,
            )
    return conclude(found, f"{file.name} over {data.name}", as_json=as_json, **options)
