"""A history of result files as it would be after many runs, with steps sown into it."""

from datetime import UTC, datetime, timedelta

import numpy as np

from klppo_compile.perf.rows import Row, write_document

MACHINE = {"cpu": "AMD EPYC", "cores": 2, "isa": "AVX2", "torch": "2.13.0+cpu", "torchrl": "0.14.1"}
WORKLOADS = ("normal/heads/256", "normal/heads/65536", "categorical/heads/256")
WORKLOADS += ("categorical/heads/65536",)
PROVIDERS = ("ours eager", "ours compiled")
# metric: unit, kind, better, first value, noise from run to run
METRICS = {
    "time": ("us", "timed", "lower", 123.4, 0.0075),
    "speed over torchrl eager": ("x", "timed", "higher", 8.2, 0.006),
    "instructions": ("", "counted", "lower", 2_961_131.0, 0.0005),
    "generated kernels": ("", "exact", "lower", 17.0, 0.0),
    "graph breaks": ("", "exact", "lower", 0.0, 0.0),
}
STEPS = {"time": 1.08, "speed over torchrl eager": 1 / 1.08, "instructions": 1.06}
EXACT_STEPS = {"generated kernels": 1.0, "graph breaks": 1.0}


def header(number, machine=MACHINE):
    """The head of run `number`, a day after the one before."""
    date = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=number)
    return {
        "date": date.isoformat(timespec="seconds"),
        "commit": f"{number:02x}c0ffee01",
        "command": "klppo bench run --suite quick",
        "threads": 1,
        "machine": machine,
    }


def rows(number, generator, step_at=None, stepped=("normal/heads/256", "ours compiled")):
    """All rows of run `number`; from `step_at` on one contender does worse in every metric."""
    found = []
    for workload in WORKLOADS:
        for provider in PROVIDERS:
            slow = step_at is not None and number >= step_at and (workload, provider) == stepped
            for metric, (unit, kind, better, value, noise) in METRICS.items():
                x = value * np.exp(noise * generator.normal())
                if slow:
                    x = x * STEPS.get(metric, 1.0) + EXACT_STEPS.get(metric, 0.0)
                half = 2.576 * noise * x / 3
                samples = 1 if kind == "exact" else 150
                found.append(
                    Row(
                        workload,
                        provider,
                        metric,
                        unit,
                        float(x),
                        float(x - half),
                        float(x + half),
                        samples,
                        better,
                        kind,
                    )
                )
    return found


def write_history(folder, runs, step_at=None, machine=MACHINE, seed=0):
    """Write `runs` files of 40 series each."""
    generator = np.random.default_rng(seed)
    for number in range(runs):
        head = header(number, machine)
        name = f"{head['date'][:10]}-{head['commit']}-{machine['cpu'].replace(' ', '-')}.json"
        write_document(folder / name.lower(), head, rows(number, generator, step_at))
    return folder
