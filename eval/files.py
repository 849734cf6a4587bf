"""Writing results."""

from pathlib import Path

from crossnorm_ns.files import atomic_file


def write_atomically(path: Path, contents: bytes) -> None:
    """Writes a file beside its place and moves it there once it is on disk; makes the folder when it is missing."""
    with atomic_file(path) as file:
        file.write(contents)
