"""What every shipped kernel costs on every target: `python -m klppo_compile.kernels.report`.

No GPU is needed. Rows are saved as JSON lines; `baseline.json` holds the instruction counts that
`check` compares with. What grows on purpose is refreshed with `--refresh`. Every width is compiled
for sm_90, the usual ones for the other chips; `--columns` asks for others.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import triton

from klppo_compile.distributions import FAMILIES
from klppo_compile.kernels.cases import cases
from klppo_compile.kernels.compiled_cost import Row, measure
from klppo_compile.kernels.machine_code import CHIPS

REFRESH = "`python -m klppo_compile.kernels.report --refresh`"
BASELINE = Path(__file__).with_name("baseline.json")
EVERY_WIDTH, USUAL = "sm_90", (6, 18, 131072)


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
