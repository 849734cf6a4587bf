"""Reader of scenes in the Blender format of NeRF ("nerf_synthetic"): `transforms_{split}.json` and RGBA pictures.

Pictures are float32 with straight alpha; smaller ones are area averages of that, composited on white afterwards, as in
google/mipnerf (`internal/datasets.py`, class Blender).
"""

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.pictures import check_inside, decoded, downscaled_size, size_and_mode
from crossnorm_ns.reading import FileError, read_json

RIGID_TOLERANCE = 1e-3
"""Largest error of R^T R - 1 that still counts as a rotation: float32 exports stay below 1e-6."""


@dataclass(frozen=True, eq=False)
class BlenderSplit:
    """The cameras and picture files of one split, in the order of its json file."""

    names: tuple[str, ...]
    """File name of each frame without folder and extension: `r_0`."""
    image_paths: tuple[Path, ...]
    """Picture of each frame."""
    camera_to_worlds: Float[np.ndarray, "num_frames 3 4"]
    """Camera to world, [rotation | translation], float32; the camera looks along -z with y up (OpenGL)."""
    width: int
    """Width of the pictures in pixels, after downscaling."""
    height: int
    """Height of the pictures in pixels, after downscaling."""
    focal: float
    """Focal length in pixels of the downscaled pictures; the principal point is the picture's centre."""


def has_split(scene: Path, split: str) -> bool:
    """Whether the scene has a `transforms_{split}.json`."""
    return transforms_path(scene, split).is_file()


def transforms_path(scene: Path, split: str) -> Path:
    """The json file that lists the frames of a split."""
    return scene / f"transforms_{split}.json"


def read_split(scene: Path, split: str, downscale_factor: int = 1, allow_outside: bool = False) -> BlenderSplit:
    """Reads the cameras of one split and finds its pictures; of these only the first is opened, for the size.

    Args:
        scene: Folder with `transforms_{split}.json`.
        split: `train`, `val` or `test`.
        downscale_factor: How many times smaller the pictures become, a divisor of their size.
        allow_outside: Reads pictures outside of the scene's folder where the json file names such.

    Raises:
        DataError: a folder, json file, key or picture is missing or has no usable value.
    """
    path = transforms_path(scene, split)
    contents = _read_json(scene, path, allow_outside)
    angle = _camera_angle_x(path, contents.get("camera_angle_x"))
    frames = contents.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{path}: no frames. Its key 'frames' must list at least one frame with file_path and matrix.")
    found: dict[str, Path] = {}
    for index, frame in enumerate(frames):
        name = _file_path(path, index, frame)
        if name not in found:
            found[name] = _image_path(scene, path, index, name, allow_outside)
    image_paths = tuple(found[frame["file_path"]] for frame in frames)
    camera_to_worlds = [_camera_to_world(path, index, frame) for index, frame in enumerate(frames)]
    where = _frame(image_paths[0], path, 0)
    width, height = downscaled_size(where, _image_size(image_paths[0], where), downscale_factor)
    return BlenderSplit(
        names=tuple(image_path.stem for image_path in image_paths),
        image_paths=image_paths,
        camera_to_worlds=np.stack(camera_to_worlds),
        width=width,
        height=height,
        focal=0.5 * width / math.tan(0.5 * angle),
    )


def check_scene(scene: Path, splits: Iterable[str], downscale_factor: int = 1, allow_outside: bool = False) -> None:
    """Checks all that training and evaluation will read, so that bad data shows before anything is written.

    Beyond `read_split` this reads every picture's bytes against their checksums and compares sizes, several pictures at
    a time.

    Args:
        scene: Folder with the `transforms_{split}.json` files.
        splits: The splits that will be used.
        downscale_factor: How many times smaller the pictures will be made.
        allow_outside: See `read_split`.

    Raises:
        DataError: something is missing, unreadable or inconsistent.
    """
    for split in splits:
        cameras = read_split(scene, split, downscale_factor, allow_outside)
        expected = (cameras.width * downscale_factor, cameras.height * downscale_factor)
        names = [_frame(path, transforms_path(scene, split), i) for i, path in enumerate(cameras.image_paths)]
        distinct: dict[Path, str] = {}
        for path, name in zip(cameras.image_paths, names, strict=True):
            distinct.setdefault(path, name)
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(_image_size, distinct, distinct.values()))
        for where, size in zip(distinct.values(), sizes, strict=True):
            if size != expected:
                raise DataError(
                    f"{where} is {size[0]}x{size[1]}, but frame 0 is {expected[0]}x{expected[1]}: "
                    "all pictures of a split must have one size, render it again."
                )


def load_image(path: Path, downscale_factor: int = 1) -> Float[np.ndarray, "height width 4"]:
    """Loads a picture as float32 RGBA in [0, 1] with straight alpha, averaged over blocks of downscale_factor^2 pixels.

    Raises:
        DataError: the picture is unreadable, has no alpha channel or a size that the factor does not divide.
    """
    image = decoded(path)
    _check_mode(str(path), image.mode)
    rgba = np.array(image, dtype=np.float32)
    rgba /= 255
    height, width = rgba.shape[:2]
    size = downscaled_size(str(path), (width, height), downscale_factor)
    if downscale_factor == 1:
        return rgba
    return cv2.resize(rgba, size, interpolation=cv2.INTER_AREA)


def composite_on_white(rgba: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3"]:
    """Colours with straight alpha seen before white: rgb * a + (1 - a)."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + (1 - alpha)


def _read_json(scene: Path, path: Path, allow_outside: bool) -> dict[str, Any]:
    if not scene.is_dir():
        raise DataError(
            f"No scene folder at {scene.absolute()}. Give the folder of one nerf_synthetic scene, or write an example "
            "scene with: python -m crossnorm_ns.data.make_scene blender FOLDER"
        )
    if not path.is_file():
        scenes = sorted(found.parent.name for found in scene.glob("*/transforms_*.json"))
        inside = f" Its sub-folder {scenes[0]!r} has such files: give {scene / scenes[0]}." if scenes else ""
        raise DataError(f"No file {path}: {scene} is not a scene in Blender format, or is incomplete.{inside}")
    check_inside(scene, path, str(path), allow_outside)
    try:
        contents = read_json(path)
    except FileError as error:
        raise DataError(str(error)) from error
    if not isinstance(contents, dict):
        raise DataError(f"{path} must hold one json object with the keys 'camera_angle_x' and 'frames'.")
    return contents


def _camera_angle_x(path: Path, angle: Any) -> float:
    is_number = isinstance(angle, int | float) and not isinstance(angle, bool)
    if not is_number or not 0 < angle < math.pi:
        raise DataError(
            f"{path}: camera_angle_x is {angle!r}, but must be the horizontal field of view in radians, in (0, pi)."
        )
    return float(angle)


def _file_path(path: Path, index: int, frame: Any) -> str:
    file_path = frame.get("file_path") if isinstance(frame, dict) else None
    if not isinstance(file_path, str) or not file_path:
        raise DataError(f"{path}, frame {index}: no file_path. Each frame must name its picture, as './train/r_0'.")
    return file_path


def _image_path(scene: Path, path: Path, index: int, file_path: str, allow_outside: bool) -> Path:
    image_path = scene / (file_path if file_path.lower().endswith(".png") else f"{file_path}.png")
    if not os.path.isfile(image_path):  # Path.is_file raises on names that no file system has
        raise DataError(
            f"{path}, frame {index} ({file_path}): there is no file {image_path}. "
            "Copy the scene again, or remove the frame from the json file."
        )
    check_inside(scene, image_path, f"{path}, frame {index}: its picture {file_path}", allow_outside)
    return image_path


def _camera_to_world(path: Path, index: int, frame: dict[str, Any]) -> Float[np.ndarray, "3 4"]:
    where = f"{path}, frame {index} ({frame['file_path']}): transform_matrix"
    try:
        matrix = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} is not a matrix of numbers ({error}): export the cameras again.") from error
    if matrix.shape not in ((4, 4), (3, 4)):
        raise DataError(f"{where} has shape {matrix.shape}, but must be 4x4 or 3x4: export the cameras again.")
    if not (np.abs(matrix) <= np.finfo(np.float32).max).all():
        raise DataError(
            f"{where} holds NaN, infinity or a number beyond single precision: export the cameras again, or remove the "
            "frame."
        )
    rotation = matrix[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
        raise DataError(
            f"{where} is not a rotation and a translation (R^T R is off by {error:.2g}, determinant "
            f"{np.linalg.det(rotation):.3g}): export camera-to-world matrices without scale or mirroring."
        )
    if matrix.shape[0] == 4 and not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise DataError(f"{where} has last row {matrix[3].tolist()}, but must have 0 0 0 1: is it transposed?")
    return matrix[:3].astype(np.float32)


def _frame(image_path: Path, path: Path, index: int) -> str:
    return f"{image_path} (frame {index} of {path})"


def _image_size(path: Path, where: str) -> tuple[int, int]:
    """Width and height in pixels of an intact RGBA picture, from its header and checksums."""
    size, mode = size_and_mode(path, where)
    _check_mode(where, mode)
    return size


def _check_mode(where: str, mode: str) -> None:
    if mode != "RGBA":
        raise DataError(
            f"{where} has no alpha channel of its own (mode {mode}, RGBA needed): "
            "render with a transparent background and save as RGBA PNG."
        )
