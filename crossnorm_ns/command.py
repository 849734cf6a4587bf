"""How all commands of the project end when they are given what they cannot use."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from crossnorm_ns.limits import LimitError, check_options

Options = TypeVar("Options")

LONGEST_LINE = 1000
"""Characters of an error that are shown: files may hold names of any length."""


@contextlib.contextmanager
def errors_in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with one line on standard error and status 2 where such an error is raised within it.

    Or where memory is not enough for what it is asked to do.
    """
    try:
        yield
    except kinds as error:
        print_error(error)
        raise SystemExit(2) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print_error(f"There is not enough memory ({str(error).partition(': ')[2] or error}).")
        raise SystemExit(2) from error


def _is_lack_of_memory(error: Exception) -> bool:
    """torch has an exception of its own for GPUs alone."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def read_options(read: Callable[[], Options]) -> Options:
    """The options in a command line; one that is wrong ends the program with one line and status 2.

    Args:
        read: has tyro read it, which would draw a box about it. A dataclass that it returns is checked, see `limits`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of found files need not be UTF-8
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            options = read()
    except SystemExit as end:
        if end.code == 2:
            print_error(_first_paragraph(drawn.getvalue()))
        raise
    sys.stderr.write(drawn.getvalue())
    with errors_in_one_line(LimitError):
        check_options(options)
    return options


def _first_paragraph(box: str) -> str:
    """The text below a box's title, up to the next rule: what is wrong, without the help that follows."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│| ")
        if not set(text) <= set("─-"):
            lines.append(text)
        elif lines:
            break
    return " ".join(lines)


def print_error(error: Exception | str) -> None:
    """Prints an error as one line on standard error, whatever the names in it consist of."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(error)).split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    text = f"error: {line or type(error).__name__}\n"
    print(text, end="", file=sys.stderr)  # in one write, or lines of several processes mix
