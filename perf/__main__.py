"""`python -m klppo_compile.perf cpu`: measure the loss here."""

import argparse
import importlib.util
import sys
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from klppo_compile.exit_codes import ExitCode
from klppo_compile.perf.cpu import WrongAnswerError, measure_workload
from klppo_compile.perf.machine import result_name, run_header
from klppo_compile.perf.rows import Row, write_document
from klppo_compile.perf.table import table_of
from klppo_compile.perf.workloads import WORKLOADS

NEEDS_TORCHRL = "The comparison needs torchrl: pip install 'klppo-compile[perf]'"


def above_0(text: str) -> int:
    """A positive number of the command line.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"it must be above 0; got {text}")
    return int(text)


def torchrl_is_there() -> bool:
    """Whether there is something to compare with."""
    return sys.modules.get("torchrl", ...) is not None and bool(importlib.util.find_spec("torchrl"))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m klppo_compile.perf", description=__doc__)
    parser.add_argument("suite", choices=["cpu"], help="cpu: the loss on one thread")
    parser.add_argument("--workload", default="*", help="pattern of workload names, normal/heads/*")
    parser.add_argument("--rounds", type=above_0, default=200, help="calls of each, at most")
    parser.add_argument("--seconds", type=above_0, default=20, help="per workload, at most")
    parser.add_argument("--quick", action="store_true", help="seconds per workload, B <= 4096")
    parser.add_argument("--out", type=Path, help="a JSON file, or a folder that gets a named one")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    options, console = parse(arguments), Console()
    if not torchrl_is_there():
        console.print(NEEDS_TORCHRL, markup=False)
        return ExitCode.MISSING
    limits = (50, 3) if options.quick else (options.rounds, options.seconds)
    chosen = [
        w
        for w in WORKLOADS
        if fnmatch(w.name, options.workload) and not (options.quick and w.batch > 4096)
    ]
    if not chosen:
        names = ", ".join(w.name for w in WORKLOADS)
        pattern = options.workload
        console.print(f"--workload must match a workload; {pattern!r} matches none of {names}")
        return ExitCode.BAD_INPUT
    rows: list[Row] = []
    for workload in chosen:
        try:
            measured = measure_workload(workload, *limits)
        except WrongAnswerError as error:
            console.print(f"[red]no speed for a wrong answer:[/] {error}")
            return ExitCode.FAILED
        console.print(table_of(workload, measured))
        rows += measured
    if options.out is not None:
        header = run_header("python -m klppo_compile.perf " + " ".join(arguments or sys.argv[1:]))
        path = options.out if options.out.suffix == ".json" else options.out / result_name(header)
        write_document(path, header, rows)
        console.print(f"rows written to {path}")
    return ExitCode.GOOD


if __name__ == "__main__":
    sys.exit(main())
