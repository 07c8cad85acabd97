"""What a comparison found: one finding per metric, and the verdict of all of them."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from klppo_compile.exit_codes import ExitCode


class Verdict(StrEnum):
    """What is said of one metric."""

    REGRESSION = "regression"
    ACCEPTED = "accepted"
    UNDECIDED = "can't tell"
    SAME = "same"
    IMPROVEMENT = "improvement"


@dataclass(frozen=True)
class Finding:
    """One metric of one workload and provider, base against new.

    Attributes:
        workload, provider, metric, kind, unit: as in `Row`.
        base, new: the values; None where a side has none.
        change: new over base less 1, NaN where there is no ratio (a base of 0, a missing side).
        low, high: 99 % confidence interval of `change`; both `change` where it is exact.
        verdict: what to make of it.
        reason: the rule that decided, in words.
    """

    workload: str
    provider: str
    metric: str
    kind: str
    unit: str
    base: float | None
    new: float | None
    change: float
    low: float
    high: float
    verdict: Verdict
    reason: str


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """A regression fails; what can't be told is no pass; everything else is good."""
    verdicts = {finding.verdict for finding in findings}
    if Verdict.REGRESSION in verdicts:
        return ExitCode.FAILED
    return ExitCode.CANNOT if Verdict.UNDECIDED in verdicts else ExitCode.GOOD


def told(found: Finding) -> dict[str, Any]:
    """A finding for JSON, which has no NaN and no infinity: null where there is no number."""
    return {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in asdict(found).items()
    }
