"""Limits on a report: a pipeline's yes or no."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from klppo_compile.exit_codes import BadInputError


@dataclass(frozen=True)
class Gate:
    """One limit.

    Attributes:
        option: of the command line.
        number: of the report.
        upper: the number may not be above the limit; otherwise not below.
        text: what it limits.
    """

    option: str
    number: str
    upper: bool
    text: str


GATES = (
    Gate("max-kl", "kl_mean", True, "Largest mean KL, in nats."),
    Gate("max-row-kl", "kl_max", True, "Largest KL of any row, in nats."),
    Gate("max-ratio", "ratio_max", True, "Largest ratio of any row."),
    Gate("min-ess", "ess_fraction", False, "Least effective sample size, as a share of the rows."),
    Gate("min-entropy", "entropy", False, "Least mean entropy, in nats."),
    Gate("min-explained-variance", "explained_variance", False, "Least explained variance."),
)


@dataclass(frozen=True)
class Verdict:
    """A gate, its limit, what was found, how many rows are no numbers, and whether it passed."""

    gate: Gate
    limit: float
    found: float
    nonfinite: int
    passed: bool

    @property
    def word(self) -> str:
        """The verdict in one."""
        return "passed" if self.passed else "FAILED"

    def __str__(self) -> str:
        """One line."""
        sign = "<=" if self.gate.upper else ">="
        broken = f", {self.nonfinite:,} rows are not finite" if self.nonfinite else ""
        return f"{self.word}: {self.gate.number} {self.found:.6g} {sign} {self.limit:g}{broken}"


def require_able_to_fail(limits: Mapping[str, float], scalars: Mapping[str, float]) -> None:
    """Refuse a limit that no result of these coefficients could be beyond.

    Raises:
        BadInputError: on a ratio that the loss itself caps.
    """
    limit, cap = limits.get("max-ratio"), scalars.get("max_importance_ratio")
    if limit is not None and cap is not None and limit >= cap:
        raise BadInputError(
            f"--max-ratio must be below the {cap:g} at which this loss caps every ratio; got"
            f" {limit:g}, which nothing could fail. Lift the cap for an evaluation with"
            " --set max_importance_ratio=1e9."
        )


def judge(report: Mapping[str, Any], limits: Mapping[str, float]) -> list[Verdict]:
    """A verdict for every limit, by the options' names; what is not a number never passes."""
    verdicts = []
    for gate in GATES:
        if gate.option not in limits:
            continue
        limit, found = limits[gate.option], report.get(gate.number, math.nan)
        inside = found <= limit if gate.upper else found >= limit
        # Rows that are no numbers are in no statistic: no gate may pass on the rest.
        nonfinite = report["rows_nonfinite"]
        passed = bool(inside) and nonfinite == 0
        verdicts.append(Verdict(gate, limit, float(found), nonfinite, passed))
    return verdicts
