"""Signals that ask a program to end: noted until it is ready to, or raised at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class InterruptedTraining(Exception):
    """What SIGINT or SIGTERM have ended, in a state from which it can go on.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(number, message)
        self.number, self._message = number, message

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{self._message}"

    @property
    def status(self) -> int:
        """Exit code of a program that ends so."""
        return 128 + self.number


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within it, the first SIGINT or SIGTERM is noted in the list that it yields; a second one acts as ever.

    A signal that is ignored (SIGINT is by what nohup or a shell's background job started) stays so. Other threads than
    the main one cannot receive signals: there nothing is noted.
    """
    noted: list[int] = []
    with _first_signal(noted.append):
        yield noted


@contextlib.contextmanager
def raised_signals(message: str = "") -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM raises `InterruptedTraining`, where `noted_signals` would note it."""

    def interrupt(number: int) -> None:
        raise InterruptedTraining(number, message)

    with _first_signal(interrupt):
        yield


@contextlib.contextmanager
def _first_signal(act: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def handle(number: int, _: FrameType | None) -> None:
        restore()
        act(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
