"""`python -m klppo_compile.perf.cpu_process OUT WORKLOAD ROUNDS SECONDS`: one launch of `cpu`."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from klppo_compile.perf.cpu import WrongAnswerError, measure_workload
from klppo_compile.perf.exact import WRONG_ANSWER, understood


def main(arguments: list[str]) -> int:
    """Measure a workload; write its rows."""
    out, text, rounds, seconds = arguments
    warnings.simplefilter("ignore")
    try:
        rows = measure_workload(understood(text), int(rounds), float(seconds))
    except WrongAnswerError as error:
        print(error, file=sys.stderr)
        return WRONG_ANSWER
    Path(out).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
