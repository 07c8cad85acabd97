"""Rows as a table to read: one line per contender, its metrics in columns."""

from rich.table import Table

from klppo_compile.commands.plain import add_columns
from klppo_compile.perf.measure import AGAIN, ENOUGH
from klppo_compile.perf.rows import Row
from klppo_compile.perf.workloads import Workload

COLUMNS = {
    "time": ("us", "{:,.0f}"),
    "minimum bytes over time": ("GB/s", "{:.2f}"),
    "speed over torchrl eager": ("over torchrl eager", "{:.2f}x"),
    "speed over torchrl compiled": ("over torchrl compiled", "{:.2f}x"),
    "time over networks alone, compiled": ("times networks alone", "{:.3f}"),
    "time over copy of the minimum bytes": ("times the copy", "{:.1f}"),
}
FEW = f"no ±: fewer than {ENOUGH} samples have a range, which covers less than 99 %"
ONE = "±: of this launch's calls; the next launch may differ by more (--launches 5)"


def table_of(workload: Workload, rows: list[Row]) -> Table:
    """The rows of one workload, two lines for a contender: in turn, and called again at once.

    The 99 % interval of a ratio stands behind it, where there are samples enough for one.
    """
    table = Table(
        title=f"{workload.name}: {workload.regime}",
        title_justify="left",
        caption=caption_of(rows),
        caption_justify="left",
    )
    add_columns(table, "forward + backward, one thread")
    shown = [metric for metric in COLUMNS if any(row.metric == metric for row in rows)]
    add_columns(table, *(COLUMNS[metric][0] for metric in shown), justify="right")
    cells = {(row.provider, row.metric): cell(row) for row in rows}
    for provider in dict.fromkeys(row.provider for row in rows):
        for end, label in (("", provider), (AGAIN, "  again")):
            line = [cells.get((provider, metric + end), "") for metric in shown]
            if any(line):
                table.add_row(label, *line)
    return table


def caption_of(rows: list[Row]) -> str | None:
    """What the intervals leave out."""
    if min((row.samples for row in rows), default=ENOUGH) < ENOUGH:
        return FEW
    return ONE if all(row.launches == 1 for row in rows) else None


def cell(row: Row) -> str:
    """A value, and for ratios how far it may be off."""
    shape = COLUMNS[row.metric.removesuffix(AGAIN)][1]
    text = shape.format(row.value)
    if row.unit != "x" or row.samples < ENOUGH:
        return text
    return f"{text} ±{50 * (row.high - row.low) / row.value:.0f}%"
