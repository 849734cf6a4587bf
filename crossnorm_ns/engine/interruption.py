"""Signals that ask a training to end, noted until it is ready to."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class InterruptedTraining(Exception):
    """Raised between two steps, after a signal."""


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within it, the first SIGINT or SIGTERM is noted in the list that it yields; a second one acts as ever.

    Other threads than the main one cannot receive signals: there nothing is noted.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
