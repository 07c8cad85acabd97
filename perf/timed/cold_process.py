"""`python -m klppo_compile.perf.timed.cold_process OUT SIDE WORKLOAD`: one cold start, in seconds.

Nothing but the clock is loaded before the import is timed.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

IMPORTED = {"ours": "klppo_compile.loss", "torchrl": "torchrl.objectives"}


def spent() -> float:
    """Processor seconds of this process and of the compilers it has waited for."""
    return sum(os.times()[:4])


def main(arguments: list[str]) -> int:
    """Import, build, call once, call again; write the seconds of each."""
    out, provider, text = arguments
    begin = spent()
    import_module(IMPORTED[provider])
    imported = spent()
    import warnings

    import torch

    warnings.simplefilter("ignore")
    from klppo_compile.compiling import compile_loss
    from klppo_compile.perf.exact.metrics import understood
    from klppo_compile.perf.providers import our_loss, step_of, torchrl_loss
    from klppo_compile.perf.workloads import problem

    torch.set_num_threads(1)
    case = problem(understood(text))
    ours = provider != "torchrl"
    loss = compile_loss(our_loss(case)) if ours else torch.compile(torchrl_loss(case))
    step = step_of(loss, case)
    built = spent()
    step()
    first = spent()
    Path(out).write_text(
        json.dumps({"import": imported - begin, "first call": first - built}), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
