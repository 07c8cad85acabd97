"""A training run as the user sees it: a live bar on a terminal, a few lines in a log."""

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from klppo_compile.commands.interrupt import StopRequest
from klppo_compile.commands.plain import plain

if TYPE_CHECKING:
    from klppo_compile.training.metrics import MetricsRow
    from klppo_compile.training.settings import TrainSettings
    from klppo_compile.training.train import TrainResult

LOG_LINES = 10


class TrainingProgress:
    """Shows steps, return, KL and beta of one run while entered."""

    def __init__(self, console: Console, settings: "TrainSettings") -> None:
        self.console = console
        self.settings = settings
        self.total = settings.iterations * settings.rollout_size
        self.logged = 0
        start = "compiling the loss" if settings.compile else "first iteration"
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            # In a log the bar would appear once, at its end; `__call__` writes lines there instead.
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(settings.env, total=self.total, news=start)
        if not console.is_terminal:
            console.print(f"{settings.env}: {self.total:,} steps, {start}", highlight=False)

    def __enter__(self) -> Self:
        """Begin to show."""
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        self.progress.stop()

    def __call__(self, row: "MetricsRow") -> None:
        """Show an iteration."""
        news = f"return {row.return_mean:.1f}  KL {row.kl_mean:.4f}  beta {row.beta:.3g}"
        self.progress.update(self.task, completed=row.step, news=news)
        lines = row.step * LOG_LINES // self.total
        if not self.console.is_terminal and lines > self.logged:
            self.logged = lines
            self.console.print(
                f"{self.settings.env}: {row.step:,} of {self.total:,} steps  {news}",
                highlight=False,
                soft_wrap=True,
            )


def gentle_stop() -> StopRequest:
    """The request that Ctrl-C is to a run."""
    return StopRequest("Stopping after this iteration, with a complete run folder.")


def watch(
    settings: "TrainSettings", start: "Callable[..., TrainResult]", stop: StopRequest
) -> "TrainResult":
    """Run `start(report=..., should_stop=...)` behind a progress bar."""
    # On stderr, so that a pipe gets only the result.
    with TrainingProgress(plain(stderr=True), settings) as progress:
        return start(report=progress, should_stop=stop)


def free_folder(parent: Path, settings: "TrainSettings") -> Path:
    """Make `parent/ENV-seedN`, numbered when that is taken, if by another process just now."""
    from klppo_compile.training.files import choosing, require_text

    require_text(parent)
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', settings.env)}-seed{settings.seed}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    paths = (parent / name for name in names)
    with choosing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        return next(path for path in paths if _make(path))


def _make(path: Path) -> bool:
    """Make a folder; False if there is something by that name."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
