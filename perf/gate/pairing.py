"""Launches of a paired comparison: fresh processes that call base, new and base again in turns."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klppo_compile.exit_codes import BadInputError, CannotError
from klppo_compile.perf.processes import environment, last_words, run_process, workers
from klppo_compile.perf.revisions import ALIASES, Source, install

TIMEOUT = 900
RULE = "a revision must import, compile and run in this checkout's measuring room;"


@dataclass(frozen=True)
class Timing:
    """What one launch says of one workload.

    Attributes:
        new, null: logarithm of the ratio to the base, of the new side and of the base again.
        seconds: median of the base's forward and backward, on the thread's clock.
        rounds: calls of each side.
        difference: largest difference of the sides' losses and gradients, relative.
        same_code: whether Inductor made the same code of both sides.
    """

    new: float
    null: float
    seconds: float
    rounds: int
    difference: float
    same_code: bool


Launch = dict[str, Timing]
"""One launch: timings by the workload's name."""


@dataclass(frozen=True)
class Pair:
    """Revisions, installed apart.

    Attributes:
        folder: where their packages lie.
        names: of each side, "base", "null" (the base again) and "new", as the user reads it.
    """

    folder: Path
    names: dict[str, str]


def install_sides(sides: Mapping[str, Source], folder: Path) -> Pair:
    """Lay sides apart."""
    for side, source in sides.items():
        install(source, folder, ALIASES[side])
    return Pair(folder, {side: source.name for side, source in sides.items()})


def install_pair(base: Source, new: Source, folder: Path) -> Pair:
    """Lay base, base again and new apart."""
    return install_sides({"base": base, "null": base, "new": new}, folder)


def launch(
    pair: Pair, workloads: Sequence[str], number: int, rounds: int, seconds: float
) -> Launch:
    """Start a process and return what it measured.

    Args:
        pair: the sides.
        workloads: names of what to compute.
        number: of the launch; it decides who is built first.
        rounds: calls of each side per workload, at most.
        seconds: of the thread's clock per workload, at most.

    Raises:
        BadInputError: a side does not import, or this room can't drive it.
        CannotError: the process died.
    """
    return timings(ask(pair, workloads, number, rounds, seconds), "new")


def timings(reply: Mapping[str, Any], new: str) -> Launch:
    """A reply as one side's timings against the base."""
    found = {}
    for name, measured in reply["workloads"].items():
        side, null = measured["sides"][new], measured["sides"]["null"]
        found[name] = Timing(
            side["ratio"],
            null["ratio"],
            measured["seconds"],
            measured["rounds"],
            side["difference"],
            side["same_code"],
        )
    return found


def probe(pair: Pair, workloads: Sequence[str]) -> None:
    """See that the sides import and run, eagerly: seconds, where launches and counts are minutes.

    Raises:
        BadInputError, CannotError: as `launch`.
    """
    ask(pair, workloads, None, 0, 0)


def ask(
    pair: Pair, workloads: Sequence[str], number: int | None, rounds: int, seconds: float
) -> dict[str, Any]:
    """The reply of a fresh process; without a number it only probes the sides.

    Raises:
        BadInputError: a side does not import or run.
        CannotError: the process died, or never ended.
    """
    request = {
        "sides": {side: ALIASES[side] for side in pair.names},
        "workloads": list(workloads),
        "rounds": rounds,
        "seconds": seconds,
        "launch": number,
    }
    command = [sys.executable, "-P", "-m", "klppo_compile.perf.gate.launch"]
    variables = environment(pair.folder, {})
    what = f"a launch of {' and '.join(dict.fromkeys(pair.names.values()))}"
    done = run_process(what, command, variables, TIMEOUT, json.dumps(request))
    if done.returncode:
        raise CannotError(f"{what} ended with {done.returncode}: {last_words(done)}")
    if not done.stdout:
        raise BadInputError(f"{RULE} {what} was ended from within: {last_words(done)}")
    reply: dict[str, Any] = json.loads(done.stdout)
    if "error" in reply:
        raise BadInputError(f"{RULE} {pair.names[reply['side']]} does not: {reply['error']}")
    return reply


def wave(
    pair: Pair, workloads: Sequence[str], first: int, jobs: int, rounds: int, seconds: float
) -> list[Launch]:
    """As many launches at once as there are jobs, numbered from `first`.

    Raises:
        BadInputError, CannotError: as `launch`.
    """
    with workers(jobs) as pool:
        numbers = range(first, first + jobs)
        return list(pool.map(lambda n: launch(pair, workloads, n, rounds, seconds), numbers))


def logs(launches: Sequence[Launch], workload: str) -> tuple[list[float], list[float]]:
    """The logarithms of a workload's ratios: the new side's, and the control's."""
    timings = [launched[workload] for launched in launches]
    return [t.new for t in timings], [t.null for t in timings]
