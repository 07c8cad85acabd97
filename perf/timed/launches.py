"""The loss on one CPU thread in fresh processes, each of which counts once.

A launch has one placement of code and data and one state of the heap, which all its calls share:
beside torchrl eager a large loss's ratios agree to 8 % within a launch and differ by a half between
two.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from klppo_compile.perf.exact.metrics import result_of_process, told
from klppo_compile.perf.processes import environment
from klppo_compile.perf.rows import Row
from klppo_compile.perf.statistics import LEAST, student
from klppo_compile.perf.workloads import Workload


def measure_launches(
    workload: Workload,
    rounds: int,
    seconds: float,
    launches: int,
    progress: Callable[[str], None],
) -> list[Row]:
    """`cpu.measure_workload` in so many processes, one after the other.

    Raises:
        FailedError: a contender's losses or gradients are off.
        CannotError: a process died.
    """
    each = []
    for launch in range(launches):
        progress(f"{workload.name}: launch {launch + 1} of {launches}")
        arguments = [told(workload), str(rounds), str(seconds)]
        name = f"launch {launch + 1} of {workload.name}"
        found = result_of_process("timed.process", arguments, name, environment(None, {}))
        each.append([Row(**fields) for fields in found])
    return joined(each)


def joined(launches: Sequence[Sequence[Row]]) -> list[Row]:
    """One row per metric: the geometric mean of the launches' values, and Student's 99 % interval.

    Raises:
        ValueError: too few launches, or not the same metrics.
    """
    if len(launches) < LEAST:
        raise ValueError(f"An interval of launches needs {LEAST}; got {len(launches)}.")
    return [_joined(same) for same in zip(*launches, strict=True)]


def _joined(same: Sequence[Row]) -> Row:
    first = same[0]
    if len({(row.workload, row.provider, row.metric) for row in same}) > 1:
        raise ValueError(f"Launches must measure the same; one has no {first.metric}.")
    logs = [math.log(row.value) for row in same]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = student(mean, error, len(logs) - 1)
    return replace(
        first,
        value=math.exp(mean),
        low=math.exp(low),
        high=math.exp(high),
        samples=sum(row.samples for row in same),
        launches=len(same),
    )
