"""`python -m klppo_compile.perf.timed.process OUT WORKLOAD ROUNDS SECONDS`: one launch of `cpu`."""

import sys

from klppo_compile.perf.exact.metrics import answer, understood
from klppo_compile.perf.timed.cpu import measure_workload


def main(arguments: list[str]) -> int:
    """Measure a workload; write its rows."""
    out, text, rounds, seconds = arguments
    return answer(out, lambda: measure_workload(understood(text), int(rounds), float(seconds)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
