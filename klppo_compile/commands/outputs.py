"""Where a command's results go: to paths that can be written, over nothing that it reads."""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import click

from klppo_compile.exit_codes import BadInputError, MissingRequirementError

PICTURES = ("png", "svg", "pdf", "jpg", "jpeg", "webp", "tif", "tiff", "eps", "ps", "svgz")
"""What matplotlib draws by itself and Pillow, which comes with it."""


def writable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001  click's signature
    """A path that can be written, asked before the work and not after it."""
    if value is not None:
        from klppo_compile.export.manifest import require_writable

        require_writable(value)
    return value


def drawable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A picture that can be drawn there, asked before the work and not after it.

    Raises:
        BadInputError: its ending is of no picture.
        MissingRequirementError: nothing here draws.
    """
    if writable(ctx, param, value) is not None:
        assert value is not None
        if value.suffix.lstrip(".").lower() not in PICTURES:
            raise BadInputError(
                f"a picture is one of {', '.join(PICTURES)}, by its ending; got {value.name}."
            )
        if find_spec("matplotlib") is None:
            raise MissingRequirementError("--picture needs matplotlib. Run pip install matplotlib.")
    return value


def require_apart(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Refuse a result that would take the place of an input, or of another result.

    Raises:
        BadInputError: one would.
    """
    given = {option: _real(path) for option, path in outputs.items() if path is not None}
    read = [_real(path) for path in inputs]
    for option, path in given.items():
        if any(other in (path, *path.parents) for other in read):
            raise BadInputError(
                f"{option} must not be, nor lie in, what the command reads; got {path}. Name"
                " another file."
            )
    if len(set(given.values())) < len(given):
        raise BadInputError(
            f"{' and '.join(given)} must be two files; got {path} for both. Name another."
        )


def _real(path: Path) -> Path:
    """Behind links; Python 3.11's own `resolve` raises where they go in a circle."""
    return Path(os.path.realpath(path))
