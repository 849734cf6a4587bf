"""What tests of wrong options and configurations share: the types of fields, and how a command refuses."""

import contextlib
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest


def split(hint: Any) -> tuple[tuple[Any, ...], Any]:
    """Notes of a type, and the type without them and without None."""
    notes: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            notes += tuple(more)
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            parts = [part for part in typing.get_args(hint) if part is not type(None)]
            if len(parts) > 1:
                return notes, hint
            hint = parts[0]
        else:
            return notes, hint


@contextlib.contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Within it, so much may be spent, or the test fails."""

    def fail(*_: object) -> None:
        pytest.fail(f"more than {seconds} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refusal(
    run: Callable[[], object], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any, quiet: bool = True
) -> str:
    """The line with which a command ends within ten seconds of processor time; it writes nothing, and prints no more.

    Unless it is not `quiet`, and prints what it was given.
    """
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as end, processor_time(10):
        run()
    out, error = capsys.readouterr()
    assert end.value.code == 2 and not (quiet and out), (words, out, error)
    assert error.startswith("error: ") and error.count("\n") == 1 and error[:-1].isprintable(), (words, error)
    assert sorted(Path().rglob("*")) == before, words
    return error
