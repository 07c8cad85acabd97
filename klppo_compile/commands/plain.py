"""The console and the tables that a command prints: what they are given is text, and no markup.

Names, reasons, paths and errors come from users and from other packages, and have brackets and
colons of their own: `[triton]` is an extra of pip, not a style.
"""

from rich.console import Console, JustifyMethod
from rich.table import Table


def plain(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that changes no letter of a text, nor of a table's cells and title."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


def add_columns(table: Table, *names: str, justify: JustifyMethod = "left") -> None:
    """Columns that lose no letter where the page is narrow: a word too long goes on below.

    Two names that are cut may look the same.
    """
    for name in names:
        table.add_column(name, justify=justify, overflow="fold")
