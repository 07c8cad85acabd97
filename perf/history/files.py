"""The history: a folder of result files, one per run; `series` makes series of them.

A file that can't be taken is named and refused, and the whole folder with it: a page that left out
a run would show a history that wasn't.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.machine import machine_class
from klppo_compile.perf.rows import Row, read_document

# A commit becomes part of names of files, addresses and other tools' keys.
COMMIT = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True, eq=False)
class Run:
    """One result file.

    Attributes:
        file: its name.
        date: when it was measured; a date without a time zone is taken as local.
        commit: of the package measured, with -dirty where files differed from it.
        machine_class: what it may be compared with.
        header: all that the file says about the run.
        rows: its numbers.
    """

    file: str
    date: datetime
    commit: str
    machine_class: str
    header: dict[str, Any]
    rows: tuple[Row, ...]


def read_history(folder: Path) -> list[Run]:
    """The runs of a folder's JSON files, oldest first.

    Raises:
        BadInputError: there is none, or a file can't be taken; every such file is named.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        what = "has no .json file" if folder.is_dir() else "is not a folder"
        raise BadInputError(
            f"A history is a folder of result files; {folder} {what}."
            " Write one: klppo bench run --out FILE."
        )
    runs, faults = [], []
    for file in files:
        try:
            runs.append(read_run(file))
        except BadInputError as error:
            faults.append(str(error))
    if faults:
        raise BadInputError(
            "\n".join([*faults, "Mend these files or take them out of the folder."])
        )
    return sorted(runs, key=lambda run: (run.date.timestamp(), run.file))


def read_run(file: Path) -> Run:
    """One result file, checked.

    Raises:
        BadInputError: it is broken, of another schema, or lacks what a series needs.
    """
    try:
        header, rows = read_document(file)
        if not COMMIT.fullmatch(str(header["commit"])):
            raise ValueError(
                "commit must be a word of letters, digits, dots, dashes and underscores; got"
                f" {header['commit']!r}. Measure again in a git checkout."
            )
        run = Run(
            file.name,
            date_of(header["date"]),
            str(header["commit"]),
            machine_class(header["machine"]),
            header,
            tuple(rows),
        )
    except (OSError, ValueError) as error:
        text = str(error)
        raise BadInputError(text if file.name in text else f"{file.name}: {text}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{file.name} must have a run with date, commit and machine, and rows with the columns"
            f" of Row; got {type(error).__name__}: {error}. Measure again with this version."
        ) from error
    return run


def date_of(text: str) -> datetime:
    """When a run was measured.

    Raises:
        ValueError: it is no date, or so early or late that it is none in another time zone.
    """
    date = datetime.fromisoformat(text)
    try:
        date.timestamp()
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(f"date must be one of a calendar; got {text}: {error}.") from error
    return date
