"""`klppo merge`: results of parts of a rollout as the result of the whole."""

from pathlib import Path
from typing import Any

import click

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.outputs import require_apart
from klppo_compile.commands.verdict import conclude, result_options, results
from klppo_compile.exit_codes import ExitCode


@click.command()
@click.argument("parts", type=click.Path(path_type=Path), nargs=-1, required=True)
@result_options
def command(parts: tuple[Path, ...], as_json: bool, **options: Any) -> ExitCode:
    """Add up the results that klppo evaluate --rows --out saved of PARTS of one rollout."""
    with loading():
        from klppo_compile.export.totals import Evaluation

    require_apart(results(options), parts)
    merged = Evaluation.read(parts[0])
    for part in parts[1:]:
        merged.merge(Evaluation.read(part))
    return conclude(merged, f"{len(parts)} parts", as_json=as_json, whole=True, **options)
