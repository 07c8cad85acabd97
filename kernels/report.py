"""What every shipped kernel costs on every target: `python -m klppo_compile.kernels.report`.

No GPU is needed: it launches the loss on tensors without data and compiles what would run. Rows are
saved as JSON lines; `baseline.json` holds the instruction counts that `check` compares with. What
grows on purpose is refreshed with `--refresh`. Every width is compiled for sm_90, the usual ones
for the other chips; `--columns` asks for others.
"""

import argparse
import functools
import inspect
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from klppo_compile.distributions import FAMILIES
from klppo_compile.kernels import factorised, launch, tiling
from klppo_compile.kernels.layout import Head, Problem, Static, problem
from klppo_compile.kernels.machine_code import CHIPS, Cost, compile_for
from klppo_compile.records import Factorised, Family, Minibatch, PolicyHead, Softmax

EACH = ("factorised_forward", "factorised_backward", "softmax_forward", "softmax_backward")
REFRESH = "`python -m klppo_compile.kernels.report --refresh`"
BASELINE = Path(__file__).with_name("baseline.json")
EVERY_WIDTH, USUAL = "sm_90", (6, 18, 131072)
LARGE, MEDIUM, SMALL = 1 << 20, 1 << 16, 1 << 12
NUMBERS = (1.0, 0.2, float("inf"), 0.01, 2.0, 0.5, 1e-6, 1e6)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One workload; `masks`: with row masks, a proximal policy, and losses per row.

    K: softmaxes of a row, `heads`: action heads, `apart`: the critic has rows of its own.
    """

    family: str
    N: int
    D: int
    K: int = 1
    heads: int = 1
    dtype: str = "float32"
    masks: bool = False
    apart: bool = False

    def problem(self) -> Problem:
        """It, on tensors without data."""

        def rows(dtype: torch.dtype = torch.float32, N: int = self.N) -> Tensor:
            return torch.empty(N, dtype=dtype, device="meta")

        mask = rows(torch.bool) if self.masks else None
        values = self.N // 2 if self.apart else self.N
        return problem(
            Minibatch(
                (self.head(),) * self.heads,
                old_log_prob=rows(),
                advantage=rows(),
                value=rows(N=values),
                value_target=rows(N=values),
                old_value=rows(N=values),
                mask=mask,
                value_mask=mask,
                proximal_log_prob=rows() if self.masks else None,
            )
        )

    def head(self) -> PolicyHead:
        """One of its action heads."""
        family = FAMILIES[self.family]
        softmax = isinstance(family, Softmax)
        size = (self.N, self.K, self.D) if softmax else (self.N, self.D)
        parameters = tuple(
            torch.empty(size, dtype=DTYPES[self.dtype], device="meta") for _ in family.parameters
        )
        action = torch.empty(
            size[:2], dtype=torch.int64 if softmax else torch.float32, device="meta"
        )
        extra: dict[str, Any] = {}
        if isinstance(family, Factorised) and family.correction is not None:
            sizes = {"log_volume": (), "noise": (16, 1, 1), "weights": (16,)}
            extra = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        return PolicyHead(family, action, parameters, parameters, **extra)


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


def cases(families: Iterable[Family] | None = None) -> Iterator[Case]:
    """Every family at the sizes where its tile changes."""
    for family in FAMILIES.values() if families is None else families:
        if "triton" not in family.backends:
            continue
        softmax = isinstance(family, Softmax)
        for D in (2, 6, 17, 18, 33, 256, 1024) if softmax else (1, 6, 17, 32, 64, 512):
            yield Case(family.name, LARGE, D)
            yield Case(family.name, SMALL, D)
            yield Case(family.name, LARGE, D, dtype="bfloat16")
            yield Case(family.name, LARGE, D, masks=True)
        yield Case(family.name, MEDIUM, D)
        yield Case(family.name, LARGE, 6, heads=2)
        yield Case(family.name, LARGE, 6, apart=True)
        yield Case(family.name, LARGE, D, dtype="float16")
        if softmax:
            yield Case(family.name, LARGE, 7, K=4)
            for dtype in DTYPES:
                for N, D in ((8192, 131072), (8, 131072), (8192, 50257)):
                    yield Case(family.name, N, D, dtype=dtype)


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


def line(row: Row) -> str:
    """One line of the table."""
    c, cost = row.case, row.cost
    size = f"N={c.N} D={c.D}" + (f" K={c.K}" if c.K > 1 else "")
    size += " masks" * c.masks + " apart" * c.apart
    loops = f" loops {','.join(map(str, cost.loops))}" if cost.loops else ""
    return (
        f"{row.chip:7s}{row.kernel:26s}{c.family:12s}{size:26s}{c.dtype:9s}"
        f"registers {cost.registers:3d} spills {cost.spills} stack {cost.stack} "
        f"shared {cost.shared} instructions {cost.instructions} "
        f"per row {row.per_row or math.nan:.1f} "
        f"occupancy {cost.occupancy(CHIPS[row.chip]):.2f} loads {cost.loads} stores {cost.stores} "
        f"issue-bound {row.issue_bound / 1e12:.1f} TB/s of {row.bytes_per_row:.0f} B{loops}"
    )


def check(rows: Iterable[Row]) -> list[str]:
    """What is wrong: spills, and counts beyond the baseline, under the Triton that wrote it."""
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    same = baseline["triton"] == triton.__version__
    faults = []
    for row in rows:
        if row.cost.spills or (row.cost.stack and row.chip != "gfx942"):
            faults.append(
                f"{row.key} spills registers: {row.cost.spills} loads and stores, "
                f"{row.cost.stack} bytes of stack"
            )
        if not same:
            continue
        known = baseline["instructions"].get(row.key)
        if known is None:
            faults.append(f"{row.key} has no baseline. Add it by {REFRESH}.")
        elif row.cost.instructions > known:
            faults.append(
                f"{row.key} takes {row.cost.instructions} instructions, {known} in the baseline. "
                f"If that is the price of something, say so by {REFRESH}."
            )
    return faults


def compared() -> str:
    """What it says of the counts that `check` has no fault."""
    wrote = json.loads(BASELINE.read_text(encoding="utf-8"))["triton"]
    if wrote == triton.__version__:
        return "no count beyond the baseline"
    return f"counts not compared: the baseline is Triton {wrote}'s, this is {triton.__version__}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit 1 on spills or on growth."""
    parser = argparse.ArgumentParser(
        prog="klppo_compile.kernels.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(CHIPS))
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--columns", type=int, nargs="+", help="only these elements or actions")
    parser.add_argument("--save", type=Path, help="append each row to this file, as JSON lines")
    parser.add_argument("--refresh", action="store_true", help="write these counts to the baseline")
    options = parser.parse_args(arguments)
    rows = []
    for chip in options.chips:
        columns = options.columns or (None if chip == EVERY_WIDTH else USUAL)
        for case in cases([FAMILIES[name] for name in options.families]):
            if columns and case.D not in columns:
                continue
            for row in measure(case, chip):
                rows.append(row)
                print(line(row), flush=True)  # noqa: T201 (a report prints its table)
                if options.save:
                    with options.save.open("a", encoding="utf-8") as file:
                        file.write(
                            json.dumps(asdict(row) | {"issue_bound": row.issue_bound}) + "\n"
                        )
    if options.refresh:
        refresh(rows)
    faults = check(rows)
    print("\n".join(faults) or f"no spills; {compared()}", file=sys.stderr)  # noqa: T201
    return int(bool(faults))


def refresh(rows: Iterable[Row]) -> None:
    """Write the rows' counts to the baseline; others stay, unless another Triton wrote them."""
    known = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    same = known.get("triton") == triton.__version__
    counts = (known["instructions"] if same else {}) | {
        row.key: row.cost.instructions for row in rows
    }
    text = json.dumps(
        {"triton": triton.__version__, "instructions": dict(sorted(counts.items()))}, indent=0
    )
    BASELINE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
