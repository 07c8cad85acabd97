"""Training from the first step to the last file: `train` begins a run, `resume` continues one."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from klppo_compile.compiler import require_compiler
from klppo_compile.exit_codes import BadInputError, CannotError
from klppo_compile.training.environments import make_environments, opened, seeds_for
from klppo_compile.training.evaluation import EPISODES, Evaluation, ShouldStop, evaluate, never
from klppo_compile.training.files import held
from klppo_compile.training.metrics import MetricsRow, write_metrics
from klppo_compile.training.recorder import Recorder
from klppo_compile.training.rollout import Collector
from klppo_compile.training.run_folder import RunConfig, RunFolder
from klppo_compile.training.session import Session
from klppo_compile.training.settings import TrainSettings
from klppo_compile.training.spaces import (
    describe_actions,
    describe_observations,
    require_moderate_sizes,
)

SAVE_EVERY_SECONDS = 30.0

Report = Callable[[MetricsRow], None]


def silent(row: MetricsRow) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    folder: Path
    finished: bool
    """False when it was asked to stop; the folder is complete all the same."""
    before: Evaluation
    """Of the untrained policy."""
    after: Evaluation | None
    """Of the last policy; None when stopped before it, fewer episodes when stopped in it."""
    last: MetricsRow


def train(
    settings: TrainSettings,
    folder: str | Path | Callable[[], Path],
    *,
    report: Report = silent,
    should_stop: ShouldStop = never,
) -> TrainResult:
    """Train from scratch into a new run folder, or in one that a function makes.

    `report` is called after every iteration; then `should_stop` is asked, and a run that is to
    stop ends there with a complete folder. It is asked in evaluations too, to cut them short.
    Raises BadInputError before anything is written when the environment or the folder can't be
    used, or another process is training in it.
    """
    with _own_torch_state():
        torch.manual_seed(settings.seed)
        config = describe(settings)
        _require_compiler(settings)
        session = Session(config)
        run_folder = RunFolder(folder() if callable(folder) else Path(folder))
        recorder = Recorder(session, run_folder)
        with run_folder.created(config), _as_last_saved(run_folder):
            recorder.begin(_evaluate(session, should_stop))
            return _run(recorder, report, should_stop)


def resume(
    folder: str | Path,
    *,
    steps: int | None = None,
    compile_graph: bool | None = None,
    report: Report = silent,
    should_stop: ShouldStop = never,
) -> TrainResult:
    """Continue a run in its folder, with its settings but for the two that are given.

    Environments can't be saved: episodes start afresh, from seeds that belong to the iteration.
    """
    run_folder = RunFolder(Path(folder))
    with held(run_folder.path), _own_torch_state():
        config = _continued(run_folder, steps, compile_graph)
        recorder = Recorder(Session(config), run_folder)
        recorder.load()
        if recorder.session.iteration >= config.settings.iterations:
            raise BadInputError(
                f"steps must be more than the run already has; got {config.settings.steps} against"
                f" {recorder.rows[-1].step}. Give a larger --steps."
            )
        with _as_last_saved(run_folder):
            run_folder.sweep()
            run_folder.write_config(config)
            write_metrics(run_folder.metrics, recorder.rows)
            return _run(recorder, report, should_stop)


def _continued(run_folder: RunFolder, steps: int | None, compile_graph: bool | None) -> RunConfig:
    """Read a run's config, change the settings that are given, and refuse what can't go on."""
    config = run_folder.read_config()
    settings = config.settings
    settings = replace(
        settings,
        steps=settings.steps if steps is None else steps,
        compile=settings.compile if compile_graph is None else compile_graph,
    )
    config = replace(config, settings=settings)
    if describe(settings) != config:
        raise BadInputError(
            f"a run continues in the environment it began in; {settings.env} now has other"
            f" spaces than {run_folder.config} says. Restore the environment's version."
        )
    _require_compiler(settings)
    return config


def _run(recorder: Recorder, report: Report, should_stop: ShouldStop) -> TrainResult:
    """Iterate to the end, or until asked to stop, and leave a complete folder."""
    session = recorder.session
    settings = session.config.settings
    saved = time.perf_counter()
    began = saved - session.seconds
    with opened(settings.env, settings.num_envs) as environments:
        seeds = seeds_for(settings.seed, 1 + session.iteration, settings.num_envs)
        collector = Collector(environments, session.agent, session.config.action, seeds)
        while True:
            rollout, row = session.iterate(collector)
            session.seconds = time.perf_counter() - began
            row = replace(row, seconds=session.seconds)
            recorder.add(row)
            report(row)
            finished = session.iteration == settings.iterations
            if finished or should_stop():
                break
            if session.iteration == 1 or time.perf_counter() - saved > SAVE_EVERY_SECONDS:
                recorder.save(rollout)
                saved = time.perf_counter()
        # Before the environments are closed and the evaluation, which may be interrupted.
        recorder.save(rollout)
    after = _evaluate(session, should_stop) if finished else None
    if after is not None:
        recorder.conclude(after)
        finished = after.episodes == EPISODES
    return TrainResult(recorder.folder.path, finished, recorder.before, after, row)


def describe(settings: TrainSettings) -> RunConfig:
    """Look at the environment's spaces, and refuse those that can't be trained on."""
    with closing(make_environments(settings.env, 1)) as environments:
        observation = describe_observations(environments.single_observation_space)
        action = describe_actions(environments.single_action_space)
    require_moderate_sizes(observation, action)
    return RunConfig(settings, observation, action)


def _require_compiler(settings: TrainSettings) -> None:
    if settings.compile:
        require_compiler(", or train without compiling: --no-compile")


def _evaluate(session: Session, should_stop: ShouldStop) -> Evaluation:
    settings, action = session.config.settings, session.config.action
    return evaluate(session.agent, action, settings.env, settings.seed, should_stop=should_stop)


@contextmanager
def _as_last_saved(folder: RunFolder) -> Iterator[None]:
    """Leave a run that fails as it was last saved, or nothing of it, and say which."""
    try:
        yield
    except BaseException as error:
        left = (
            f"What was saved before is in {folder.path}; --resume goes on from there, to more"
            " --steps if it has made all of them."
        )
        if not folder.resume.exists():
            folder.discard()
            left = "Nothing is left of the run, which had not been saved before."
        if isinstance(error, CannotError):
            raise CannotError(f"{error} {left}") from error
        raise


@contextmanager
def _own_torch_state() -> Iterator[None]:
    """Leave the caller's random state and thread count as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        # Networks this small lose more to waking a second thread than it computes.
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
