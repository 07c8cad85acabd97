"""Launches from processes, within a time; and what this machine can see, measured on itself."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from statistics import median

from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.gate.pairing import Launch, Pair, logs, wave
from klppo_compile.perf.statistics import LEAST, bound, interval, smallest_visible
from klppo_compile.perf.workloads import WORKLOADS

GATE = ("normal/heads/256", "categorical/heads/4096")
"""What the gate times: the fixed cost of a call, and arithmetic. More workloads leave less time for
launches; networks only dilute what the loss costs, and their calls are counted."""
ROUNDS, SECONDS = 2000, 6.0
"""Of one workload in one launch."""
SHORTEST = 40.0
"""Seconds that the first launches are taken to need."""
Progress = Callable[[str], None]


def chosen_workloads(pattern: str | None) -> tuple[str, ...]:
    """Names that match the pattern; without one, the gate's.

    Raises:
        BadInputError: none matches.
    """
    names = tuple(w.name for w in WORKLOADS if pattern is not None and fnmatch(w.name, pattern))
    if pattern is not None and not names:
        known = ", ".join(w.name for w in WORKLOADS)
        raise BadInputError(
            f"--workload must match a workload; {pattern!r} matches none of {known}."
        )
    return names or GATE


def jobs() -> int:
    """How many processes measure at once: more than two share too much of a machine."""
    return min(2, os.cpu_count() or 1)


class LaunchedHere:
    """Launches on this machine, as many at once as it has cores, until a time is over."""

    def __init__(
        self,
        pair: Pair,
        workloads: Sequence[str],
        deadline: float,
        progress: Progress,
    ) -> None:
        self.pair, self.workloads, self.deadline = pair, workloads, deadline
        self.progress = progress
        self.jobs = jobs()
        self.done, self.took = 0, SHORTEST

    def wave(self) -> list[Launch]:
        """The next launches; none where the time would not do."""
        if self.affordable() < self.jobs:
            return []
        self.progress(f"launches {self.done + 1} to {self.done + self.jobs}")
        began = time.monotonic()
        found = wave(self.pair, self.workloads, self.done, self.jobs, ROUNDS, SECONDS)
        self.took = time.monotonic() - began
        self.done += self.jobs
        return found

    def affordable(self) -> int:
        """How many more launches there is time for, if they take as long as the last."""
        return self.jobs * max(0, int((self.deadline - time.monotonic()) / self.took))


@dataclass(frozen=True)
class Noise:
    """What the machine shows of a workload when nothing changed.

    Attributes:
        seconds: median forward and backward.
        mean, low, high: ratio of the working tree to itself, less 1, and its 99 % interval.
        spread: standard deviation of a launch's ratio.
        visible: the least slowdown that a comparison finds with as many launches in each stage.
        launches: how many there were.
    """

    workload: str
    seconds: float
    mean: float
    low: float
    high: float
    spread: float
    visible: float
    launches: int


def noise_of(launches: Sequence[Launch], workload: str) -> Noise | None:
    """The noise in launches of a revision against itself; None where they are too few."""
    if len(launches) < LEAST:
        return None
    found = bound(*logs(launches, workload))
    low, high = interval(found)
    return Noise(
        workload,
        seconds=median(launched[workload].seconds for launched in launches),
        mean=math.expm1(found.value),
        low=math.expm1(low),
        high=math.expm1(high),
        spread=math.expm1(found.error * math.sqrt(found.launches)),
        visible=math.expm1(smallest_visible(found)),
        launches=found.launches,
    )
