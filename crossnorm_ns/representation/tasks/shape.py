"""Shape representation (paper, section 5.2): from a point of space to whether it is inside."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from crossnorm_ns.files import atomic_file
from crossnorm_ns.functional.marching_cubes import extract_surface
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.inputs import read_occupancy_grid
from crossnorm_ns.representation.occupancy import mesh_occupancy
from crossnorm_ns.representation.pictures import Panel, shaded
from crossnorm_ns.representation.tasks.base import Batch, Task, check_batch_size

_BLOCK = 1 << 22  # voxels whose loss is computed at a time


class ShapeTask(Task):
    """Fits the occupancy of a voxel grid, by cross-entropy; the network's outputs are logits.

    IoU is that of the voxels whose probability is at least 0.5. Each axis of the grid fills [-1, 1].

    Args:
        inside: the voxel grid.
        batch_size: voxels drawn for each step (with replacement); None takes all.

    Raises:
        RepresentationError: all voxels are alike, or the grid is no cube.
    """

    name: ClassVar[str] = "shape"
    metric: ClassVar[str] = "iou"
    in_dim: ClassVar[int] = 3
    out_dim: ClassVar[int] = 1

    def __init__(self, inside: Bool[Tensor, "x y z"], batch_size: int | None = 100_000) -> None:
        check_batch_size(batch_size)
        if len(set(inside.shape)) != 1 or min(inside.shape) < 2:
            raise RepresentationError(
                f"a voxel grid of shape {tuple(inside.shape)} is no cube: pad it to equal sides of at least 2 voxels"
            )
        if inside.all() or not inside.any():
            where = "inside" if inside.any() else "outside"
            raise RepresentationError(f"all voxels of the grid are {where}: there is no shape in it")
        self.size, self.batch_size = tuple(inside.shape), batch_size
        self.signal = inside.flatten()
        self.ticks = torch.linspace(-1, 1, self.size[0])

    @classmethod
    def open(cls, path: Path, resolution: int | None = None, batch_size: int | None = 100_000) -> ShapeTask:
        """Reads a voxel grid (.npz, .npy) or voxelises a closed mesh.

        Args:
            path: the file.
            resolution: voxels along each axis. A grid is averaged down to it and must be a multiple of it; None keeps
                its own. For a mesh None is 512, the paper's.
            batch_size: see `ShapeTask`.

        Raises:
            RepresentationError: the file cannot be used.
        """
        if path.suffix.lower() not in (".npz", ".npy"):
            return cls(torch.from_numpy(mesh_occupancy(path, 512 if resolution is None else resolution)), batch_size)
        grid = read_occupancy_grid(path)
        if resolution is not None:
            grid = _coarsen(grid, resolution, path)
        return cls(torch.from_numpy(grid), batch_size)

    def coordinates(self, start: int = 0, end: int | None = None) -> Float[Tensor, "points 3"]:
        return self._points(torch.arange(start, self.num_points if end is None else end, device=self.device))

    def batch(self, generator: torch.Generator) -> Batch:
        if self.batch_size is None:
            return Batch(self.coordinates(), self.signal)
        index = torch.randint(self.num_points, (self.batch_size,), generator=generator).to(self.device)
        return Batch(self._points(index), self.signal[index])

    def loss(self, outputs: Float[Tensor, "points 1"], target: Tensor) -> Float[Tensor, ""]:
        return binary_cross_entropy_with_logits(outputs[:, 0], target.to(outputs.dtype))

    def metrics(self, outputs: Float[Tensor, "points 1"]) -> dict[str, float]:
        blocks = zip(outputs.split(_BLOCK), self.signal.split(_BLOCK), strict=True)
        total = sum(float(self.loss(values, truth)) * len(truth) for values, truth in blocks)
        found = outputs[:, 0] >= 0
        intersection, union = (found & self.signal).sum(), (found | self.signal).sum()
        return {"loss": total / self.num_points, "iou": float(intersection / union)}

    def views(self, outputs: Float[Tensor, "points 1"]) -> list[Panel]:
        found, truth = self._grid(outputs[:, 0] >= 0), self._grid(self.signal)
        middle = self.size[2] // 2
        return [
            Panel("along z", shaded(found, 2), shaded(truth, 2)),
            Panel("along x", shaded(found, 0), shaded(truth, 0)),
            Panel("section", found[:, :, middle].T[::-1] * 1.0, truth[:, :, middle].T[::-1] * 1.0),
        ]

    def save(self, outputs: Float[Tensor, "points 1"], folder: Path) -> Path:
        """Writes the surface of probability 0.5 as a mesh, in the coordinates of the grid.

        Raises:
            EmptySurfaceError: there is none.
        """
        import trimesh

        resolution = self.size[0]
        probability = torch.sigmoid(outputs[:, 0])

        def look_up(points: Float[Tensor, "points 3"]) -> Tensor:
            i, j, k = ((points + 1) / 2 * (resolution - 1)).round().long().unbind(-1)
            return probability[(i * resolution + j) * resolution + k]

        box = ((-1.0,) * 3, (1.0,) * 3)
        vertices, faces = extract_surface(look_up, box, resolution, 0.5, inside="above", device=self.device)
        path = folder / "mesh.ply"
        with atomic_file(path) as file:
            trimesh.Trimesh(vertices, faces, process=False).export(file, file_type="ply")
        return path

    def _points(self, index: Tensor) -> Float[Tensor, "points 3"]:
        n = self.size[0]
        return torch.stack([self.ticks[i] for i in (index // n**2, index // n % n, index % n)], dim=-1)

    def _grid(self, values: Bool[Tensor, " points"]) -> Bool[np.ndarray, "x y z"]:
        return values.reshape(self.size).cpu().numpy()


def _coarsen(grid: Bool[np.ndarray, "x y z"], resolution: int, path: Path) -> Bool[np.ndarray, "_ _ _"]:
    if resolution < 1 or any(n % resolution for n in grid.shape):
        raise RepresentationError(f"{path} has {grid.shape} voxels, which is no multiple of {resolution}^3")
    factors = [n // resolution for n in grid.shape]
    blocks = grid.reshape(*(m for factor in factors for m in (resolution, factor)))
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32) >= 0.5
