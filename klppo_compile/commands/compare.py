"""`klppo compare`: a candidate policy against the deployed one, on recorded observations."""

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
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@stream_options
@result_options
def command(
    old: Path,
    new: Path,
    data: Path,
    provider: str,
    rows: str | None,
    batch_rows: int | None,
    as_json: bool,
    **options: Any,
) -> ExitCode:
    """Compare the exported losses OLD and NEW on the observations of a rollout.

    The head parameters that OLD gives are NEW's old ones: the KL is KL(OLD || NEW), exact, whoever
    recorded the rollout. Both must make one distribution of a head: of one family, with the same
    constants, as a temperature or bounds.
    """
    span = rows_range(rows)
    with loading("onnxruntime"):
        from klppo_compile.export.comparison import compare, needed_inputs
        from klppo_compile.export.data import open_rollout
        from klppo_compile.export.evaluation import BATCH_ROWS
        from klppo_compile.export.gates import require_able_to_fail
        from klppo_compile.export.manifest import sidecar_path
        from klppo_compile.export.runtime import open_file

    files = (old, sidecar_path(old), new, sidecar_path(new))
    require_apart(results(options), (*files, data))
    first, second = (open_file(path, provider) for path in (old, new))
    for file in (first, second):
        say_file(file, as_json)
    require_able_to_fail(given_limits(options), second.manifest.scalars)
    with open_rollout(data) as rollout:
        total = rollout.match(second.manifest, needed_inputs(first, second)).rows
        with row_bar(total) as progress:
            found = compare(
                first,
                second,
                rollout,
                rows=span,
                batch_rows=batch_rows or BATCH_ROWS,
                progress=progress,
            )
    title = f"{new.name} against {old.name} over {data.name}"
    return conclude(found, title, as_json=as_json, **options)
