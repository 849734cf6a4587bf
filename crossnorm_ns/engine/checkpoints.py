"""Atomic writing of checkpoints."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a kill at any moment leaves the old files or the complete new one.

    The content goes to a temporary file beside `path`, reaches the disk, and is renamed into place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def prune_others(path: Path) -> None:
    """Removes the other checkpoints beside `path`, and what a killed save may have left."""
    for other in [*path.parent.glob("*.ckpt"), *path.parent.glob(".*.ckpt.*.tmp")]:
        if other != path:
            other.unlink(missing_ok=True)
