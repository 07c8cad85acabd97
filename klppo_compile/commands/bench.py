"""`klppo bench`: measure the loss, compare, tell a regression from noise, draw the page."""

from importlib import import_module

import click

SUBCOMMANDS = {
    "run": ("klppo_compile.commands.bench_run", "run"),
    "compare": ("klppo_compile.commands.bench_run", "compare"),
    "ab": ("klppo_compile.commands.bench_ab", "ab"),
    "calibrate": ("klppo_compile.commands.bench_ab", "calibrate"),
    "report": ("klppo_compile.commands.bench_report", "report"),
    "convert": ("klppo_compile.commands.bench_report", "convert"),
}
"""Each subcommand, the module that holds it and its name there."""


class Bench(click.Group):
    """A group whose subcommands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names in the table's order."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one subcommand."""
        if name not in SUBCOMMANDS:
            return None
        module, attribute = SUBCOMMANDS[name]
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=Bench)
def command() -> None:
    """Measure the loss, and tell a real regression from noise."""
