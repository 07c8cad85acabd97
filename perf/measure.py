"""Time that can be trusted on a shared machine.

Interleaved single calls, the thread's CPU clock, medians.

One round calls every contender once, so that a disturbance hits all alike; a ratio is the median of
the rounds' ratios. Absolute times drift by some 15 % between runs, these ratios by some 0.5 %.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from statistics import NormalDist, median
from typing import NamedTuple

Step = Callable[[], object]
AGAIN = ", again"
"""End of the names of metrics of a step's second call in a row."""
ENOUGH = 8
"""Samples that a 99 % interval of a median needs: the range of 7 covers 98.4 %, of 5 only 94 %."""


class Estimate(NamedTuple):
    """A median with its confidence interval."""

    value: float
    low: float
    high: float
    samples: int


def estimate(samples: list[float], confidence: float = 0.99) -> Estimate:
    """The median, and the order statistics that hold the true one (binomial, normal approximation).

    Of fewer than `ENOUGH` samples their range, which holds it less often than `confidence` says.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("A median needs a sample; got none. Measure at least one round.")
    ordered, n = sorted(samples), len(samples)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * n**0.5 / 2
    low, high = max(0, int(n / 2 - reach)), min(n - 1, int(n / 2 + reach + 1))
    return Estimate(median(ordered), ordered[low], ordered[high], n)


def ratios(numerator: list[float], denominator: list[float]) -> Estimate:
    """The median ratio of paired samples."""
    return estimate([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, list[float]]:
    """Seconds of every step in every round; it ends early once `seconds` of the clock are spent.

    Not before `ENOUGH` rounds, though.

    Each round has an order of its own, for a step pays for what the one before it left in the cache
    and took from the allocator. The garbage collector rests: its pauses belong to no step.
    """
    return take_turns(steps, rounds, seconds, 1, clock)[0]


def take_turns(
    steps: Mapping[str, Step],
    rounds: int,
    seconds: float,
    calls: int,
    clock: Callable[[], float] = time.thread_time,
) -> list[dict[str, list[float]]]:
    """`interleave` with so many calls of a step in a row: times of the first, of the second, ...

    `ENOUGH` rounds are made, if `rounds` are no fewer, whatever the seconds.

    The first call pays for what the step before it left: emptied caches, and a heap to give back.
    It adds about the same to every step, and so draws ratios to 1. The second pays for itself.
    """
    times: list[dict[str, list[float]]] = [{name: [] for name in steps} for _ in range(calls)]
    order, collecting = random.Random(0), gc.isenabled()  # noqa: S311 - an order, not a secret
    gc.collect()
    gc.disable()
    try:
        began = clock()
        for done in range(rounds):
            if done >= ENOUGH and clock() - began > seconds:
                break
            for name in order.sample(list(steps), len(steps)):
                for call in times:
                    start = clock()
                    steps[name]()
                    call[name].append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return times
