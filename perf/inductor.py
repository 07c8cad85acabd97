"""Inductor's own kernels for the torch text beside ours: launches, bytes, registers, instructions.

Without a GPU, from machine code. Inductor picks block sizes by timing them on the device: of its
candidates the one with the fewest instructions counts here, so that a ratio is the least it can be.
"""

import importlib.util
import math
import tempfile
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from klppo_compile.distributions import FAMILIES
from klppo_compile.exit_codes import BadInputError
from klppo_compile.perf.gpu_cases import HEADS, INDUCTOR, OURS
from klppo_compile.perf.inductor_code import Kernel, Module, modules, require_torch
from klppo_compile.perf.inductor_device import described_device
from klppo_compile.perf.machine import result_name, run_header
from klppo_compile.perf.rows import Row, write_document
from klppo_compile.perf.workloads import PARAMETERS, Workload
from klppo_compile.records import Minibatch, PolicyHead, Softmax

DIRECTIONS, BOTH = ("forward", "backward"), "both"
SMALL = 2**14  # elements of a launch up to which its candidates aren't compared
if TYPE_CHECKING:
    from klppo_compile.kernels import report
    from klppo_compile.kernels.machine_code import Cost

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


def show(
    chips: tuple[str, ...], heads: tuple[str, ...], batch: int, out: Path | None, console: Console
) -> None:
    """Print the table of every head on every chip, and write the rows if asked to.

    Args:
        chips: of NVIDIA, of `CHIPS`.
        heads: as normal-17; none for the suite's first four.
        batch: rows.
        out: a JSON file, or a folder.
        console: to print on.

    Raises:
        RefusalError: another torch, no such head.
    """
    require_torch()
    rows: list[Row] = []
    workloads = [workload(head, batch) for head in heads or (f"{name}-{D}" for name, D in HEADS)]
    for chip in chips:
        for one in workloads:
            with console.status(f"{one.name} on {chip}"):
                found = compare(one, chip)
            console.print(table_of(one.name, chip, found))
            for (provider, direction), totals in found.items():
                rows += totals.rows(one.name, f"{provider}, {chip}", direction)
    if out is not None:
        head = run_header("python -m klppo_compile.perf inductor")
        described = {"cpu": "code for", "cores": 0, "isa": "-".join(chips)}
        head["machine"] |= described
        path = out if out.suffix == ".json" else out / result_name(head)
        write_document(path, head, rows)
        console.print(f"rows written to {path}", soft_wrap=True)


def workload(head: str, batch: int) -> Workload:
    """So many rows of a head that is named by its family and columns.

    Raises:
        BadInputError: no such family, no such number.
    """
    family, _, columns = head.rpartition("-")
    if family not in PARAMETERS or not columns.isdecimal() or not int(columns):
        raise BadInputError(
            f"--head must be one of {', '.join(PARAMETERS)} and a number of columns, as normal-17;"
            f" got {head!r}."
        )
    return Workload(family, batch, columns=int(columns))


def compare(workload: Workload, chip: str) -> Found:
    """Both contenders' totals by provider and direction."""
    from klppo_compile.kernels import report

    batch, leaves = batch_without_data(workload)
    ours = report.measure(
        report.Case(workload.family, workload.batch, workload.width, dtype=workload.dtype), chip
    )
    found: Found = {}
    for direction in DIRECTIONS:
        launched = [row for row in ours if row.kernel.endswith("backward") == (direction[0] == "b")]
        found[OURS, direction] = totals_of_ours(launched)
    for direction, module in modules(batch, leaves, chip).items():
        found[INDUCTOR, direction] = totals_of_module(module, workload.batch, chip)
    return found


def batch_without_data(workload: Workload) -> tuple[Minibatch, list[Tensor]]:
    """The workload's minibatch on the device "meta", and what is differentiated to."""
    family, N, dtype = FAMILIES[workload.family], workload.batch, getattr(torch, workload.dtype)

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    softmax = isinstance(family, Softmax)
    size = (N, 1, workload.width) if softmax else (N, workload.width)
    action = empty(N, 1, dtype=torch.int64) if softmax else empty(*size)
    old, new = (tuple(empty(*size, dtype=dtype) for _ in family.parameters) for _ in range(2))
    value, head = empty(N), PolicyHead(family, action, old, new)
    leaves = [x.requires_grad_() for x in (*new, value)]
    return Minibatch((head,), empty(N), empty(N), value, empty(N)), leaves


def totals_of_ours(rows: "Iterable[report.Row]") -> Totals:
    """Sums over what `kernels.report` measured."""
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


@dataclass(frozen=True)
class Launch:
    """One launch of a compiled kernel: over how many elements, in how many blocks.

    Attributes:
        instructions: that all its warps execute; a loop is over what is reduced.
    """

    cost: "Cost"
    elements: int
    blocks: int
    instructions: float


def cheapest(kernel: Kernel, chip: str) -> Launch:
    """Its launch with the candidate of the fewest instructions."""
    with described_device(chip):
        tuner = load(kernel)
        several = kernel.rows * kernel.reduced > SMALL
        candidates = tuner.configs if several else tuner.configs[:1]
        found = [(compiled(tuner, c, chip), dict(c.kwargs)) for c in candidates]
    launches = [launch_of(kernel, cost, sizes) for cost, sizes in found]
    return min(launches, key=lambda launch: launch.instructions)


def load(kernel: Kernel) -> Any:
    """Inductor's tuner of a kernel, with its candidates; the driver it asks for isn't there."""
    text = kernel.source.replace("triton_helpers.set_driver_to_gpu()", "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(kernel.name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        tuner = getattr(loaded, kernel.name)
        tuner.fn.src  # noqa: B018 - read while its file is there
        return tuner


def compiled(tuner: Any, candidate: Any, chip: str) -> "Cost":
    """One candidate's machine code, compiled as Inductor would."""
    import triton
    from triton.compiler import ASTSource

    from klppo_compile.kernels.machine_code import CHIPS, Cost, dump, from_sass

    meta = tuner._create_compile_meta(candidate)  # noqa: SLF001 - see inductor_code
    options = tuner._create_compile_options(candidate, meta)  # noqa: SLF001
    source = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    binary = triton.compile(source, target=CHIPS[chip].target, options=options)
    facts = {"shared": binary.metadata.shared, "warps": candidate.num_warps}
    return Cost(**facts, **from_sass(*dump(binary.asm["cubin"])))


def launch_of(kernel: Kernel, cost: "Cost", sizes: dict[str, int]) -> Launch:
    """A launch with blocks of these sizes."""
    from klppo_compile.kernels import report

    trips = math.ceil(kernel.reduced / sizes.get("R0_BLOCK", kernel.reduced))
    once = report.executed(cost, trips) if cost.loops else cost.instructions
    assert once is not None
    blocks = math.ceil(kernel.rows / sizes["XBLOCK"])
    return Launch(cost, kernel.rows * kernel.reduced, blocks, once * cost.warps * blocks)


def table_of(name: str, chip: str, found: Found) -> Table:
    """Both contenders, direction by direction, and the ratios."""
    table = Table(title=f"{name} on {chip}, per row of the minibatch", title_justify="left")
    for heading in ("", *FIGURES):
        table.add_column(heading, justify="right" if heading else "left")
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
