"""Stop signals: SIGINT (Ctrl-C) and SIGTERM (batch systems) end a run alike, at a point where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["StopRequest", "Terminated", "exit_code", "stop_between_steps", "stop_by_exception"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], None]


class Terminated(KeyboardInterrupt):
    """SIGTERM: what handles Ctrl-C handles it, too."""


def _error(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def exit_code(error: KeyboardInterrupt) -> int:
    """Exit code of a process that was stopped: 128 and the signal's number, as in a shell."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


@contextmanager
def _handled_by(handler: Handler) -> Iterator[Callable[[], None]]:
    """Handle the stop signals, except ignored ones (nohup); yields what restores the handlers of before."""
    before = {}
    # Only the main thread may set handlers. A handler of None is not Python's and could not be restored.
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    for number in before:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()


@contextmanager
def stop_by_exception() -> Iterator[None]:
    """The first stop signal raises KeyboardInterrupt or :class:`Terminated` where the program is.

    A second one would break off the clean-up that the first began, and is only answered by a line on standard error.
    The third ends the process at once.
    """
    count = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise _error(number)
        if count > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        os.write(2, b"\nstopping; once more ends it at once\n")  # print may be what was interrupted

    with _handled_by(handle):
        yield


@dataclass
class StopRequest:
    """Whether a stop signal has come.

    Attributes:
        number: The signal's number; None as long as there was none.
    """

    number: int | None = None

    def error(self) -> KeyboardInterrupt:
        """The exception to raise when all is saved."""
        assert self.number is not None
        return _error(self.number)


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """The first stop signal is only noted: the caller looks between two steps, saves its state and raises the error.

    The second signal has the handler of before, which does not wait for the step's end.
    """
    request = StopRequest()

    def handle(number: int, _: FrameType | None) -> None:
        request.number = number
        restore()

    with _handled_by(handle) as restore:
        yield request
