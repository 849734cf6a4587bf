"""Atomic writing of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from crossnorm_ns.engine.files import atomic_file


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a kill at any moment leaves the old files or the complete new one."""
    with atomic_file(path) as file:
        torch.save(content, file)


def prune_others(path: Path) -> None:
    """Removes the other checkpoints beside `path`, and what a killed save may have left."""
    for other in [*path.parent.glob("*.ckpt"), *path.parent.glob(".*.ckpt.*.tmp")]:
        if other != path:
            other.unlink(missing_ok=True)
