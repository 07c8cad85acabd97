"""Exact changes for the worse that were decided on: `accepted.toml`, each with its reason."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.rows import Row

FILE = Path(__file__).resolve().parents[1] / "accepted.toml"


@dataclass(frozen=True)
class Accepted:
    """One decision.

    Attributes:
        metric, workload, provider: as in `Row`.
        old, new: the values; no other change is accepted.
        reason: why, in words.
    """

    metric: str
    workload: str
    provider: str
    old: float
    new: float
    reason: str


def read_accepted(path: Path = FILE) -> list[Accepted]:
    """The decisions in a file; none where the package's own isn't installed.

    Raises:
        BadInputError: it is no TOML, or an entry lacks something or has too much.
    """
    if path == FILE and not path.exists():
        return []
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(
            f"{path.name} must be TOML with [[accepted]] entries; it can't be read: {error}."
        ) from error
    entries = document.pop("accepted", [])
    if document or not isinstance(entries, list):
        raise BadInputError(
            f"{path.name} must hold [[accepted]] entries and nothing else; got"
            f" {', '.join(document) or 'one that is no list'}."
        )
    return [_entry(path.name, number, entry) for number, entry in enumerate(entries, 1)]


def decision_on(decisions: Iterable[Accepted], row: Row, old: float, new: float) -> Accepted | None:
    """The one on this very change of the metric that a row is of, if there is one."""
    wanted = (row.metric, row.workload, row.provider, old, new)
    return next(
        (x for x in decisions if (x.metric, x.workload, x.provider, x.old, x.new) == wanted), None
    )


def _entry(name: str, number: int, entry: Any) -> Accepted:
    kinds: dict[str, type | tuple[type, ...]] = {
        f.name: (int, float) if f.type is float else str for f in fields(Accepted)
    }
    found = entry if isinstance(entry, dict) else {}
    wrong = [key for key in kinds if not _is(found.get(key), kinds[key])]
    wrong += [key for key in found if key not in kinds]
    if wrong:
        raise BadInputError(
            f"entry {number} of {name} must have metric, workload, provider and reason as text"
            f" and old and new as numbers; look at {', '.join(wrong)}."
        )
    return Accepted(**found)


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is of that kind, and says something."""
    says = bool(value.strip()) if isinstance(value, str) else not isinstance(value, bool)
    return says and isinstance(value, kind)
