"""Telling files from what only looks like one by its name."""

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


def check_plain(path: Path) -> None:
    """Refuses what is no plain file, nor a link to one: opening a pipe may wait for ever, and a device has no end.

    Raises:
        ValueError: it is something else.
        OSError: it is not there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"it is no file, but {_KINDS.get(stat.S_IFMT(mode), 'something else')}")
