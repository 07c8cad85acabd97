"""Ctrl-C: a request while work goes on, the end of the process while libraries load."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType, TracebackType
from typing import Self

import click

from klppo_compile.exit_codes import ExitCode, as_object

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def loading(*later: str) -> Iterator[None]:
    """Let Ctrl-C end the process at once while libraries are imported, where all is saved.

    Some swallow a KeyboardInterrupt there, and others are left half imported or abort. `later`
    names those that are imported deep inside the work, to be imported here too.
    """
    ours = threading.current_thread() is threading.main_thread()
    # A handler of the caller's own is the caller's choice.
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
        for name in later:
            # Whoever needs one that is missing says so.
            with suppress(ImportError):
                import_module(name)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal's signature
    """End the process as an interrupted command does, without an exception."""
    context, text = click.get_current_context(silent=True), "Interrupted."
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
        if context is not None and context.params.get("as_json"):
            error = as_object(ExitCode.INTERRUPTED, text)
            os.write(1, f"{json.dumps(error, indent=2)}\n".encode())
    os._exit(ExitCode.INTERRUPTED)


class StopRequest:
    """While entered, remembers that the user or the system asked the process to stop.

    The first Ctrl-C ends the work at its next good moment, the second at once.
    """

    def __init__(self, notice: str) -> None:
        self.notice = notice
        self.requested = False

    def __call__(self) -> bool:
        """Return whether the work is to stop."""
        return self.requested

    def __enter__(self) -> Self:
        """Take over the signals."""
        self._previous = [signal.signal(number, self._receive) for number in SIGNALS]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in zip(SIGNALS, self._previous, strict=True):
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        click.echo(f"\n{self.notice} Press Ctrl-C again to quit at once.", err=True)
