"""The verdict on two revisions: exact metrics first, then launches, a screen and a confirmation.

What is exact needs no clock, and where it is worse nothing else is asked. Times are judged from
launches: a screen that goes on until every workload is decided, and, where it sees a slowdown, as
many launches again that know nothing of the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from klppo_compile.perf.comparing.findings import Finding, Verdict
from klppo_compile.perf.gate.pairing import Launch, logs
from klppo_compile.perf.statistics import (
    GOAL,
    LEAST,
    MARGIN,
    Bound,
    Said,
    bound,
    interval,
    say,
    smallest_visible,
)

PROVIDER, METRIC = "ours compiled", "forward and backward"
TOLERANCE = 1e-4
"""How far apart the sides' losses and gradients may be, relative to the largest of each."""


class Launches(Protocol):
    """Where launches come from: processes, or records of them."""

    def wave(self) -> list[Launch]:
        """The next launches, as many as run at once; none where there is no time."""

    def affordable(self) -> int:
        """How many more there is time for."""


@dataclass(frozen=True)
class Limits:
    """How many launches decide.

    Attributes:
        least, most: launches of a stage.
        goal: logarithm of the slowdown that has to be found.
    """

    least: int = 4
    most: int = 12
    goal: float = GOAL


@dataclass
class Comparison:
    """What was launched, and what it says.

    Attributes:
        screen, confirmation: the launches of each stage.
        screened, confirmed: what each stage says, by workload; the second of those flagged only.
    """

    screen: list[Launch] = field(default_factory=list)
    confirmation: list[Launch] = field(default_factory=list)
    screened: dict[str, Said] = field(default_factory=dict)
    confirmed: dict[str, Said] = field(default_factory=dict)

    @property
    def launches(self) -> list[Launch]:
        """All of them."""
        return self.screen + self.confirmation


def compare_times(source: Launches, workloads: Sequence[str], limits: Limits) -> Comparison:
    """Screen until it is decided or there is no time; confirm what the screen flagged.

    A screen ends early for two reasons: a slowdown shows, which the confirmation then judges afresh
    (so that looking often raises no false alarm), or none of `limits.goal` can be hidden any more.
    """
    found = Comparison()
    while len(found.screen) < limits.most:
        # Where something looks slower, what is left must do for a confirmation.
        enough = len(found.screen) >= limits.least and suspicious(found.screen, workloads)
        if enough and source.affordable() <= limits.least:
            break
        wave = source.wave()
        found.screen += wave
        if not wave or other_answers(found.screen):
            break
        if len(found.screen) >= limits.least:
            found.screened = stage(found.screen, workloads, limits.goal)
            said = set(found.screened.values())
            if Said.SLOWER in said or said == {Said.NOT_SLOWER}:
                break
    flagged = [name for name, said in found.screened.items() if said is Said.SLOWER]
    while flagged and len(found.confirmation) < len(found.screen):
        wave = source.wave()
        found.confirmation += wave
        if not wave:
            break
    found.confirmed = stage(found.confirmation, flagged, limits.goal)
    return found


def stage(launches: Sequence[Launch], workloads: Sequence[str], goal: float) -> dict[str, Said]:
    """What one stage says, by workload; nothing where there are too few launches."""
    if len(launches) < LEAST:
        return {}
    return {name: say(*logs(launches, name), goal) for name in workloads}


def suspicious(launches: Sequence[Launch], workloads: Sequence[str]) -> bool:
    """Whether so far some workload looks slower than the margin lets pass."""
    return any(bound(*logs(launches, name)).value > MARGIN for name in workloads)


def other_answers(launches: Sequence[Launch]) -> dict[str, float]:
    """Workloads on which the sides' answers are apart, and how far."""
    worst: dict[str, float] = {}
    for launched in launches:
        for name, timing in launched.items():
            if not timing.difference <= TOLERANCE:
                worst[name] = timing.difference
    return worst


def timed_findings(found: Comparison, workloads: Sequence[str], limits: Limits) -> list[Finding]:
    """One finding for each workload, and one for each whose answer changed."""
    apart = other_answers(found.launches)
    if apart:
        return [answer_finding(name, apart[name]) for name in apart]
    if len(found.screen) < LEAST:
        reason = f"only {len(found.screen)} launches in the time there was; a bound needs {LEAST}"
        return [
            timed_finding(name, found.launches, None, Verdict.UNDECIDED, reason)
            for name in workloads
        ]
    return [judged(found, name, limits) for name in workloads]


def judged(found: Comparison, name: str, limits: Limits) -> Finding:
    """The rule, for one workload."""
    every = bound(*logs(found.launches, name))
    last = say(*logs(found.launches, name), limits.goal)
    visible = f"{math.expm1(smallest_visible(every)):.1%}"
    margin, n = f"+{math.expm1(MARGIN):.0%}", len(found.launches)
    first, second = found.screened.get(name), found.confirmed.get(name)
    verdict, again = Verdict.UNDECIDED, len(found.confirmation)
    if Said.CONTROL_FAILED in {first, second} or last is Said.CONTROL_FAILED:
        reason = "the null control failed: the base differs from itself, so these times mean little"
    elif first is Said.SLOWER and again < len(found.screen):
        reason = (
            f"slower in the screen; {f'time for {again} launches' if again else 'no time'} was left"
            f" to confirm it, which takes {len(found.screen)}. Give it more --minutes"
        )
    elif first is Said.SLOWER and second is Said.SLOWER:
        verdict = Verdict.REGRESSION
        reason = f"99 % bound above {margin} in {n - again} launches and in {again} fresh ones"
    elif last is Said.SLOWER:
        reason = f"slower in {n} launches, but not in each half of them. Run again"
    elif last is Said.UNCLEAR:
        goal = f"{math.expm1(limits.goal):.0%}"
        reason = f"{n} launches show no less than {visible}, and {goal} is the goal"
    elif every.high < -MARGIN:
        verdict, reason = Verdict.IMPROVEMENT, f"99 % bound below −1% in {n} launches"
    else:
        verdict, reason = Verdict.SAME, f"{visible} would have been found; {n} launches"
        if first is Said.SLOWER:
            reason = f"flagged by the screen, not confirmed by fresh launches; {reason}"
    return timed_finding(name, found.launches, every, verdict, reason)


def timed_finding(
    name: str, launches: Sequence[Launch], every: Bound | None, verdict: Verdict, reason: str
) -> Finding:
    """A finding of times, over all launches, with the interval that holds the change in 99 %."""
    timings = [launched[name] for launched in launches]
    base = median(t.seconds for t in timings) * 1e6 if timings else None
    values = (every.value, *interval(every)) if every else (math.nan,) * 3
    change, low, high = (math.expm1(x) for x in values)
    new = base * (1 + change) if base is not None and every else None
    return Finding(
        name, PROVIDER, METRIC, "timed", "us", base, new, change, low, high, verdict, reason
    )


def answer_finding(name: str, apart: float) -> Finding:
    """A finding of another answer: no speed for it."""
    return Finding(
        name,
        PROVIDER,
        "difference of the answers",
        "exact",
        "relative",
        0.0,
        apart,
        math.nan,
        math.nan,
        math.nan,
        Verdict.REGRESSION,
        f"losses or gradients are off the base's by {apart:.1e} of the largest, allowed"
        f" {TOLERANCE:.0e}: no speed for another answer",
    )


def same_code(launches: Sequence[Launch]) -> bool:
    """Whether Inductor made the same code of both sides, of every workload."""
    timings = [t for launched in launches for t in launched.values()]
    return bool(timings) and all(t.same_code for t in timings)
