"""The coordinates of pixels and voxels that networks are functions of."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def pixel_coordinates(height: int, width: int, rows: range | None = None) -> Float[Tensor, "pixels 2"]:
    """(row, column) of each pixel, row by row, as 2 * index / (height - 1) - 1; of some rows, or of all.

    Norm-INR (and COIN before it) divides both indices by the height, so pixels stay square: the rows of a picture fill
    [-1, 1], its columns the same range only where it is a square.
    """
    scale = 2 / max(height - 1, 1)
    rows = range(height) if rows is None else rows
    columns = torch.arange(width) * scale - 1
    return torch.cartesian_prod(torch.arange(rows.start, rows.stop) * scale - 1, columns)


def grid_coordinates(*size: int) -> Float[Tensor, "points dims"]:
    """Coordinates of each entry of an array of this size, last axis fastest; every axis fills [-1, 1]."""
    return torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij"), dim=-1).flatten(0, -2)
