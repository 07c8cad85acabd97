"""Cold start: what a process pays before its first loss, ours beside torchrl's.

The import, the first compiled forward and backward, and the same in a new process whose compiler
finds its cache. Processor time, compilers' included: the wall clock of a shared machine tells how
busy it was. A process is one sample, and the two sides take turns.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from klppo_compile.perf.exact.metrics import pinned, result_of_process, told
from klppo_compile.perf.measure import estimate, ratios
from klppo_compile.perf.processes import environment
from klppo_compile.perf.providers import OURS_COMPILED, TORCHRL_COMPILED
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import Workload

SIDES = {"ours": OURS_COMPILED, "torchrl": TORCHRL_COMPILED}
CACHES = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1", "TORCHINDUCTOR_AUTOGRAD_CACHE": "1"}
Times = dict[str, list[float]]


def measure_cold(
    workload: Workload, launches: int, progress: Callable[[str], None] | None = None
) -> list[Row]:
    """Start each side so often, with an empty cache and then with a full one.

    Raises:
        CannotError: a process died.
    """
    times: dict[str, Times] = {side: defaultdict(list) for side in SIDES}
    for launch in range(launches):
        if progress is not None:
            progress(f"cold start {launch + 1} of {launches}")
        for side in SIDES:
            for metric, seconds in cold_start(side, workload).items():
                times[side][metric].append(seconds)
    return rows_of(workload.name, times)


def cold_start(side: str, workload: Workload) -> dict[str, float]:
    """Processor seconds of one start with an empty cache, and of one after it."""
    with tempfile.TemporaryDirectory(prefix="klppo-cold-") as cache:
        variables = (
            environment(None, pinned()) | CACHES | {"TORCHINDUCTOR_CACHE_DIR": str(Path(cache))}
        )
        arguments = [side, told(workload)]
        cold, cached = (
            result_of_process(
                "timed.cold_process", arguments, f"the cold start of {side}", variables
            )
            for _ in range(2)
        )
    return {
        "import": min(cold["import"], cached["import"]),
        "first call": cold["first call"],
        "cached first call": cached["first call"],
    }


def rows_of(workload: str, times: dict[str, Times]) -> list[Row]:
    """Seconds of both sides, and ours over torchrl's of the same launch."""
    rows = []
    for side, provider in SIDES.items():
        for metric, samples in times[side].items():
            found = estimate(samples)
            rows.append(Row(workload, provider, f"cold: {metric}", "s", *found, "lower"))
    for metric, samples in times["ours"].items():
        over = ratios(samples, times["torchrl"][metric])
        name = f"cold: {metric} over torchrl compiled"
        rows.append(Row(workload, OURS_COMPILED, name, "x", *over, "lower"))
    return [replace(row, launches=row.samples) for row in rows]
