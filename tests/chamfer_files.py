"""A small scan of a flat square: DTU's evaluation files, a surface, and its scene with one view."""

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from scipy.io import savemat

CENTRE = np.array([-30.0, 20, 600])
SCALE = 15.0
"""Of the unit sphere."""


def square(z: float = 0.0, half: float = 6.0) -> trimesh.Trimesh:
    """A flat square in world space, at `z` millimetres from the reference."""
    corners = CENTRE + np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


def write_reference(folder: Path, scan: int = 24) -> Path:
    """DTU's three files for a flat square of points 0.25 mm apart, all observed and above the plane."""
    stl, masks = folder / "Points" / "stl", folder / "ObsMask"
    stl.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    axis = np.arange(-6, 6.01, 0.25)
    x, y = np.meshgrid(axis, axis)
    points = CENTRE + np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    trimesh.PointCloud(points).export(stl / f"stl{scan:03}_total.ply")
    box = np.stack([CENTRE - 20, CENTRE + 20])
    contents = {"ObsMask": np.ones((41, 41, 41), dtype=np.uint8), "BB": box, "Res": np.array([[1.0]])}
    savemat(masks / f"ObsMask{scan}_10.mat", contents)
    savemat(masks / f"Plane{scan}.mat", {"P": np.array([[0.0], [0], [1], [-500]])})
    return folder


def write_scene(folder: Path) -> Path:
    """One view along z from 100 mm before the square, whose mask is the left half of the picture."""
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(folder / "mask" / "000.png")
    Image.new("RGB", (64, 64)).save(folder / "image" / "000000.png")
    scale, world = np.diag([SCALE, SCALE, SCALE, 1]), np.eye(4)
    scale[:3, 3] = CENTRE
    intrinsics = np.array([[200.0, 0, 32], [0, 200, 32], [0, 0, 1]])
    world[:3] = intrinsics @ np.column_stack([np.eye(3), -(CENTRE - [0, 0, 100])])
    np.savez(folder / "cameras_sphere.npz", world_mat_0=world, scale_mat_0=scale)
    return folder
