"""The one table of exit codes of `klppo`, and the refusals that carry them.

A refusal is an error that the user can act on: its text says the rule, what was received and the
fix, and the command line prints it without a traceback. Anything else that escapes is a defect.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What the `klppo` command returns to the shell."""

    GOOD = 0
    """All done."""
    FAILED = 1
    """A check, gate or comparison failed."""
    BAD_INPUT = 2
    """Usage or bad input; nothing was changed."""
    CANNOT = 3
    """It can't be done or told, or the program itself broke: never read this as a verdict."""
    MISSING = 4
    """This machine lacks something; the message says what to install."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C (128 + SIGINT, as shells have it); what was written is usable."""
    UNREAD = 141
    """Whoever read the output closed it, as `| head` does (128 + SIGPIPE, as shells have it)."""


def as_object(code: ExitCode, text: str) -> dict[str, Any]:
    """Return an error as `--json` prints it."""
    return {"error": {"kind": code.name.lower(), "message": text, "exit_code": int(code)}}


class RefusalError(Exception):
    """An error for the user: one clear line and an exit code."""

    exit_code = ExitCode.CANNOT


class BadInputError(RefusalError, ValueError):
    """An argument, a file or an environment that can't be taken as it is."""

    exit_code = ExitCode.BAD_INPUT


class CannotError(RefusalError, RuntimeError):
    """The input is fine, but the work can't be done or no verdict can be given."""

    exit_code = ExitCode.CANNOT


class FailedError(RefusalError, RuntimeError):
    """A check, a lint or a gate that was asked for and did not pass; nothing was written.

    `report` is what was found, as `--json` prints it beside the error.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, text: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.report = dict(report or {})


class MissingRequirementError(RefusalError, ImportError):
    """Something that must be installed first."""

    exit_code = ExitCode.MISSING
