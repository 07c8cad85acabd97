"""`klppo train`: parse, train, say where the files are."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.progress import free_folder, gentle_stop, watch
from klppo_compile.exit_codes import ExitCode
from klppo_compile.training.settings import TrainSettings

if TYPE_CHECKING:
    from klppo_compile.training.train import TrainResult

F = TypeVar("F", bound=Callable[..., Any])
DEFAULTS = {field.name: field.default for field in fields(TrainSettings)}


def setting(flag: str, name: str, text: str) -> Callable[[F], F]:
    """Return the option for one setting, with the setting's own default and type."""
    default: Any = DEFAULTS[name]
    return click.option(
        flag, name, type=type(default), default=default, show_default=True, help=text
    )


@click.command()
@click.option("--env", metavar="NAME", help="Gymnasium id, or module:id; needed without --resume.")
@setting("--seed", "seed", "Seed of networks, actions and environments.")
@setting("--steps", "steps", "Environment steps in all, rounded up to whole rollouts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder, new or empty.  [default: runs/NAME-seedSEED, numbered if taken]",
)
@click.option(
    "--resume",
    "folder",
    metavar="RUN_FOLDER",
    type=click.Path(path_type=Path),
    help="Continue a run in its folder; only --steps and --no-compile may be given with it."
    " Episodes start afresh, so it does not end as a run that was never stopped.",
)
@click.option("--no-compile", is_flag=True, help="Run the loss eagerly: slower, the same results.")
@setting("--num-envs", "num_envs", "Environments stepped side by side.")
@setting("--horizon", "horizon", "Steps of each environment in a rollout.")
@setting("--epochs", "epochs", "Passes over a rollout.")
@setting("--minibatch-size", "minibatch_size", "Rows of an optimiser step.")
@setting("--learning-rate", "learning_rate", "Adam's rate at the start; falls linearly to a tenth.")
@setting("--gamma", "gamma", "Discount of rewards.")
@setting("--lmbda", "lmbda", "Decay of the advantage estimate (GAE).")
@setting("--dtarg", "dtarg", "Target KL between the policies of an iteration, in nats.")
@setting("--entropy-coef", "entropy_coef", "Weight of the entropy bonus.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    env: str | None,
    out: Path | None,
    folder: Path | None,
    no_compile: bool,
    **options: Any,
) -> ExitCode:
    """Train an agent on a Gymnasium environment with the compiled loss.

    Observations must be a Box; actions Discrete, MultiDiscrete, MultiBinary or Box. Ctrl-C leaves
    a complete run folder, which --resume continues.
    """
    if folder is not None:
        return _resume(ctx, folder)
    if env is None:
        raise click.UsageError("Missing option '--env'. Name an environment, such as CartPole-v1.")
    settings = TrainSettings(env=env, compile=not no_compile, **options)
    with loading():
        from klppo_compile.training.train import train

    _find_modules_here()
    start = partial(train, settings, out or partial(free_folder, Path("runs"), settings))
    with gentle_stop() as stop:
        result = watch(settings, start, stop)
    return _conclude(settings, result)


def _resume(ctx: click.Context, folder: Path) -> ExitCode:
    given = {
        name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    for name in sorted(given - {"folder", "steps", "no_compile"}):
        flag = "--" + name.replace("_", "-")
        raise click.UsageError(
            f"{flag} can't be given with --resume, which takes it from the run's config.json."
            " Leave it out, or start a new run."
        )
    with loading():
        from klppo_compile.training.run_folder import RunFolder
        from klppo_compile.training.train import resume

    _find_modules_here()
    settings = RunFolder(folder).read_config().settings
    settings = replace(
        settings,
        steps=ctx.params["steps"] if "steps" in given else settings.steps,
        compile=settings.compile and not ctx.params["no_compile"],
    )
    start = partial(resume, folder, steps=settings.steps, compile_graph=settings.compile)
    with gentle_stop() as stop:
        result = watch(settings, start, stop)
    return _conclude(settings, result)


def _find_modules_here() -> None:
    """As `python -m` does, so that an environment's module in the current folder is found."""
    if os.getcwd() not in sys.path:  # noqa: PTH109  sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109


def _conclude(settings: TrainSettings, result: "TrainResult") -> ExitCode:
    """Print what came of a run, and where it is."""
    if result.after is None:
        click.echo(f"{settings.env}: stopped after {result.last.step:,} steps.")
        click.echo(f"Continue with: klppo train --resume {shlex.quote(str(result.folder))}")
    else:
        click.echo(
            f"{settings.env}: mean return {result.before.mean:.1f} before, {result.after.mean:.1f}"
            f" after {result.last.step:,} steps in {result.last.seconds:.0f} s"
            f" ({result.after.episodes} evaluation episodes)"
        )
    click.echo(f"Run folder: {result.folder}")
    return ExitCode.GOOD if result.finished else ExitCode.INTERRUPTED
