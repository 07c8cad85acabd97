"""Inductor's own kernels for the torch text beside ours: launches, bytes, registers, instructions.

Without a GPU, from machine code.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.distributions import FAMILIES
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.gpu.cases import HEADS, INDUCTOR, OURS, TOKENS, VOCABULARIES
from klppo_compile.perf.gpu.inductor_code import Module, modules, require_torch
from klppo_compile.perf.gpu.inductor_launch import cheapest
from klppo_compile.perf.machine import run_header
from klppo_compile.perf.rows import Row, require_place, write_result
from klppo_compile.records import Minibatch, PolicyHead

DIRECTIONS, BOTH = ("forward", "backward"), "both"
WORDS = tuple(f"categorical-{actions}-bfloat16" for actions in VOCABULARIES)
USUAL = (*(f"{family}-{columns}" for family, columns in HEADS), *WORDS)
HEAD = r"(\w+)-([1-9]\d*)(?:x([1-9]\d*))?(?:-(float32|bfloat16|float16))?"
if TYPE_CHECKING:
    from klppo_compile.kernels import compiled_cost
    from klppo_compile.kernels.cases import Case

FIGURES = ("launches", "blocks", "bytes", "registers", "spills", "instructions")


@dataclass(frozen=True)
class Totals:
    """One direction of one contender.

    Attributes:
        launches: kernels started.
        blocks: the fewest that a launch over all rows has: with one, one multiprocessor works.
        bytes: moved, per row of the minibatch.
        registers: of a thread, the largest of all kernels.
        spills: loads and stores of spilled registers in the code of all kernels.
        instructions: that warps execute, per row of the minibatch.
    """

    launches: int
    blocks: int
    bytes: float
    registers: int
    spills: int
    instructions: float

    def plus(self, other: "Totals") -> "Totals":
        """Both directions together."""
        return Totals(
            launches=self.launches + other.launches,
            blocks=min(self.blocks, other.blocks),
            bytes=self.bytes + other.bytes,
            registers=max(self.registers, other.registers),
            spills=self.spills + other.spills,
            instructions=self.instructions + other.instructions,
        )

    def rows(self, workload: str, provider: str, direction: str) -> list[Row]:
        """The figures as rows."""
        return [
            Row(workload, provider, f"{direction}: {figure}", "", x, x, x, 1, "lower", "exact")
            for figure, x in zip(FIGURES, astuple(self), strict=True)
        ]


Found = dict[tuple[str, str], Totals]


def show(chips: tuple[str, ...], heads: tuple[str, ...], batch: int, out: Path | None) -> None:
    """Print the table of every head on every chip, and write the rows if asked to.

    Args:
        chips: of NVIDIA, of `CHIPS`.
        heads: as normal-17, see `case_of`; none for the usual ones.
        batch: rows; of a vocabulary among the usual ones at most the GPU suite's.
        out: a JSON file, or a folder.

    Raises:
        RefusalError: another torch, no such head, a place that can't be written.
    """
    require_torch()
    require_place(out)
    console, rows = plain(), list[Row]()
    sizes = dict.fromkeys(heads or USUAL, batch)
    sizes |= {} if heads else dict.fromkeys(WORDS, min(batch, TOKENS))
    cases = {f"{head}/heads/{N}": case_of(head, N) for head, N in sizes.items()}
    for chip in chips:
        for name, case in cases.items():
            with console.status(f"{name} on {chip}"):
                found = compare(case, chip)
            console.print(table_of(name, chip, found))
            for (provider, direction), totals in found.items():
                rows += totals.rows(name, f"{provider}, {chip}", direction)
    if out is not None:
        head = run_header("python -m klppo_compile.perf inductor")
        described = {"cpu": "code for", "cores": 0, "isa": "-".join(chips)}
        head["machine"] |= described
        path = write_result(out, head, rows)
        console.print(f"rows written to {path}", soft_wrap=True)


def case_of(head: str, batch: int) -> "Case":
    """So many rows of a head by its name: family, columns, how many of them a row has, dtype.

    As normal-17, categorical-6x4, categorical-131072-bfloat16.

    Raises:
        BadInputError: no such family, no such number, no such dtype.
    """
    from klppo_compile.kernels.cases import Case

    families = [name for name, family in FAMILIES.items() if "triton" in family.backends]
    found = re.fullmatch(HEAD, head)
    if not found or found[1] not in families:
        raise BadInputError(
            f"--head must be one of {', '.join(families)} and a number of columns, as normal-17, or"
            f" categorical-6x4 for four of them, or categorical-32768-bfloat16; got {head!r}."
        )
    family, columns, several, dtype = found.groups("")
    return Case(family, batch, int(columns), heads=int(several or 1), dtype=dtype or "float32")


def compare(case: "Case", chip: str) -> Found:
    """Both contenders' totals by provider and direction."""
    from klppo_compile.kernels.compiled_cost import measure

    batch, leaves = batch_without_data(case)
    ours = measure(case, chip)
    found: Found = {}
    for direction in DIRECTIONS:
        launched = [row for row in ours if ("backward" in row.kernel) == (direction == "backward")]
        found[OURS, direction] = totals_of_ours(launched)
    for direction, module in modules(batch, leaves, chip).items():
        found[INDUCTOR, direction] = totals_of_module(module, case.N, chip)
    return found


def batch_without_data(case: "Case") -> tuple[Minibatch, list[Tensor]]:
    """The case's minibatch on the device "meta", and what is differentiated to."""

    def empty() -> Tensor:
        return torch.empty(case.N, device="meta")

    def head() -> PolicyHead:
        one = case.head()
        return replace(one, old=tuple(torch.empty_like(x) for x in one.new))

    heads, value = tuple(head() for _ in range(case.heads)), empty()
    leaves = [x.requires_grad_() for x in (*(x for h in heads for x in h.new), value)]
    return Minibatch(heads, empty(), empty(), value, empty(), old_value=empty()), leaves


def totals_of_ours(rows: "Iterable[compiled_cost.Row]") -> Totals:
    """Sums over what `kernels.compiled_cost` measured."""
    rows = list(rows)
    return Totals(
        launches=len(rows),
        blocks=min(row.blocks for row in rows if row.kernel not in {"fold", "finalize"}),
        bytes=sum(row.bytes_per_row for row in rows),
        registers=max(row.cost.registers for row in rows),
        spills=sum(row.cost.spills for row in rows),
        instructions=sum(row.per_row or math.nan for row in rows),
    )


def totals_of_module(module: Module, batch: int, chip: str) -> Totals:
    """Sums over the launches of one of Inductor's modules for so many rows."""
    costs = {kernel.name: cheapest(kernel, chip) for kernel in module.kernels.values()}
    launched = [costs[name] for name in module.launches]
    return Totals(
        launches=len(launched),
        blocks=min(run.blocks for run in launched if run.elements >= batch),
        bytes=module.bytes / batch,
        registers=max(run.cost.registers for run in launched),
        spills=sum(run.cost.spills for run in launched),
        instructions=sum(run.instructions for run in launched) / batch,
    )


def table_of(name: str, chip: str, found: Found) -> Table:
    """Both contenders, direction by direction, and the ratios."""
    title = f"{name} on {chip}, per row of the minibatch"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    add_columns(table, "")
    add_columns(table, *FIGURES, justify="right")
    for direction in (*DIRECTIONS, BOTH):
        ours, theirs = (of(found, provider, direction) for provider in (OURS, INDUCTOR))
        table.add_row(f"ours, {direction}", *(f"{x:.4g}" for x in astuple(ours)))
        table.add_row("Inductor", *(f"{x:.4g}" for x in astuple(theirs)))
        pairs = zip(astuple(theirs), astuple(ours), strict=True)
        table.add_row("  times ours", *(f"{a / b:.2f}x" if b else "" for a, b in pairs))
        table.add_section()
    return table


def of(found: Found, provider: str, direction: str) -> Totals:
    """A contender's totals of one direction, or of both."""
    if direction != BOTH:
        return found[provider, direction]
    forward, backward = (found[provider, one] for one in DIRECTIONS)
    return forward.plus(backward)
