"""Writing results."""

import os
from pathlib import Path

from crossnorm_ns.files import atomic_file
from eval.errors import EvaluationError


def check_target(path: Path) -> None:
    """Makes a result's folder, and finds out before the work, not after it, that the result cannot be written there.

    Raises:
        EvaluationError: it cannot.
    """
    if path.is_dir():
        raise EvaluationError(f"{path} is a folder: give a file name for the result.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{path}: its folder cannot be made ({error}).") from error
    if not os.access(path.parent, os.W_OK):
        raise EvaluationError(f"{path}: no files can be written in {path.parent.absolute()}.")


def write_atomically(path: Path, contents: bytes) -> None:
    """Writes a file beside its place and moves it there once it is on disk; makes the folder when it is missing."""
    with atomic_file(path) as file:
        file.write(contents)
