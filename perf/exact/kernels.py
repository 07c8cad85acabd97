"""`python -m klppo_compile.perf.exact.kernels OUT CHIP [FAMILY D ...]`: kernels for a GPU.

No GPU is needed: the kernel report compiles what the loss would launch. One process per chip.
Without families it compiles every configuration that the report knows.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from klppo_compile.perf.exact.metrics import exact_row, rows_of_process
from klppo_compile.perf.rows import Row

FEW = ("normal", "6", "categorical", "18")
"""Families and widths of the usual workloads."""


def measure_kernels(
    chips: Iterable[str],
    python_path: Path | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    every: bool = False,
) -> list[Row]:
    """Instructions, registers and spills of the kernels on each chip, as the report counts them.

    Args:
        chips: of the kernel report's.
        python_path: a folder whose package is measured; None is the one that runs.
        progress: told a line when a chip begins.
        every: whether every configuration is compiled, or a few usual ones.

    Raises:
        CannotError: a measuring process died.
    """
    rows = []
    for chip in chips:
        if progress is not None:
            progress(f"compiling kernels for {chip}")
        few = () if every else FEW
        rows += rows_of_process("exact.kernels", [chip, *few], f"kernels on {chip}", python_path)
    return rows


def rows_on(chip: str, chosen: list[str]) -> list[Row]:
    """Compile for a chip; `chosen` names families and widths in turn, empty is everything."""
    from klppo_compile.kernels.cases import LARGE, Case, cases
    from klppo_compile.kernels.compiled_cost import measure

    pairs = zip(chosen[::2], chosen[1::2], strict=True)
    few = [Case(family, LARGE, int(width)) for family, width in pairs]
    rows = []
    for case in few or cases():
        kernels = measure(case, chip)
        name = kernels[0].key.removeprefix(f"{chip} {kernels[0].kernel} ")
        name = f"kernels/{name.replace(' ', '/')}"
        rows.append(exact_row(name, chip, "kernels launched", "kernels", len(kernels)))
        for kernel in kernels:
            cost = kernel.cost
            spills = cost.spills + (0 if chip.startswith("gfx") else cost.stack)
            for metric, value, unit in (
                ("instructions", cost.instructions, "instructions"),
                ("registers", cost.registers, "registers"),
                ("spills", spills, "spills"),
            ):
                rows.append(exact_row(name, chip, f"{kernel.kernel} {metric}", unit, value))
    return rows


def main(arguments: list[str]) -> int:
    """Compile, write, and return the status."""
    out, chip, *chosen = arguments
    Path(out).write_text(
        json.dumps([asdict(row) for row in rows_on(chip, chosen)]), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
