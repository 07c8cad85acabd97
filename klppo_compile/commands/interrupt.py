"""Ctrl-C as a request: the first ends the work at its next good moment, the second at once."""

import signal
from types import FrameType, TracebackType
from typing import Self

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, remembers that the user or the system asked the process to stop."""

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
