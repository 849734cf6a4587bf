"""Small scans in the layout of IDR and NeuS, with cameras that the tests know."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 16)
"""Width and height of the pictures."""
SCALE_MAT = np.array([[230.0, 0, 0, -28], [0, 230, 0, -13], [0, 0, 230, 641], [0, 0, 0, 1]])


def rotation_matrix(rng: np.random.Generator) -> np.ndarray:
    """A random proper rotation."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return rotation * np.sign(np.linalg.det(rotation))


def known_camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intrinsics (pixel centres at integers), world-to-camera rotation (OpenCV), centre in unit-sphere coordinates.

    The camera is three away and sees the sphere's middle near the principal point.
    """
    intrinsics = np.array([[31.0, 0, 11.2], [0, 29.5, 8.1], [0, 0, 1]])
    rotation = rotation_matrix(rng)
    centre = -3 * rotation[2] + rng.normal(0, 0.05, 3)
    return intrinsics, rotation, centre


def world_matrix(intrinsics: np.ndarray, rotation: np.ndarray, centre: np.ndarray, factor: float = 1) -> np.ndarray:
    """World millimetres to pixels, times a factor that projections do not show."""
    world_centre = SCALE_MAT[:3, :3] @ centre + SCALE_MAT[:3, 3]
    matrix = np.eye(4)
    matrix[:3] = factor * intrinsics @ rotation @ np.column_stack([np.eye(3), -world_centre])
    return matrix


def write_scan(folder: Path, num_views: int = 4, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Writes a scan whose red and green channels are column and row of the pixel; gives its cameras back."""
    rng = np.random.default_rng(seed)
    cameras = [known_camera(rng) for _ in range(num_views)]
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()
    column, row = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    for view in range(num_views):
        pixels = np.stack([column, row, np.full_like(row, view)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "image" / f"{view:06}.png")
        mask = np.zeros(SIZE[::-1], dtype=np.uint8)
        mask[3 : 9 + view, 2:13] = 255
        Image.fromarray(mask).save(folder / "mask" / f"{view:03}.png")
    arrays = {f"scale_mat_{view}": SCALE_MAT for view in range(num_views)}
    for view, camera in enumerate(cameras):
        arrays[f"world_mat_{view}"] = world_matrix(*camera, factor=1 + view)
    np.savez(folder / "cameras_sphere.npz", **arrays)
    return cameras


def change_cameras(folder: Path, **changes: object) -> None:
    """Writes the camera file again with these arrays set, or left out where None."""
    path = folder / "cameras_sphere.npz"
    with np.load(path) as arrays:
        contents = {**arrays, **changes}
    np.savez(path, **{key: np.asarray(value) for key, value in contents.items() if value is not None})
