"""What was found of ranges of a rollout's rows, on disk and in memory; it merges."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.statistics import (
    Groups,
    LogHistogram,
    Moments,
    Series,
    Sum,
    WorstRows,
    from_plain,
    number,
    to_plain,
)
from klppo_compile.export.validation import require_settings

SCHEMA = 4


@dataclass
class Totals:
    """What was found of a range of rows; every field merges."""

    rows: int = 0
    """Rows read."""
    counted: int = 0
    """Rows that a mask didn't exclude, over all heads' rows."""
    nonfinite: int = 0
    """Rows that count and whose numbers are not finite; they are in no other statistic."""
    masked: int = 0
    """1 where the graph has a mask."""
    kl: Sum = field(default_factory=Sum)
    kl_histogram: LogHistogram = field(default_factory=LogHistogram)
    kl_worst: WorstRows = field(default_factory=WorstRows)
    kl_series: Series = field(default_factory=Series)
    ratio: Moments = field(default_factory=Moments)
    ratio_sum: Sum = field(default_factory=Sum)
    ratio_squares: Sum = field(default_factory=Sum)
    ratio_histogram: LogHistogram = field(default_factory=LogHistogram)
    log_ratio: Sum = field(default_factory=Sum)
    entropy: Moments = field(default_factory=Moments)
    advantage: Moments = field(default_factory=Moments)
    weighted_advantage: Sum = field(default_factory=Sum)
    """Of ratio times advantage, standardised where each sequence has its own statistics."""
    advantage_groups: Groups = field(default_factory=Groups)
    """Advantages by their step, weighted by the ratio, where each step has its own statistics."""
    value_rows: int = 0
    value_nonfinite: int = 0
    """The critic's rows, as above."""
    critic: Sum = field(default_factory=Sum)
    """Of the critic's distances, without their coefficient."""
    value_error: Moments = field(default_factory=Moments)
    value_target: Moments = field(default_factory=Moments)
    value_clipped: int = 0

    def merge(self, other: "Totals") -> None:
        """Take in another range."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, int):
                joined = max(mine, theirs) if f.name == "masked" else mine + theirs
                setattr(self, f.name, joined)
            else:
                mine.merge(theirs)

    def to_json(self) -> dict[str, Any]:
        """As what JSON can hold."""
        return {f.name: to_plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Totals":
        """Back again."""
        empty = cls()
        return cls(
            **{
                f.name: from_plain(type(getattr(empty, f.name)), values[f.name])
                for f in fields(cls)
            }
        )


@dataclass
class Evaluation:
    """The totals of one or several ranges of a rollout, under one file.

    Attributes:
        file_sha256: of the exported loss.
        old_sha256: of the file that it was compared with; "" where that is who recorded.
        settings: of it that the report needs.
        scalars: beta and the coefficients that were used.
        rollout_rows: of the whole rollout.
        rollout_ends: SHA-256 of its first and last row: two of one length are told apart.
        ranges: of its rows, `[start, stop)`.
        totals: what was found.
    """

    file_sha256: str
    old_sha256: str
    settings: dict[str, Any]
    scalars: dict[str, float]
    rollout_rows: int
    rollout_ends: str
    ranges: list[tuple[int, int]]
    totals: Totals

    def missing(self) -> list[tuple[int, int]]:
        """The ranges of the rollout's rows that are in none of the parts."""
        edges = [(0, 0), *self.ranges, (self.rollout_rows, self.rollout_rows)]
        return [(stop, start) for (_, stop), (start, _) in pairwise(edges) if stop < start]

    def merge(self, other: "Evaluation") -> None:
        """Take in ranges that another machine evaluated; those of another file are refused."""
        for name in SAME:
            if getattr(self, name) != getattr(other, name):
                raise BadInputError(
                    f"parts of one evaluation must have the same {name.replace('_', ' ')}; they"
                    " differ. Evaluate all parts with the same file and options."
                )
        both = sorted(self.ranges + other.ranges)
        for (_, stop), (start, _) in pairwise(both):
            if start < stop:
                raise BadInputError(
                    f"parts of one evaluation must not overlap; rows {start}:{stop} are in two."
                )
        self.ranges = _joined(both)
        self.totals.merge(other.totals)

    def to_json(self) -> str:
        """The report, and the totals for a merge."""
        values = {
            "schema": SCHEMA,
            "file_sha256": self.file_sha256,
            "old_sha256": self.old_sha256,
            "settings": self.settings,
            "scalars": self.scalars,
            "rollout_rows": self.rollout_rows,
            "rollout_ends": self.rollout_ends,
            "ranges": self.ranges,
            "totals": self.totals.to_json(),
        }
        return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """Read one back."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.get("schema") != SCHEMA:
                raise ValueError(f"no object of schema {SCHEMA}")
            lacks = sorted({f.name for f in fields(cls)} - values.keys())
            if lacks:
                raise ValueError(f"an object without {lacks[0]!r}")
            ranges = [(int(a), int(b)) for a, b in values["ranges"]]
            if not ranges or any(not 0 <= start < stop for start, stop in ranges):
                raise ValueError(f"ranges {ranges}")
            require_settings(values["settings"])
            return cls(
                str(values["file_sha256"]),
                str(values["old_sha256"]),
                {
                    **values["settings"],
                    **{name: number(values["settings"][name]) for name in READERS},
                },
                {name: number(x) for name, x in values["scalars"].items()},
                int(values["rollout_rows"]),
                str(values["rollout_ends"]),
                ranges,
                Totals.from_json(values["totals"]),
            )
        except BROKEN as error:
            raise BadInputError(
                f"{path} must be a result that klppo evaluate or compare --out saved; got"
                f" {_reason(error)}. Make that part again."
            ) from error


SAME = ("file_sha256", "old_sha256", "settings", "scalars", "rollout_rows", "rollout_ends")
"""What the parts of one evaluation have in common."""
READERS = ("batch_dims", "advantage_repeats")
"""Settings that are not the file's own but its reader's."""
BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a file that is no result makes its reader raise."""


def _reason(error: Exception) -> str:
    """An error of the reader in words of the file."""
    if isinstance(error, OSError):
        return error.strerror or "a file that can't be read"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "what is not JSON"
    if isinstance(error, ValueError):
        return str(error)
    return f"totals that it can't read ({type(error).__name__} {error})"


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, stop in ranges:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return out
