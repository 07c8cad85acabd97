"""Where a command's results go: to paths that can be written, over nothing that it reads."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from klppo_compile.exit_codes import BadInputError


def writable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001  click's signature
    """A path that can be written, asked before the work and not after it."""
    if value is not None:
        from klppo_compile.export.manifest import require_writable

        require_writable(value)
    return value


def drawable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001  click's signature
    """A picture that can be drawn there, asked before the work and not after it."""
    if value is not None:
        from klppo_compile.export.picture import require_drawable

        require_drawable(value)
    return value


def require_apart(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Refuse a result that would take the place of an input, or of another result.

    Raises:
        BadInputError: one would.
    """
    given = {option: path.resolve() for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        for other in (each.resolve() for each in inputs):
            if other in (path, *path.parents):
                raise BadInputError(
                    f"{option} must not be what the command reads; got {path}. Name another file."
                )
    if len(set(given.values())) < len(given):
        raise BadInputError(
            f"{' and '.join(given)} must be two files; got {path} for both. Name another."
        )
