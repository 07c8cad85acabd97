"""What a run leaves in its folder while it goes on, so that it can stop at any moment."""

import sys
from dataclasses import asdict

from tensordict import TensorDict
from torch import Tensor

from klppo_compile.exit_codes import BadInputError
from klppo_compile.training.curves import draw_curves
from klppo_compile.training.evaluation import NOTHING, Evaluation
from klppo_compile.training.files import read_json
from klppo_compile.training.metrics import (
    MetricsRow,
    append_metrics,
    read_metrics,
    write_metrics,
)
from klppo_compile.training.run_folder import RunFolder
from klppo_compile.training.session import Session

EARLY_SHARE = 0.1
"""`early.safetensors` is the policy after this share of the run, or after its first iteration."""


class Recorder:
    """Keeps the early and the best state, appends the metrics, and writes the whole folder."""

    before: Evaluation
    """Of the untrained policy; set by `begin` or `load`."""

    def __init__(self, session: Session, folder: RunFolder) -> None:
        self.session = session
        self.folder = folder
        self.rows: list[MetricsRow] = []
        self.early: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}

    def begin(self, before: Evaluation) -> None:
        """Start an empty record of a run whose untrained policy is worth `before`."""
        self.before = before
        write_metrics(self.folder.metrics, [])

    def load(self) -> None:
        """Take over the record of an earlier stretch, and bring the session to its end."""
        if not self.folder.saved():
            raise BadInputError(
                f"a run can be resumed from its first save on; got {self.folder.path}, whose run"
                " has saved nothing. Delete the folder if that run is over, and start it anew."
            )
        self.early = self.folder.read_checkpoint("early", self.session.loss)
        self.best = self.folder.read_checkpoint("best", self.session.loss)
        try:
            before = read_json(self.folder.summary)["before"]
            self.before = NOTHING if before is None else Evaluation(**before)
            for value in (before or {}).values():
                if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
                    raise TypeError(f"numbers expected, got {value!r}")
        except (KeyError, TypeError) as error:
            raise BadInputError(
                f"{self.folder.summary} must be as klppo train wrote it; got {error!r}."
                " Resume an intact copy of the run folder."
            ) from error
        # Last: reading the checkpoints went through the session's own modules.
        self.session.restore(self.folder.resume)
        self.rows = read_metrics(self.folder.metrics, self.session.iteration)
        size = self.session.config.settings.rollout_size
        for row in self.rows:
            if row.step != row.iteration * size:
                raise BadInputError(
                    f"{self.folder.metrics} must fit the config.json beside it, iterations of"
                    f" num_envs * horizon = {size} steps; iteration {row.iteration} is at step"
                    f" {str(row.step)[:20]}. Resume an intact copy of the run folder."
                )

    def add(self, row: MetricsRow) -> None:
        """Record an iteration, and remember its policy if it is the early or the best one."""
        session = self.session
        self.rows.append(row)
        append_metrics(self.folder.metrics, row)
        if not self.early or row.step <= EARLY_SHARE * session.config.settings.steps:
            self.early = session.state()
        # Later wins among equals. Without an ended episode (nan) the latest has to do.
        if not row.return_mean < session.best_return:
            self.best = session.state()
            session.best_return = max(row.return_mean, session.best_return)

    def save(self, rollout: TensorDict) -> None:
        """Write every file anew; the one to resume from comes last."""
        settings = self.session.config.settings
        self.folder.write_rollout(rollout)
        self.folder.write_checkpoint("early", self.early)
        self.folder.write_checkpoint("best", self.best)
        self.folder.write_checkpoint("last", self.session.state())
        title = f"{settings.env}, seed {settings.seed}"
        draw_curves(self.folder.curves, self.rows, title=title, dtarg=settings.dtarg)
        self._write_summary(after=None)
        self.session.save(self.folder.resume)

    def conclude(self, after: Evaluation) -> None:
        """Add to a saved run what its last policy is worth."""
        self._write_summary(after)

    def _write_summary(self, after: Evaluation | None) -> None:
        last = self.rows[-1]
        values = {
            "before": asdict(self.before) if self.before.episodes else None,
            "after": asdict(after) if after and after.episodes else None,
            "steps": last.step,
            "iterations": last.iteration,
            "seconds": last.seconds,
        }
        self.folder.write_summary(values)
