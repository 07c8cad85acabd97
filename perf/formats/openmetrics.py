"""OpenMetrics text, for Prometheus and what reads its format (node_exporter's text files).

One family of gauges for each metric, times in seconds as Prometheus wants them; the estimate and
the ends of its 99 % interval are told apart by the label `estimate`. All of it is valid in
Prometheus's older text format, too, which node_exporter reads: that one has no info, so what a run
is stands in the labels of a gauge of 1.
"""

import re

from klppo_compile.perf.formats.names import keep_apart
from klppo_compile.perf.formats.pytest import seconds
from klppo_compile.perf.history.files import Run
from klppo_compile.perf.rows import Row

# The name that the run itself has.
RUN = "klppo_run_info"
FACTS = ("commit", "date", "machine_class")
UNITS = {"x": "ratio", "GB/s": "gigabytes_per_second", "B": "bytes", "bytes": "bytes"}


def openmetrics(runs: list[Run]) -> dict[str, str]:
    """One run as gauges, and `klppo_run_info` with its commit, date and machine.

    Raises:
        BadInputError: two metrics have one name, or two facts about the machine.
    """
    run = runs[0]
    machine = {str(name): str(value) for name, value in run.header["machine"].items()}
    own = [(name, ("the run itself",)) for name in (RUN, *FACTS)]
    keep_apart("openmetrics", [*own, *((family(row), (row.metric,)) for row in run.rows)])
    keep_apart("openmetrics", [*own, *((label(name), (name,)) for name in machine)])
    families: dict[str, list[Row]] = {}
    for row in run.rows:
        families.setdefault(family(row), []).append(row)
    facts = {"commit": run.commit, "date": run.date.isoformat()}
    facts |= {label(name): value for name, value in machine.items()}
    facts["machine_class"] = run.machine_class
    lines = [
        f"# TYPE {RUN} gauge",
        f"# HELP {RUN} The measured commit, and the machine.",
        f"{RUN}{labels(facts)} 1",
    ]
    for name, rows in families.items():
        lines += [f"# TYPE {name} gauge"]
        if (unit := unit_of(rows[0])) is not None:
            lines += [f"# UNIT {name} {unit}"]
        lines += [f"# HELP {name} {escape(rows[0].metric)}, {rows[0].better} is better."]
        lines += [line for row in rows for line in samples(name, row)]
    return {"": "\n".join([*lines, "# EOF", ""])}


def samples(name: str, row: Row) -> list[str]:
    """A row's lines: the estimate, and its interval where it has one."""
    values = {"median": row.value} if row.low == row.high else {}
    values = values or {"median": row.value, "low": row.low, "high": row.high}
    factor = seconds(row) or 1.0
    about = {"workload": row.workload, "provider": row.provider, "kind": row.kind}
    return [
        f"{name}{labels(about | {'estimate': estimate})} {value * factor!r}"
        for estimate, value in values.items()
    ]


def family(row: Row) -> str:
    """A metric's name: letters and digits, its unit at the end."""
    unit = unit_of(row)
    name = f"klppo_{slug(row.metric)}"
    return name if unit is None or name.endswith(f"_{unit}") else f"{name}_{unit}"


def unit_of(row: Row) -> str | None:
    """The unit as Prometheus writes it."""
    if seconds(row) is not None:
        return "seconds"
    return UNITS.get(row.unit, slug(row.unit)) or None


def slug(text: str) -> str:
    """A text as a part of a name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def label(name: str) -> str:
    """A label's name, which begins with no digit."""
    text = slug(name)
    return text if text[:1].isalpha() else f"_{text}"


def labels(values: dict[str, str]) -> str:
    """Labels in braces."""
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in values.items()) + "}"


def escape(text: str) -> str:
    """A text inside quotes, on one line."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
