"""Time on a device: events around calls and around replays of CUDA graphs, contenders in turn."""

import gc
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

Run = Callable[[], object]
Key = tuple[str, str, str]
"""Contender, pass ("forward" or "forward+backward"), form ("calls" or "graph")."""
WARMUP = 3


class Device(Protocol):
    """Where steps run and how their time is taken, over how many rounds at most."""

    name: str
    rounds: int

    def repeated(self, size: int) -> int:
        """How many sets of inputs of a size take turns, so that a cache holds none of them."""
        ...

    def captured(self, calls: Sequence[Run]) -> Run | None:
        """One replay of all calls, or None where there is no such thing."""
        ...

    def seconds(self, run: Run) -> float:
        """Time that one run takes."""
        ...

    def syncs(self, run: Run) -> int | None:
        """How often the host waits for the device in a run, or None where that means nothing."""
        ...


class CudaDevice:
    """The current CUDA device."""

    name = "cuda"
    rounds = 30

    def __init__(self) -> None:
        self.cache = int(torch.cuda.get_device_properties().L2_cache_size)
        self.flush = torch.empty(2 * self.cache, dtype=torch.int8, device="cuda")

    def repeated(self, size: int) -> int:
        """Enough for twice the cache, within a quarter of the free memory, at most 256."""
        free, _ = torch.cuda.mem_get_info()
        return max(1, min(-(-2 * self.cache // size), free // (4 * size), 256))

    def captured(self, calls: Sequence[Run]) -> Run:
        """A CUDA graph of the calls: their launches cost the host nothing."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP):
                calls[0]()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def seconds(self, run: Run) -> float:
        """By events. The write before them clears the cache and hides the start of the launch."""
        self.flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def syncs(self, run: Run) -> int:
        """0 where torch lets the run pass with waiting forbidden; else the warnings it gives."""
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            run()
        except RuntimeError:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run()
            return max(1, sum("synchroniz" in str(w.message) for w in caught))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return 0


class InterpretedDevice:
    """The CPU in a GPU's place, to try the suite out; its speeds say nothing about anything."""

    name = "cpu"
    rounds = 2

    def repeated(self, size: int) -> int:  # noqa: ARG002 - the protocol's
        """Two, so that they do take turns."""
        return 2

    def captured(self, calls: Sequence[Run]) -> None:
        """Graphs are a GPU's."""

    def seconds(self, run: Run) -> float:
        """By the host's clock."""
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def syncs(self, run: Run) -> None:
        """A CPU doesn't wait for itself."""


def in_turn(
    runs: Mapping[Key, Run], calls: Mapping[Key, int], device: Device, seconds: float
) -> dict[Key, list[float]]:
    """Seconds per call of every run in every round, each round in an order of its own.

    It ends early once `seconds` have passed on the host, after two rounds at the earliest.
    """
    times: dict[Key, list[float]] = {name: [] for name in runs}
    order, began, collecting = random.Random(0), time.monotonic(), gc.isenabled()  # noqa: S311 - an order, not a secret
    gc.collect()
    gc.disable()
    try:
        for done in range(device.rounds):
            if done > 1 and time.monotonic() - began > seconds:
                break
            for name in order.sample(list(runs), len(runs)):
                times[name].append(device.seconds(runs[name]) / calls[name])
    finally:
        if collecting:
            gc.enable()
    return times


def one_after_another(calls: Sequence[Run]) -> Run:
    """All calls as one run."""

    def run() -> None:
        for call in calls:
            call()

    return run


def copy_bandwidth(device: Device, size: int) -> list[float]:
    """Bytes per second, read and written, of copying `size` bytes on the device; some samples."""
    source = torch.zeros(size, dtype=torch.int8, device=device.name)
    target: Tensor = torch.empty_like(source)
    times = [device.seconds(lambda: target.copy_(source)) for _ in range(WARMUP + 20)]
    return [2 * size / t for t in times[WARMUP:]]
