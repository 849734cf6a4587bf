"""What all commands of `eval` share: arguments from the command line, and how they end."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from crossnorm_ns.command import errors_in_one_line, read_options
from crossnorm_ns.limits import LimitError
from eval.errors import EvaluationError


def run_command(
    arguments_class: type, main: Callable[[Any], object], prog: str, words: Sequence[str] | None = None
) -> None:
    """Runs a command: bad input ends with one line on standard error and exit code 2.

    Args:
        arguments_class: dataclass of its options.
        main: takes an instance of it.
        prog: what `--help` calls it.
        words: the command line; None takes that of the process.
    """
    arguments = read_options(lambda: tyro.cli(arguments_class, prog=prog, args=words))
    # what nerfstudio does to torch is nothing that the user could mend
    warnings.filterwarnings("ignore", module=r"(nerfstudio|torch)\.")
    from crossnorm_ns.data.errors import DataError
    from crossnorm_ns.jobs import JobError

    with errors_in_one_line(EvaluationError, DataError, LimitError, JobError, OSError), _no_answers():
        main(arguments)


@contextlib.contextmanager
def _no_answers() -> Iterator[None]:
    """Within it, standard input is at its end: nerfstudio asks about some data, and would wait for an answer."""
    before = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before
