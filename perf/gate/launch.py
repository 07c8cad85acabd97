"""One launch: a process that imports base, base again and new, and calls them in turns.

`python -m klppo_compile.perf.gate.launch` reads a request as JSON and prints a reply as JSON; a
process imports a side once, so nothing here runs in the process that asks.
"""

import hashlib
import importlib
import json
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime.cache_dir_utils import cache_dir, temporary_cache_dir

from klppo_compile.perf.measure import interleave

Answer = tuple[Tensor, tuple[Tensor, ...]]
Step = Callable[[], Answer]
WARM_UP = 20
"""Rounds that don't count: the first ones find cold caches and a growing heap."""


class SideError(Exception):
    """A side doesn't import, or this room can't drive it: which one, and what it says."""

    def __init__(self, side: str, error: BaseException) -> None:
        said = str(error).strip().splitlines() or ["it says nothing"]
        super().__init__(f"{type(error).__name__}: {said[0]}")
        self.side = side


def eager_step(package: str, workload: str) -> Step:
    """A side's eager forward and backward."""
    workloads = importlib.import_module(f"{package}.perf.workloads")
    providers = importlib.import_module(f"{package}.perf.providers")
    case = workloads.problem(next(w for w in workloads.WORKLOADS if w.name == workload))
    step: Step = providers.step_of(providers.our_loss(case), case)
    return step


def compiled_step(package: str, workload: str, cache: Path) -> tuple[Step, str]:
    """A side's compiled forward and backward, warm, and a digest of the code made for it.

    The compiler's caches are the side's own: from a shared one, equal sides would get one and the
    same loaded code. They outlive the launch, so that only the first has to compile.
    """
    workloads = importlib.import_module(f"{package}.perf.workloads")
    providers = importlib.import_module(f"{package}.perf.providers")
    compiling = importlib.import_module(f"{package}.compiling")
    case = workloads.problem(next(w for w in workloads.WORKLOADS if w.name == workload))
    known = len(PyCodeCache.modules)
    with temporary_cache_dir(str(cache)):
        step: Step = providers.step_of(compiling.compile_loss(providers.our_loss(case)), case)
        for _ in range(3):
            step()
        return step, code_digest(known)


def code_digest(known: int) -> str:
    """A digest of the modules that Inductor loaded after the first `known`."""
    files = [module.__file__ for module in PyCodeCache.modules[known:]]
    texts = [Path(file).read_text(encoding="utf-8") for file in files if file]
    return hashlib.sha256("\0".join(sorted(texts)).encode()).hexdigest()[:16]


def difference(answer: Answer, other: Answer) -> float:
    """The largest difference of two answers' tensors, relative to the largest of each.

    Infinite where one is not a number, which Python's max may pass over.
    """
    pairs = zip((answer[0], *answer[1]), (other[0], *other[1]), strict=True)
    found = [apart(a, b) for a, b in pairs]
    return math.inf if any(math.isnan(x) for x in found) else max(found)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to b's largest; 0 where both are the same."""
    if a.shape != b.shape:
        return math.inf
    return 0.0 if bool((a == b).all()) else ((a - b).abs().max() / b.abs().max()).item()


def log_ratio(times: list[float], base: list[float]) -> float:
    """Hodges and Lehmann's estimate of the logarithm of a ratio, from paired calls.

    The median over all pairs of rounds of their mean: as firm against outliers as Wilcoxon's test,
    and steadier than the plain median.
    """
    logs = np.log(np.array(times) / np.array(base))
    above = np.triu_indices(len(logs))
    return float(np.median((logs[:, None] + logs)[above]) / 2)


def measure(request: dict[str, Any], workload: str, order: list[str]) -> dict[str, Any]:
    """Build the sides of one workload in this order, and time them in turns.

    Raises:
        SideError: one doesn't import, build or run.
    """
    torch.compiler.reset()
    steps, digests = {}, {}
    for side in order:
        try:
            steps[side], digests[side] = compiled_step(
                request["sides"][side], workload, Path(cache_dir()) / "klppo-ab" / side
            )
        except (Exception, SystemExit) as error:  # a revision may break in any way
            raise SideError(side, error) from error
    answers = {side: step() for side, step in steps.items()}
    interleave(steps, WARM_UP, request["seconds"])
    times = interleave(steps, request["rounds"], request["seconds"])
    base = times["base"]
    return {
        "seconds": median(base),
        "rounds": len(base),
        "sides": {
            side: {
                "ratio": log_ratio(times[side], base),
                "difference": difference(answers[side], answers["base"]),
                "same_code": digests[side] == digests["base"],
            }
            for side in request["sides"]
            if side != "base"
        },
    }


def probe(request: dict[str, Any]) -> None:
    """Run both revisions once on every workload, eagerly; the control is the base's text again.

    Raises:
        SideError: one doesn't import or run.
    """
    for side, package in request["sides"].items():
        for workload in request["workloads"] if side != "null" else ():
            try:
                eager_step(package, workload)()
            except (Exception, SystemExit) as error:  # a revision may break in any way
                raise SideError(side, error) from error


def build_order(sides: list[str], launch: int) -> list[str]:
    """Who is built first, which gets the first memory: it differs from launch to launch."""
    turn = launch % len(sides)
    turned = sides[turn:] + sides[:turn]
    return turned[::-1] if launch // len(sides) % 2 else turned


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request."""
    try:
        if request["launch"] is None:
            probe(request)
            return {}
        names, order = request["workloads"], random.Random(request["launch"])  # noqa: S311 - an order
        sides = build_order(list(request["sides"]), request["launch"])
        found = {name: measure(request, name, sides) for name in order.sample(names, len(names))}
    except SideError as error:
        return {"side": error.side, "error": str(error)}
    return {"workloads": found}


def main() -> int:
    """Serve the request on standard input."""
    torch.set_num_threads(1)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)  # what a revision prints, be it as the process ends, is no reply
        json.dump(serve(json.load(sys.stdin)), answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
