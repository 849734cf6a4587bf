"""Small inputs for the tests of representation tasks."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from crossnorm_ns.representation.cells import Cell


class Killed(Cell):
    """Stands for a cell whose process the system kills for its memory."""

    def __call__(self) -> dict[str, Any]:
        os._exit(9)


class Watched(contextlib.AbstractContextManager):
    """Progress that calls a function after each step with the number of steps so far."""

    def __init__(self, act: Callable[[int], object]) -> None:
        self.advance = act

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, step: int, entry: dict[str, Any]) -> None:
        pass


def write_image(path: Path, height: int = 24, width: int = 24, seed: int = 0) -> Path:
    """A smooth picture with an edge and some detail."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = np.stack([np.sin(9 * x + seed), np.cos(14 * y), np.sin(31 * x * y)], axis=-1)
    pixels = np.where((x > y)[..., None], 0.5 + 0.4 * waves, 0.6 - 0.3 * waves)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return path


def ball(resolution: int, radius: float = 0.6) -> np.ndarray:
    """Voxels whose centre is nearer than `radius` to the origin, where the grid fills [-1, 1]."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, resolution)] * 3, indexing="ij")
    return x**2 + y**2 + z**2 < radius**2


def blob(size: int) -> torch.Tensor:
    """A smooth volume with values between 0.05 and 0.95."""
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij")
    return 0.5 + 0.45 * torch.exp(-3 * (x**2 + y**2 + 2 * z**2)) * torch.cos(3 * x)
