"""`klppo demo`: the newcomer's one command."""

from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status
from rich.table import Table

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.commands.progress import free_folder, gentle_stop, watch
from klppo_compile.exit_codes import ExitCode
from klppo_compile.training.settings import TrainSettings

ENVIRONMENTS = ("CartPole-v1", "InvertedPendulum-v5")
STEPS = {field.name: field.default for field in fields(TrainSettings)}["steps"]


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of both runs.")
@click.option(
    "--steps", type=int, default=STEPS, show_default=True, help="Environment steps of each run."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that gets one run folder per environment.",
)
@click.option("--no-compile", is_flag=True, help="Run the loss eagerly: slower, the same results.")
def command(seed: int, steps: int, out: Path, no_compile: bool) -> ExitCode:
    """Train on CartPole-v1 and InvertedPendulum-v5 and show what came of it.

    Then export, check, evaluate and gate the policies with ONNX Runtime, where it is installed.
    Takes two minutes in all on two cores.
    """
    with loading():
        from klppo_compile.training.train import describe, train

    runs = [
        TrainSettings(env=env, seed=seed, steps=steps, compile=not no_compile)
        for env in ENVIRONMENTS
    ]
    # All of them before the first run: the last may need what is not installed.
    for settings in runs:
        describe(settings)
    table = Table(title="Mean return of 20 evaluation episodes")
    add_columns(table, "environment")
    add_columns(table, "before", "after", "steps", "seconds", justify="right")
    folders = []
    # Over all runs: one that was asked to stop in its last iteration has finished all the same.
    with gentle_stop() as stop:
        for settings in runs:
            result = watch(
                settings, partial(train, settings, partial(free_folder, out, settings)), stop
            )
            folders.append(result.folder)
            after = (
                f"{result.after.mean:.1f} ± {result.after.std:.1f}" if result.after else "stopped"
            )
            before = f"{result.before.mean:.1f} ± {result.before.std:.1f}"
            table.add_row(
                settings.env, before, after, f"{result.last.step:,}", f"{result.last.seconds:.0f}"
            )
            if stop.requested:
                break
    plain().print(table)
    click.echo("Early, best and last policy, the last rollout, metrics.csv and curves.png are in")
    for folder in folders:
        click.echo(f"  {folder}")
    if stop.requested:
        return ExitCode.INTERRUPTED
    return ExitCode.GOOD if _deploy(folders) else ExitCode.FAILED


def _deploy(folders: list[Path]) -> bool:
    """Take each run's best policy to ONNX Runtime, print what it says; True if all gates pass."""
    if find_spec("onnxscript") is None or find_spec("onnxruntime") is None:
        click.echo("Not exported: run pip install 'klppo-compile[export]' for that part.")
        return True
    with loading():
        from klppo_compile.export.deployment import deploy

    table = Table(title="Exported, checked, evaluated with ONNX Runtime")
    add_columns(table, "best.onnx of")
    columns = [("checked to", "rows", "KL to recorder", "ESS", "gate: KL to early")]
    passed, console = True, plain(stderr=True)
    with console.status("exporting") as status:
        for folder in folders:
            done = deploy(folder, lambda text: _say(console, status, text))
            assert done.exported.parity is not None
            verdict = done.verdict
            passed &= verdict.passed
            add_columns(table, folder.name, justify="right")
            columns.append(
                (
                    f"{done.exported.parity.needed:.1e}",
                    f"{done.rows:,}",
                    f"{done.kl:.2g}",
                    f"{done.ess:.1%}",
                    f"{verdict.found:.2g} <= {verdict.limit:g} {verdict.word}",
                )
            )
    for line in zip(*columns, strict=True):
        table.add_row(*line)
    plain().print(table)
    click.echo(
        "Checked to: largest difference of any output from eager PyTorch (1e-5 is allowed).\n"
        "KL: nats per row, from the policy that recorded the last rollout, and from early.onnx.\n"
        "ESS: effective sample size."
    )
    return passed


def _say(console: Console, status: Status, text: str) -> None:
    """On a terminal in the place of the last, in a log as a line."""
    status.update(text)
    if not console.is_terminal:
        console.print(text, highlight=False, soft_wrap=True)
