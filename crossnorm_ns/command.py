"""How all commands of the project end when they are given what they cannot use."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def errors_in_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with one line on standard error and status 2 where such an error is raised within it."""
    try:
        yield
    except kinds as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
