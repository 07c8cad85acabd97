"""`klppo demo`: the newcomer's one command."""

from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from klppo_compile.commands.progress import free_folder, watch
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
    from klppo_compile.training.train import train

    table = Table("environment", title="Mean return of 20 evaluation episodes")
    for column in ("before", "after", "steps", "seconds"):
        table.add_column(column, justify="right")
    folders = []
    for env in ENVIRONMENTS:
        settings = TrainSettings(env=env, seed=seed, steps=steps, compile=not no_compile)
        result = watch(settings, partial(train, settings, free_folder(out, settings)))
        folders.append(result.folder)
        after = f"{result.after.mean:.1f} ± {result.after.std:.1f}" if result.after else "stopped"
        before = f"{result.before.mean:.1f} ± {result.before.std:.1f}"
        table.add_row(env, before, after, f"{result.last.step:,}", f"{result.last.seconds:.0f}")
        if not result.finished:
            break
    Console().print(table)
    if result.finished:
        _deploy(folders)
    click.echo("Early, best and last policy, the last rollout, metrics.csv and curves.png are in")
    for folder in folders:
        click.echo(f"  {folder}")
    return ExitCode.GOOD if result.finished else ExitCode.INTERRUPTED


def _deploy(folders: list[Path]) -> None:
    """Take each run's best policy to ONNX Runtime and print what it says of it."""
    if find_spec("onnxscript") is None or find_spec("onnxruntime") is None:
        click.echo("Not exported: run pip install 'klppo-compile[export]' for that part.")
        return
    from klppo_compile.export.deployment import deploy

    table = Table("best.onnx of", title="Exported, checked, evaluated with ONNX Runtime")
    for column in ("error", "rows", "KL to recorded", "ESS", "KL to early, gate"):
        table.add_column(column, justify="right")
    for folder in folders:
        done = deploy(folder)
        assert done.exported.parity is not None
        verdict = done.verdict
        word = "passed" if verdict.passed else "FAILED"
        table.add_row(
            folder.name,
            f"{done.exported.parity.needed:.1e}",
            f"{done.rows:,}",
            f"{done.kl:.2g}",
            f"{done.ess:.1%}",
            f"{verdict.found:.2g} <= {verdict.limit:g} {word}",
        )
    Console().print(table)
