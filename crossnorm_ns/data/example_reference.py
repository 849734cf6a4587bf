"""Reference of the procedural object in the layout of DTU's evaluation files, so that its chamfer distance is known."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from crossnorm_ns.data.example_object import BOTTOM, gradient, signed_distance
from crossnorm_ns.functional.marching_cubes import extract_surface

GRID_STEPS = 100
"""Of the observed volume, along the unit sphere's radius."""
FOOTING = 0.02
"""The part above the bottom that the plane leaves out, in unit-sphere coordinates: no camera sees the under side."""


def write_reference(folder: Path, scale_mat: Float[np.ndarray, "4 4"], scan: int, num_points: int, seed: int) -> None:
    """Writes what `eval.dtu_chamfer` compares with: points of the surface, the observed volume, the ground plane.

    Observed is all of the unit sphere above the plane. The files are as DTU's: `Points/stl/stl000_total.ply`,
    `ObsMask/ObsMask0_10.mat` (ObsMask, BB, Res) and `ObsMask/Plane0.mat` (P) for scan 0, in world millimetres.

    Args:
        folder: Of the dataset.
        scale_mat: Unit-sphere to world coordinates, a uniform scale and a translation.
        scan: Number of the scan.
        num_points: How many points of the surface are drawn.
        seed: Of the points.
    """
    import trimesh
    from scipy.io import savemat

    scale, centre = scale_mat[0, 0], scale_mat[:3, 3]
    points_path = folder / "Points" / "stl" / f"stl{scan:03}_total.ply"
    points_path.parent.mkdir(parents=True)
    trimesh.PointCloud(surface_points(num_points, seed) * scale + centre).export(points_path)

    (folder / "ObsMask").mkdir()
    lowest = BOTTOM + FOOTING
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 2 * GRID_STEPS + 1)] * 3, indexing="ij", sparse=True)
    observed = {
        "ObsMask": ((x * x + y * y + z * z <= 1) & (z >= lowest)).astype(np.uint8),
        "BB": np.stack([centre - scale, centre + scale]),
        "Res": scale / GRID_STEPS,
    }
    savemat(folder / "ObsMask" / f"ObsMask{scan}_10.mat", observed, do_compression=True)
    plane = np.array([[0.0], [0.0], [1.0], [-(centre[2] + scale * lowest)]])
    savemat(folder / "ObsMask" / f"Plane{scan}.mat", {"P": plane})


def surface_points(num_points: int, seed: int) -> Float[np.ndarray, "points 3"]:
    """Points drawn uniformly from the object's surface, in unit-sphere coordinates.

    They are drawn from a mesh and moved onto the surface by Newton's steps; the few that miss it, at creases, are left
    out.

    Args:
        num_points: How many are drawn.
        seed: Of the drawing.
    """
    import trimesh

    bounds = ([-1.0] * 3, [1.0] * 3)
    vertices, faces = extract_surface(lambda points: torch.from_numpy(signed_distance(points.numpy())), bounds, 200)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    points = np.asarray(trimesh.sample.sample_surface(mesh, num_points, seed=seed)[0])
    for start in range(0, len(points), 16_384):  # batches that stay in the processor's cache
        batch = points[start : start + 16_384]
        for _ in range(2):
            slope = gradient(batch)
            batch -= (signed_distance(batch) / (slope**2).sum(axis=-1))[:, None] * slope
    return points[np.abs(signed_distance(points)) < 1e-5]
