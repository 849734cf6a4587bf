"""Which voxels of a grid are inside a closed mesh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from crossnorm_ns.reading import FileError, read_mesh
from crossnorm_ns.representation.errors import RepresentationError

MARGIN = 1.05
"""Side of the cube that is voxelised, over the largest side of the mesh."""


def mesh_occupancy(path: Path, resolution: int) -> Bool[np.ndarray, "x y z"]:
    """Voxel grid of a mesh file, over a cube around it with a margin; grid points lie on the faces of the cube too.

    Inside is where a beam along an axis has entered the surface more or less often than it has left it (the winding
    number is not 0), so that closed shells may overlap and one of the other orientation inside another is a cavity;
    by the majority of the three axes (Nooruddin and Turk 2003), so that a beam through an edge of the mesh does no
    harm.

    Args:
        path: a mesh in a file of one of `MESH_FORMATS`.
        resolution: grid points along each axis.

    Raises:
        RepresentationError: it cannot be read, has no faces, is not closed, or holds no grid point, or `resolution` is
            less than 2.
    """
    if resolution < 2:
        raise RepresentationError(f"a grid of {resolution}^3 points holds no shape: give a resolution of at least 2")
    mesh = _read_closed_mesh(path)
    center, half = mesh.bounds.mean(axis=0), MARGIN * np.ptp(mesh.bounds, axis=0).max() / 2
    mesh.apply_translation(-center).apply_scale(1 / half)
    votes = np.zeros((resolution,) * 3, dtype=np.int8)
    for axis in range(3):
        votes += _wound_around(mesh, axis, resolution)
    inside = votes >= 2
    if not inside.any():
        raise RepresentationError(f"no point of the grid of {resolution}^3 lies inside {path}: it is too thin for it")
    return inside


def _read_closed_mesh(path: Path):
    import trimesh

    try:
        mesh = read_mesh(path)
    except FileError as error:
        raise RepresentationError(str(error)) from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise RepresentationError(f"{path} has no faces")
    if not np.isfinite(mesh.vertices).all():
        raise RepresentationError(f"{path} has vertices that are NaN or infinite")
    if not mesh.is_watertight:
        mesh.merge_vertices(merge_tex=True, merge_norm=True)
    if not mesh.is_watertight:
        _, uses = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
        raise RepresentationError(
            f"{path} is not closed ({int((uses != 2).sum())} of its edges do not join two faces), so it has no inside: "
            "close its holes first"
        )
    if not mesh.is_winding_consistent:
        trimesh.repair.fix_winding(mesh)
    return mesh


def _wound_around(mesh, axis: int, resolution: int) -> Bool[np.ndarray, "x y z"]:
    ticks = np.linspace(-1, 1, resolution)
    first, second = (other for other in range(3) if other != axis)
    origins = np.full((resolution, resolution, 3), -2.0)
    origins[..., first], origins[..., second] = np.meshgrid(ticks, ticks, indexing="ij")
    origins = origins.reshape(-1, 3)
    directions = np.zeros_like(origins)
    directions[:, axis] = 1
    points, beams, faces = mesh.ray.intersects_location(origins, directions, multiple_hits=True)
    winding = np.zeros((resolution**2, resolution + 1), dtype=np.int16)
    leaving = np.sign(mesh.face_normals[faces, axis]).astype(np.int16)
    np.subtract.at(winding, (beams, np.searchsorted(ticks, points[:, axis])), leaving)
    winding = np.add.accumulate(winding[:, :resolution], axis=1, dtype=np.int16)
    return np.moveaxis((winding != 0).reshape((resolution,) * 3), -1, axis)
