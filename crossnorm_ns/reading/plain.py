"""Telling files that may be opened from what only looks like one by its name, and from what is too large."""

from __future__ import annotations

import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_plain(path: Path, most: int | None = None) -> None:
    """Refuses what is no plain file, nor a link to one: opening a pipe may wait for ever, and a device has no end.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ValueError: it is something else, or larger.
        OSError: it is not there.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"it is no file, but {_KINDS.get(stat.S_IFMT(state.st_mode), 'something else')}")
    if most is not None and state.st_size > most:
        raise ValueError(f"it has {state.st_size:,} bytes, but at most {most:,} are read")
