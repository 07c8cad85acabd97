"""One job of the GPU suite: build the contenders, hold each to the truth, time them in turn."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from klppo_compile.perf.gpu.cases import LIGER, OURS, Job, floor_bytes, part_of
from klppo_compile.perf.gpu.contenders import CONTENDERS, Total
from klppo_compile.perf.gpu.targets import BOTH, GRAPH_TIME, OVER_FLOOR, SYNCS, speed_over
from klppo_compile.perf.gpu.timing import WARMUP, Device, Key, Run, in_turn, one_after_another
from klppo_compile.perf.measure import Estimate, estimate, ratios
from klppo_compile.perf.providers import Answer, faults
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import Problem, problem

CALLS = 16  # of one run that isn't replayed
SECONDS = 3.0  # of timing, about
FLOOR = "byte floor at copy bandwidth"


@dataclass
class Outcome:
    """Rows of a job; and why there are none of some contenders."""

    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def measure_job(job: Job, device: Device, bandwidth: float, compiler: str) -> Outcome:
    """Check and time every contender of a job; one that fails or is wrong gets no speed."""
    torch.compiler.reset()
    outcome = Outcome()
    case = problem(job.workload, device=device.name)
    ready = admitted(job, case, compiler, outcome)
    count = device.repeated(floor_bytes(case)[BOTH])
    sets = [case, *(part_of(case, 0, job.workload.batch) for _ in range(count - 1))]
    runs: dict[Key, Run] = {}
    calls: dict[Key, int] = {}
    for name, total in ready.items():
        for passes in ("forward", BOTH):
            steps = [partial(PASSES[passes], total, one) for one in sets]
            runs[name, passes, "calls"] = one_after_another(steps[:CALLS])
            calls[name, passes, "calls"] = len(steps[:CALLS])
            replay = captured(name, steps, device, outcome)
            if replay is not None:
                runs[name, passes, "graph"] = replay
                calls[name, passes, "graph"] = len(steps)
        n = device.syncs(partial(answer, total, case))
        if n is not None:
            row = Row(job.workload.name, name, SYNCS, "", n, n, n, 1, "lower", "exact")
            outcome.rows.append(row)
    times = in_turn(runs, calls, device, SECONDS)
    outcome.rows += rows_of(case, times, bandwidth)
    return outcome


def captured(name: str, steps: Sequence[Run], device: Device, outcome: Outcome) -> Run | None:
    """A replay of the steps; None where there is none to be had, with the reason if it's news."""
    if not CONTENDERS[name].replayed:
        return None
    try:
        return device.captured(steps)
    except Exception as error:  # noqa: BLE001 - whatever a contender raises is its result
        outcome.refused[f"{name} under a graph"] = first_line(error)
        return None


def first_line(error: Exception) -> str:
    """The error in a line."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:300]


def answer(total: Total, case: Problem) -> Answer:
    """Forward and backward."""
    loss = total(case)
    grads = torch.autograd.grad(loss, case.leaves, allow_unused=True)
    return loss.detach(), tuple(g for g in grads if g is not None)


def forward(total: Total, case: Problem) -> Tensor:
    """Forward as training has it: ready for a backward."""
    return total(case)


PASSES = {"forward": forward, BOTH: answer}


def admitted(job: Job, case: Problem, compiler: str, outcome: Outcome) -> dict[str, Total]:
    """Contenders whose answer is right, warmed up; the others' reasons go to the outcome."""
    ready: dict[str, Total] = {}
    truths: dict[object, Answer] = {}
    for name in job.contenders:
        contender = CONTENDERS[name]
        try:
            if contender.truth not in truths:
                truths[contender.truth] = contender.truth(case)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a peer's own, and its compiler's
                total = contender.build(case, compiler)
                for _ in range(WARMUP):
                    found = answer(total, case)
            wrong = faults(found, truths[contender.truth], contender.allowed(case))
        except Exception as error:  # noqa: BLE001 - whatever a contender raises is its result
            outcome.refused[name] = first_line(error)
            continue
        if wrong:
            outcome.refused[name] = "wrong: " + "; ".join(wrong)
        else:
            ready[name] = total
    return ready


def rows_of(case: Problem, times: dict[Key, list[float]], bandwidth: float) -> list[Row]:
    """Times of both passes and of what is between them, and what follows from them."""
    rows: list[Row] = []
    floors = {name: size / bandwidth for name, size in floor_bytes(case).items()}

    def add(provider: str, metric: str, unit: str, found: Estimate, better: str) -> None:
        rows.append(Row(case.workload.name, provider, metric, unit, *found, better))

    for passes, floor in floors.items():
        add(FLOOR, f"time, {passes}", "us", estimate([1e6 * floor]), "lower")
    for name in dict.fromkeys(name for name, _, _ in times):
        for form, metric in (("calls", "time"), ("graph", "graph time")):
            for passes, samples in passes_of(times, name, form).items():
                add(
                    name, f"{metric}, {passes}", "us", estimate([1e6 * t for t in samples]), "lower"
                )
        best = passes_of(times, name, "graph") or passes_of(times, name, "calls")
        for passes, samples in best.items() if name != LIGER else ():
            over = estimate([t / floors[passes] for t in samples])
            add(name, f"over the byte floor, {passes}", "x", over, "lower")
        if name != OURS and (OURS, BOTH, "calls") in times:
            graphs = {(who, BOTH, "graph") for who in (name, OURS)}
            form = "graph" if graphs <= times.keys() else "calls"
            found = ratios(times[name, BOTH, form], times[OURS, BOTH, form])
            add(OURS, speed_over(name), "x", found, "higher")
    return rows


def passes_of(times: dict[Key, list[float]], name: str, form: str) -> dict[str, list[float]]:
    """Samples by pass; the backward is what both take beyond the forward, round by round."""
    if not {(name, "forward", form), (name, BOTH, form)} <= times.keys():
        return {}
    first, both = times[name, "forward", form], times[name, BOTH, form]
    return {
        "forward": first,
        "backward": [b - f for f, b in zip(first, both, strict=True)],
        BOTH: both,
    }


def line(workload: str, outcome: Outcome) -> str:
    """What a job found, in a line."""
    own = {row.metric: row for row in outcome.rows if row.provider == OURS}
    times = [own[name] for name in (GRAPH_TIME, f"time, {BOTH}") if name in own]
    parts = [f"{row.value:.4g} us" for row in times[:1]]
    parts += [f"{own[OVER_FLOOR].value:.3g}x the byte floor"] if OVER_FLOOR in own else []
    parts += [
        f"{row.metric.split(',')[0]} {row.value:.3g}x"
        for metric, row in own.items()
        if metric.startswith("speed over")
    ]
    parts += [f"{name}: {why}" for name, why in outcome.refused.items()]
    return f"{workload}: {', '.join(parts)}"
