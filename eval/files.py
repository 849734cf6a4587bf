"""Writing results."""

import os
from pathlib import Path

from crossnorm_ns.files import atomic_file
from eval.errors import EvaluationError


def check_target(path: Path) -> None:
    """Finds out before the work, not after it, that a result cannot be written; makes nothing yet.

    Raises:
        EvaluationError: it cannot.
    """
    if path.is_dir():
        raise EvaluationError(f"{path} is a folder: give a file name for the result.")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Finds out whether files can be written in a folder, which may not be there yet.

    Raises:
        EvaluationError: they cannot.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        raise EvaluationError(f"{folder}: this folder cannot be made, since {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EvaluationError(f"{folder}: no files can be written in {there}.")


def write_atomically(path: Path, contents: bytes) -> None:
    """Writes a file beside its place and moves it there once it is on disk; makes the folder when it is missing."""
    with atomic_file(path) as file:
        file.write(contents)
