"""The surface on which a function of space takes a given value, as a triangle mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

Side = Literal["below", "above"]


class EmptySurfaceError(ValueError):
    """A function that does not cross the level within the box: the message says on which side all of it lies."""


def extract_surface(
    function: Callable[[Float[Tensor, "points 3"]], Tensor],
    bounds: tuple[Sequence[float], Sequence[float]],
    resolution: int,
    level: float = 0.0,
    *,
    inside: Side = "below",
    block_size: int = 16_384,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float64[np.ndarray, "vertices 3"], Int64[np.ndarray, "faces 3"]]:
    """Marching cubes (Lewiner's) over a regular grid that includes the faces of the box.

    Memory: 4 bytes for each grid point, the points of one block, and the mesh. The mesh does not depend on the size of
    blocks, as far as the function of a point does not depend on the other points. It is closed where the surface does
    not leave the box, and its faces are counter-clockwise seen from outside; some have no area where grid points lie
    on the surface.

    Args:
        function: value of each point, (points,) or (points, 1), from float32 points; called without gradients.
        bounds: lowest and highest corner of the box, in the function's coordinates.
        resolution: grid points along each axis.
        level: value on the surface: 0 for a signed distance, 0.5 for an occupancy.
        inside: side of the level that is solid: below for a signed distance, above for an occupancy.
        block_size: points evaluated at a time.
        device: where the points are made.
        progress: told the number of points done and of all points, after each block.

    Returns:
        Vertices in the function's coordinates, and for each face the numbers of its three vertices.

    Raises:
        EmptySurfaceError: all values lie on one side of the level.
        ValueError: a size is too small, the box is empty, or a value is not finite.
    """
    from skimage.measure import marching_cubes

    lower, upper = np.asarray(bounds, dtype=np.float64)
    if resolution < 2:
        raise ValueError(f"resolution is {resolution}, but a grid needs at least 2 points along each axis")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}, but must be at least 1")
    if not (lower < upper).all():
        raise ValueError(f"the box from {lower.tolist()} to {upper.tolist()} is empty: give its lowest corner first")
    grid = _evaluate(function, lower, upper, resolution, block_size, device, progress)
    _check_crossing(grid, level, inside)
    grid[grid == level] = np.nextafter(np.float32(level), np.float32(np.inf))  # else the mesh has holes there
    vertices, faces, _, _ = marching_cubes(grid, level, gradient_direction="descent" if inside == "below" else "ascent")
    spacing = (upper - lower) / (resolution - 1)
    return lower + spacing * vertices.astype(np.float64), faces.astype(np.int64)


def _evaluate(
    function: Callable[[Float[Tensor, "points 3"]], Tensor],
    lower: Float64[np.ndarray, " 3"],
    upper: Float64[np.ndarray, " 3"],
    resolution: int,
    block_size: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None,
) -> Float32[np.ndarray, "x y z"]:
    x, y, z = torch.from_numpy(np.linspace(lower, upper, resolution, dtype=np.float32)).to(device).unbind(dim=-1)
    total = resolution**3
    values = np.empty(total, dtype=np.float32)
    for start in range(0, total, block_size):
        index = torch.arange(start, min(start + block_size, total), device=device)
        i, j, k = index // resolution**2, index // resolution % resolution, index % resolution
        with torch.no_grad():
            block = function(torch.stack([x[i], y[j], z[k]], dim=-1))
        if not block.isfinite().all():
            raise ValueError("the function is not finite everywhere on the grid: has the network diverged?")
        values[start : start + len(index)] = block.reshape(len(index)).float().cpu().numpy()
        if progress is not None:
            progress(start + len(index), total)
    return values.reshape(resolution, resolution, resolution)


def _check_crossing(grid: Float32[np.ndarray, "x y z"], level: float, inside: Side) -> None:
    lowest, highest = float(grid.min()), float(grid.max())
    if lowest < level < highest:
        return
    above = lowest >= level
    where = "inside" if (inside == "above") == above else "outside"
    raise EmptySurfaceError(
        f"there is no surface in the box: all values on the grid of {len(grid)}^3 points lie {where}, between "
        f"{lowest:.4g} and {highest:.4g} ({'above' if above else 'below'} the level {level:g})"
    )
