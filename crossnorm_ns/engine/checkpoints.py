"""Atomic writing of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossnorm_ns.files import atomic_file


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a kill at any moment leaves the old files or the complete new one.

    The unfinished file lies in the folder above, since nerfstudio reads a step from every name in a checkpoint folder;
    what an earlier save left there when it was killed is removed. Numbers of numpy, which nerfstudio's decaying
    schedules leave in their states, become Python's: torch's safe default would not load them.
    """
    scratch = path.parent.parent
    for abandoned in scratch.glob(".*.ckpt.*.tmp"):
        abandoned.unlink(missing_ok=True)
    with atomic_file(path, scratch) as file:
        torch.save(_with_plain_numbers(content), file)


def _with_plain_numbers(content: Any) -> Any:
    if isinstance(content, np.generic):
        return content.item()
    if type(content) is dict:
        return {key: _with_plain_numbers(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_with_plain_numbers(value) for value in content)
    return content


def prune_others(path: Path) -> None:
    """Removes the other checkpoints beside `path`."""
    for other in path.parent.glob("*.ckpt"):
        if other != path:
            other.unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, None where there is none."""
    return max(folder.glob("step-*.ckpt"), default=None)
