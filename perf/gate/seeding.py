"""Changes put into a revision's text on purpose: what the gate has to find, and what it must not.

`seeded.toml` lists them. A slowdown of a given size is an empty loop after each forward of the
compiled loss, as many turns as that part of the step takes: see `TURNS`.
"""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.revisions import Source

FILE = Path(__file__).resolve().parents[1] / "seeded.toml"
TURNS = {256: 23000, 4096: 56000}
"""Turns of an empty loop that take as long as the step itself, by batch size of the gate's
workloads. They were set so that launches of 3 % measure 3 %; elsewhere, see what they measure."""
CALL = "        else:\n            return out\n"
WASTING = """\
        else:
            for _ in range(WASTE.get(tensordict.numel(), 0)):
                pass
            return out
"""


@dataclass(frozen=True)
class Edit:
    """A replacement of text in a file of the package."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Change:
    """A seeded change.

    Attributes:
        name: what it is.
        regression: whether the gate has to find it.
        edits: of the text.
        found_by: metrics; one of them must be named.
        slower: part of the step's time that is wasted; 0 for none.
    """

    name: str
    regression: bool
    edits: tuple[Edit, ...] = ()
    found_by: tuple[str, ...] = ()
    slower: float = 0.0


def read_changes(path: Path = FILE) -> list[Change]:
    """The changes of the table, regressions first."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Change(
            entry["name"],
            kind == "regression",
            tuple(Edit(**edit) for edit in entry.get("edits", ())),
            tuple(entry.get("found_by", ())),
            entry.get("slower", 0.0),
        )
        for kind in ("regression", "none")
        for entry in table[kind]
    ]


def seeded(source: Source, change: Change) -> Source:
    """A revision with a change in it.

    Raises:
        BadInputError: a text to be replaced isn't there once.
    """
    files = dict(source.files)
    edits = slowdown(change.slower) if change.slower else change.edits
    for edit in edits:
        count = files[edit.file].count(edit.old)
        if count != 1:
            raise BadInputError(
                f"the change {change.name!r} must find its text once in {edit.file}; found {count}"
                f" of {edit.old!r}. Bring {FILE.name} up to date."
            )
        files[edit.file] = files[edit.file].replace(edit.old, edit.new)
    return replace(source, name=f"{source.name} + {change.name}", files=files)


def slowdown(part: float) -> tuple[Edit, ...]:
    """Waste a part of the step's time in the compiled loss."""
    waste = {batch: round(part * turns) for batch, turns in TURNS.items()}
    table = f"WASTE = {waste}\nCompiledLoss = Callable"
    return (
        Edit("compiling.py", CALL, WASTING),
        Edit("compiling.py", "CompiledLoss = Callable", table),
    )
