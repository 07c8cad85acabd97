"""From a trained run to a file on inference hardware, and whether it may go there: all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from klppo_compile.export.comparison import compare
from klppo_compile.export.data import open_rollout
from klppo_compile.export.evaluation import evaluate
from klppo_compile.export.exporting import Exported, export_loss
from klppo_compile.export.gates import Verdict, judge
from klppo_compile.export.report import report
from klppo_compile.export.runtime import open_file
from klppo_compile.export.target import resolve

LARGEST_KL = 5.0
"""Nats that a whole training may move a policy. What a pipeline lets one update do is far less."""


@dataclass(frozen=True)
class Deployment:
    """What became of a run.

    Attributes:
        exported: the best checkpoint's loss, checked against eager PyTorch.
        rows: of the last rollout, which ONNX Runtime evaluated.
        kl: mean KL(recorded policy || exported), in nats.
        ess: effective sample size as a share of the rows.
        verdict: on the mean KL(early checkpoint || exported).
    """

    exported: Exported
    rows: int
    kl: float
    ess: float
    verdict: Verdict


def deploy(folder: Path, say: Callable[[str], None] = lambda text: None) -> Deployment:  # noqa: ARG005
    """Export a run's best and early checkpoints, and judge the best by its last rollout.

    `say` is told what is being done.
    """
    done = {}
    for which in ("best", "early"):
        say(f"exporting and checking {which}.onnx of {folder.name}")
        target = resolve(str(folder), which)
        assert target.example is not None
        done[which] = export_loss(target.loss, target.example, folder / f"{which}.onnx")
    say(f"evaluating {folder.name}")
    best, early = (open_file(done[which].path, "cpu") for which in ("best", "early"))
    with open_rollout(folder / "rollout") as rollout:
        numbers = report(evaluate(best, rollout))
        moved = report(compare(early, best, rollout))
    (verdict,) = judge(moved, {"max-kl": LARGEST_KL})
    return Deployment(
        done["best"], numbers["rows"], numbers["kl_mean"], numbers["ess_fraction"], verdict
    )
