"""What the kernels of a case cost on a chip.

It launches the loss on tensors without data, and compiles what would run.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from klppo_compile.kernels import factorised, launch, tiling
from klppo_compile.kernels.cases import Case
from klppo_compile.kernels.layout import Head, Problem, Static
from klppo_compile.kernels.machine_code import CHIPS, Cost, compile_for

EACH = ("factorised_forward", "factorised_backward", "softmax_forward", "softmax_backward")
NUMBERS = (1.0, 0.2, float("inf"), 0.01, 2.0, 0.5, 1e-6, 1e6)


@dataclass(frozen=True)
class Row:
    """One kernel of one case on one chip.

    Per row of the minibatch: instructions of a warp, or None where it loops and the assembly
    doesn't say over what (AMD); and least bytes. A loop over noise counts once.
    """

    kernel: str
    case: Case
    chip: str
    cost: Cost
    blocks: int
    per_row: float | None
    bytes_per_row: float

    @property
    def key(self) -> str:
        """The name it has in the baseline."""
        c = self.case
        more = " masks" * c.masks + " apart" * c.apart + f" heads={c.heads}" * (c.heads > 1)
        return f"{self.chip} {self.kernel} {c.family} N={c.N} K={c.K} D={c.D} {c.dtype}{more}"

    @property
    def issue_bound(self) -> float:
        """Bytes per second that instructions allow, at one per scheduler and cycle; or NaN."""
        if not self.per_row:
            return float("nan")
        chip = CHIPS[self.chip]
        return self.bytes_per_row / self.per_row * chip.units * 4 * chip.clock


def measure(case: Case, chip: str) -> list[Row]:
    """Compile what the case launches."""
    rows: list[Row] = []
    p = case.problem()

    def run(kernel: Any, grid: tuple[int, ...], threads: int, *args: Any) -> None:
        cost = cost_of(chip, kernel, args, threads)
        name = kernel.fn.__name__
        blocks = functools.reduce(lambda x, y: x * y, grid)
        per_row = executed(cost, sweeps(name, p.heads[0], args))
        per_row = per_row and per_row * cost.warps * blocks / case.N
        before = sum(row.kernel.startswith(name) for row in rows)
        label = f"{name} head {before + 1}" if case.heads > 1 and name in EACH else name
        least = least_bytes(name, p)
        rows.append(Row(label, case, chip, cost, blocks, per_row, least))

    static = Static("none" if case.masks else "mean", "smooth_l1", True, True, True)
    beta = torch.empty((), device="meta")
    g = torch.empty(case.N if case.masks else 1, device="meta")
    coeffs = (0.01,) * case.heads
    numbers: tuple[Tensor | float, ...] = (beta, *NUMBERS[:3], *coeffs, *NUMBERS[3:])
    token = tiling.CHIP.set(chip)
    try:
        out = launch.forward(p, numbers, static, run)
        launch.backward(p, (g, g, g), out.metrics, out.log_prob, out.kept, static, run)
    finally:
        tiling.CHIP.reset(token)
    return rows


def sweeps(kernel: str, h: Head, args: tuple[Any, ...]) -> int:
    """How often the outer loop of a kernel runs."""
    if kernel == "streaming_softmax":
        return int(args[4])
    if kernel in {"factorised_forward", "factorised_backward"}:
        names = inspect.signature(getattr(factorised, kernel)).parameters
        given = dict(zip(names, args, strict=False))
        return 1 if given["UNROLL"] > 1 else max(1, h.D // (given["T"] * given["W"]))
    return h.K if kernel in {"softmax_forward", "softmax_backward", "streaming_close"} else 1


def executed(cost: Cost, sweeps: int) -> float | None:
    """Instructions that a warp executes, its outer loop run so often."""
    if sweeps == 1:
        return cost.instructions
    if not cost.loops:
        return None
    return cost.instructions + (sweeps - 1) * max(cost.loops)


def cost_of(chip: str, kernel: Any, args: tuple[Any, ...], threads: int) -> Cost:
    """Compile with the options of a launch on that chip."""
    wave = CHIPS[chip].target.warp_size
    return compile_for(chip, kernel, args, **tiling.options(threads, wave))


def least_bytes(kernel: str, p: Problem) -> float:
    """Bytes that a row's inputs and outputs take, each once; of one of its heads."""
    h, rows = p.heads[0], (p.rows, *([p.values] if p.values else []))
    head = sum(x.element_size() for x in (*h.old, *h.new)) * h.K * h.D
    action = h.action.element_size() * (h.K if h.softmax else h.D)
    samples = sum(
        x.element_size() * r.N / p.rows.N for r in rows for x in r.tensors if x is not None
    )
    kept = 20 * h.K if h.softmax else 0
    gradients = sum(x.element_size() for x in h.new) * h.K * h.D + 4
    return {
        "factorised_forward": head + action + samples + kept + 12,
        "softmax_forward": head + action + samples + kept + 12,
        "factorised_backward": head + action + samples + kept + 4 + gradients,
        "softmax_backward": head + action + samples + kept + 4 + gradients,
        "streaming_softmax": head,
        "streaming_close": samples + kept + 12,
    }.get(kernel, 1.0)
