"""`klppo doctor`: what this machine can do."""

import json

import click
from rich.table import Table

from klppo_compile.commands.interrupt import loading
from klppo_compile.commands.plain import add_columns, plain
from klppo_compile.exit_codes import ExitCode


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(as_json: bool) -> ExitCode:
    """Print versions, providers and devices, the loss's backend, and what to install for more."""
    with loading():
        from klppo_compile.export.machine import examine

        found = examine()
    if as_json:
        click.echo(
            json.dumps({"facts": found.facts, "problems": found.problems, "more": found.more})
        )
    else:
        table = Table(title="This machine")
        add_columns(table, "what", "here")
        for name, value in found.facts.items():
            table.add_row(name, value)
        plain().print(table)
        for text in found.problems:
            click.echo(f"Problem: {text}")
        for text in found.more:
            click.echo(f"For more: {text}")
    return ExitCode.MISSING if found.problems else ExitCode.GOOD
