"""The console that a command prints on: what it is given is text, and no markup.

Names, reasons, paths and errors come from users and from other packages, and have brackets and
colons of their own: `[triton]` is an extra of pip, not a style.
"""

from rich.console import Console


def plain(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that changes no letter of a text, nor of a table's cells and title."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False)
