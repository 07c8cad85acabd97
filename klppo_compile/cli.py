"""`klppo`: the group, the exit codes, and what an error looks like.

Commands are loaded when they are named, and the rooms inside them when they run: `klppo --help`
needs neither torch nor Gymnasium. With `--json`, standard output is one JSON object, whatever came
of the command.
"""

import errno
import json
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper

import click

from klppo_compile import __version__
from klppo_compile.exit_codes import ExitCode, FailedError, RefusalError, as_object

COMMANDS = {
    "demo": "klppo_compile.commands.demo",
    "train": "klppo_compile.commands.train",
    "export": "klppo_compile.commands.export",
    "check": "klppo_compile.commands.check",
    "evaluate": "klppo_compile.commands.evaluate",
    "compare": "klppo_compile.commands.compare",
    "merge": "klppo_compile.commands.merge",
    "inspect": "klppo_compile.commands.inspect",
    "doctor": "klppo_compile.commands.doctor",
    "bench": "klppo_compile.commands.bench",
}
"""Each command and the module that holds it, as `command`."""

EXTRAS = {
    "torch": "",
    "tensordict": "",
    "gymnasium": "train",
    "mujoco": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxscript": "export",
    "torchrl": "perf",
    "scipy": "perf",
}
"""Packages that only some commands need, and the extra that brings them; "" is no extra."""


UNREACHABLE = {errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EPERM, errno.EROFS}
"""Errors of a path that pathlib raises where it is asked whether the path is a file."""

FULL = {errno.EDQUOT, errno.EIO, errno.ENOSPC}
"""Errors of standard output, or of a file, that takes no more."""


class Rooms(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one command."""
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[name]).command
        return command


@click.group(
    cls=Rooms,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit codes: 0 good; 1 a check, gate or comparison failed; 2 usage or bad input; 3 can't be"
        " done or told; 4 this machine lacks something; 130 interrupted; 141 the output was closed."
    ),
)
@click.version_option(__version__, prog_name="klppo")
def klppo() -> None:
    """PPO with an adaptive KL penalty, as one compiled graph."""


def run(arguments: Sequence[str], group: click.Command = klppo, program: str = "klppo") -> int:
    """Run one command of a group and return its exit code; errors are printed, never raised."""
    try:
        code = group.main(list(arguments), prog_name=program, standalone_mode=False)
        return int(code or ExitCode.GOOD)
    except SystemExit as end:
        # click and Rich leave at a closed pipe, with the code of a failed check.
        if end.code != ExitCode.FAILED:
            raise
        return ExitCode.UNREAD
    except Exception as error:  # noqa: BLE001  the last line: a crash must not look like a failed check
        code, text = _explain(error, program)
        # Read here, for an error of usage has no parsed options.
        return _print_json(error, code, text) if "--json" in arguments else code


def _explain(error: Exception, program: str) -> tuple[ExitCode, str]:
    """Print an error as the user should see it; return its exit code and its text."""
    code, text = _meaning(error)
    known, text = bool(text), text or f"{program} itself broke; please report the lines above."
    with suppress(OSError):  # where nothing can be said, the code still tells
        if isinstance(error, click.ClickException):
            error.show()
        elif isinstance(error, click.Abort):
            click.echo(text, err=True)
        else:
            if not known:
                traceback.print_exception(error)
            click.echo(f"Error: {text}", err=True)
    return code, text


def _meaning(error: Exception) -> tuple[ExitCode, str]:
    """An error's exit code, and its text if it is one that the user can act on."""
    if isinstance(error, click.ClickException):
        return ExitCode.BAD_INPUT, error.format_message()
    if isinstance(error, click.Abort):
        return ExitCode.INTERRUPTED, "Interrupted."
    if isinstance(error, RefusalError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        return _meaning_of_system(error)
    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if missing in EXTRAS:
        extra = f"[{EXTRAS[missing]}]" if EXTRAS[missing] else ""
        return ExitCode.MISSING, (
            f"this command needs {missing}, which is not installed."
            f" Run pip install 'klppo-compile{extra}'."
        )
    return ExitCode.CANNOT, ""


def _meaning_of_system(error: OSError) -> tuple[ExitCode, str]:
    if error.errno in FULL:
        return ExitCode.CANNOT, f"what is written must be taken; {error}. Make room where it goes."
    if error.errno in UNREACHABLE and error.filename:
        why = f"{error.filename}: {error.strerror}"
        return ExitCode.BAD_INPUT, f"a path must be within reach; {why}. Name another."
    return ExitCode.CANNOT, ""


def _print_json(error: Exception, code: ExitCode, text: str) -> ExitCode:
    """Print an error as an object, beside the report of a check that failed; return the exit code.

    Where the object can't be printed, that is the error: a traceback would end with 1.
    """
    found = error.report if isinstance(error, FailedError) else {}
    try:
        click.echo(json.dumps(as_object(code, text) | found, indent=2, allow_nan=False))
    except BrokenPipeError:
        return ExitCode.UNREAD
    except OSError as problem:
        if not isinstance(error, OSError):  # which has said so
            with suppress(OSError):
                click.echo(f"Error: standard output must take the JSON; {problem}.", err=True)
        return ExitCode.CANNOT
    return code


def print_every_letter() -> None:
    """Write out what standard output has no letter for, as standard error does."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run `klppo` on the process's own arguments."""
    print_every_letter()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
