"""Whether the gate works, by experiment: `python -m klppo_compile.perf.gate.experiment STEP`.

record: launches of four sides, the working tree three times and once slower by 3 %. Two arms are
read from them: nothing changed, and the slowdown. rates: both arms' rates of the full rule, screen
and confirmation, by resampling those launches. ends: `klppo bench ab` from end to end on every
change of `seeded.toml`. table: what all of it found, as text. Each step goes on where it stopped.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from klppo_compile.perf.comparing.findings import Verdict, exit_code
from klppo_compile.perf.gate.calibrating import GATE, ROUNDS, SECONDS, jobs
from klppo_compile.perf.gate.pairing import Launch, Pair, Timing, ask, install_sides, logs, timings
from klppo_compile.perf.gate.run import EXACT, Result, compare_sources
from klppo_compile.perf.gate.seeding import Change, read_changes, seeded
from klppo_compile.perf.gate.verdict import Limits, compare_times, timed_findings
from klppo_compile.perf.machine import machine
from klppo_compile.perf.processes import workers
from klppo_compile.perf.revisions import WORKING_TREE, read_revision
from klppo_compile.perf.statistics import bound, proportion

FOLDER = Path(__file__).resolve().parents[1] / "results" / "gate"
ARMS = {"nothing changed": "new", "3 % slower": "slow"}
SLOWER = 0.03
RUNS = 2000
"""Resampled comparisons of an arm."""


def record(folder: Path, launches: int) -> None:
    """Launch until there are so many; each is written as it ends."""
    path = folder / "launches.json"
    document = read(path) or {"machine": machine(), "slower": SLOWER, "launches": []}
    source = read_revision(WORKING_TREE)
    slow = seeded(source, Change("slower", regression=True, slower=SLOWER))
    with tempfile.TemporaryDirectory(prefix="klppo-gate-") as place:
        sides = {"base": source, "null": source, "new": source, "slow": slow}
        pair = install_sides(sides, Path(place))
        with workers(jobs()) as pool:
            while (done := len(document["launches"])) < launches:
                numbers = range(done, done + jobs())
                document["launches"] += pool.map(lambda number: launched(pair, number), numbers)
                write(path, document)
                print(f"{len(document['launches'])} of {launches} launches", flush=True)


def launched(pair: Pair, number: int) -> dict[str, Any]:
    """One launch as it is kept: by arm and workload, what `Timing` begins with; and its seconds."""
    began = time.monotonic()
    reply = ask(pair, GATE, number, ROUNDS, SECONDS)
    arms = {
        arm: {
            name: [round(t.new, 6), round(t.null, 6), round(t.seconds, 7), t.rounds]
            for name, t in timings(reply, side).items()
        }
        for arm, side in ARMS.items()
    }
    return {"wall": round(time.monotonic() - began, 1), **arms}


def recorded(document: dict[str, Any], arm: str) -> list[Launch]:
    """The launches of an arm as they were recorded."""
    return [
        {
            name: Timing(new, null, seconds, rounds, 0.0, same_code=True)
            for name, (new, null, seconds, rounds) in kept[arm].items()
        }
        for kept in document["launches"]
    ]


def moved(launches: Sequence[Launch], effect: float) -> list[Launch]:
    """Launches whose mean slowdown is `effect` on every workload; they spread as they did."""
    steps = {name: effect - bound(*logs(launches, name)).value for name in launches[0]}
    return [
        {name: replace(t, new=t.new + steps[name]) for name, t in one.items()} for one in launches
    ]


class Resampled:
    """Launches drawn from records, with replacement, two at once, as long as time would do."""

    def __init__(self, launches: Sequence[Launch], drawing: random.Random, affordable: int) -> None:
        self.launches, self.drawing, self.left = launches, drawing, affordable

    def wave(self) -> list[Launch]:
        """Two of the records."""
        if self.left < 2:
            return []
        self.left -= 2
        return self.drawing.choices(self.launches, k=2)

    def affordable(self) -> int:
        """How many may still be drawn."""
        return self.left


def rates(
    launches: Sequence[Launch], workloads: Sequence[str], affordable: int
) -> dict[str, float]:
    """Of resampled comparisons: how many end in each verdict, worst first, and their launches."""
    drawing, counts = random.Random(0), dict.fromkeys(Verdict, 0)  # noqa: S311 - a resampling
    used = 0
    for _ in range(RUNS):
        found = compare_times(Resampled(launches, drawing, affordable), workloads, Limits())
        verdicts = {f.verdict for f in timed_findings(found, workloads, Limits())}
        counts[next(v for v in Verdict if v in verdicts)] += 1
        used += len(found.launches)
    return {str(verdict): n for verdict, n in counts.items()} | {"launches": used / RUNS}


def rates_table(document: dict[str, Any], affordable: int) -> str:
    """The rates of both arms as a table: the gate's workloads together, and each by itself."""
    heads = (
        "arm",
        "workloads",
        "mean effect",
        "spread of a launch",
        f"regression, of {RUNS}",
        "95 % bounds",
        "can't tell",
        "launches used",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    arms = {arm: recorded(document, arm) for arm in ARMS}
    slow = list(ARMS)[1]
    arms[f"{slow}, moved to {SLOWER:.2%}"] = moved(arms[slow], math.log1p(SLOWER))
    for arm, launches in arms.items():
        for workloads in (GATE, *((name,) for name in GATE)):
            found = rates(launches, workloads, affordable)
            low, high = proportion(int(found[Verdict.REGRESSION]), RUNS)
            effects = [figures(launches, name) for name in workloads]
            lines.append(
                f"| {arm} | {', '.join(workloads)} | {', '.join(e[0] for e in effects)} |"
                f" {', '.join(e[1] for e in effects)} | {found[Verdict.REGRESSION] / RUNS:.2%} |"
                f" {low:.2%} to {high:.2%} | {found[Verdict.UNDECIDED] / RUNS:.1%} |"
                f" {found['launches']:.1f} |"
            )
    return "\n".join(lines)


def figures(launches: Sequence[Launch], workload: str) -> tuple[str, str]:
    """Mean slowdown of an arm's launches, and their standard deviation, in words."""
    found = bound(*logs(launches, workload))
    return f"{math.expm1(found.value):+.2%}", f"{found.error * math.sqrt(found.launches):.2%}"


def ends(folder: Path, workload: str, minutes: float) -> None:
    """Compare every seeded change from end to end; each result is written as it comes."""
    path = folder / "ends.json"
    document = read(path) or {"machine": machine(), "runs": {}}
    source = read_revision(WORKING_TREE)
    for change in read_changes():
        if change.name in document["runs"]:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="klppo-gate-") as place:
            deadline = began + 60 * minutes
            new, where = seeded(source, change), Path(place)
            result = compare_sources(
                source, new, (workload,), deadline, None, where, quiet, EXACT[:1]
            )
        document["runs"][change.name] = outcome(change, result) | {
            "minutes": minutes,
            "wall": round(time.monotonic() - began),
        }
        write(path, document)
        print(change.name, document["runs"][change.name], flush=True)


def outcome(change: Change, result: Result) -> dict[str, Any]:
    """What came of one seeded change."""
    named = [f.metric for f in result.findings if f.verdict is Verdict.REGRESSION]
    code = int(exit_code(result.findings))
    right = bool(set(named) & set(change.found_by)) if change.regression else code == 0
    timed = [f for f in result.findings if f.kind == "timed"]
    return {
        "regression": change.regression,
        "exit_code": code,
        "right": right,
        "named": sorted(set(named)),
        "change": [round(f.change, 5) for f in timed],
        "launches": len(result.launches),
    }


def ends_table(document: dict[str, Any]) -> str:
    """The end-to-end runs as a table."""
    lines = ["| change | is a regression | exit code | named | seconds |", "|---|---|---|---|---|"]
    for name, run in document["runs"].items():
        named = ", ".join(run["named"]) or "-"
        if run["change"]:
            named += " (" + ", ".join(f"{x:+.1%}" for x in run["change"]) + ")"
        lines.append(
            f"| {name} | {'yes' if run['regression'] else 'no'} | {run['exit_code']} | {named} |"
            f" {run['wall']} |"
        )
    for kind, word in ((True, "regressions found"), (False, "other changes let pass")):
        runs = [run for run in document["runs"].values() if run["regression"] is kind]
        hits = sum(run["right"] for run in runs)
        if runs:
            low, high = proportion(hits, len(runs))
            lines += ["", f"{word}: {hits} of {len(runs)}, 95 % bounds {low:.1%} to {high:.1%}"]
    return "\n".join(lines)


def quiet(_: str) -> None:
    """Tell nothing."""


def read(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none yet."""
    found: dict[str, Any] | None = None
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m klppo_compile.perf.gate.experiment", description=__doc__
    )
    parser.add_argument("step", choices=["record", "rates", "ends", "table"])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the records")
    parser.add_argument("--launches", type=int, default=40, help="of record")
    parser.add_argument("--affordable", type=int, default=10, help="launches that 5 minutes allow")
    parser.add_argument("--workload", default=GATE[0], help="that ends times")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one of the ends")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Do a step."""
    options = parse(arguments)
    steps: dict[str, Callable[[], None]] = {
        "record": lambda: record(options.folder, options.launches),
        "ends": lambda: ends(options.folder, options.workload, options.minutes),
    }
    if options.step in steps:
        steps[options.step]()
        return 0
    launches = read(options.folder / "launches.json")
    if launches is not None:
        print(rates_table(launches, options.affordable))
    done = read(options.folder / "ends.json")
    if done is not None and options.step == "table":
        print(ends_table(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
