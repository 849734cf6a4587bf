"""Checks of scenes in nerfstudio's own format, which its dataparser reads with no words for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.pictures import check_inside
from crossnorm_ns.reading import FileError, read_json

NAMES = ("file_path", "mask_path", "depth_file_path")
SMALLER = ("images", "masks", "depths")
"""Folders of smaller pictures have these names with the factor behind."""
LARGEST = float(np.finfo(np.float32).max)
INTRINSICS = ("fl_x", "fl_y", "cx", "cy")
SIZES = ("w", "h")
MOST_SIDE = 2**16
"""Pixels."""
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2", "distortion_params")
ORIENTATIONS = ("pca", "up", "vertical", "none")


def check_nerfstudio_scene(data: Path, downscale_factor: int | None = None, allow_outside: bool = False) -> None:
    """Checks what nerfstudio's dataparser needs of transforms.json, so that bad data shows before anything is written.

    Pictures have to be there and are not opened.

    Args:
        data: the scene's folder, or its json file.
        downscale_factor: the dataparser's; with one beyond 1 it reads other folders of pictures than are named.
        allow_outside: reads files outside of the scene's folder where names or links lead there.

    Raises:
        DataError: a folder, file, key or number is missing or not what it must be, or a file lies outside.
    """
    path = data if data.suffix == ".json" else data / "transforms.json"
    if not os.path.isfile(path):
        raise DataError(
            f"No file {path}: give a scene in nerfstudio's format (ns-process-data makes one); one in Blender's format "
            "is read with the dataparser blender-cn at the end of the command."
        )
    check_inside(path.parent, path, str(path), allow_outside)
    try:
        contents = read_json(path)
    except FileError as error:
        raise DataError(str(error)) from error
    frames = contents.get("frames") if isinstance(contents, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{path} must hold one json object whose key 'frames' lists at least one frame.")
    _check_names(path, contents, allow_outside)
    _check_optional(str(path), contents, (*DISTORTION, *_OPTIONAL))
    for index, frame in enumerate(frames):
        where = f"{path}, frame {index}"
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: no file_path. Each frame must name its picture.")
        picture = path.parent / name
        if downscale_factor in (None, 1) and not os.path.isfile(picture):
            raise DataError(f"{where} ({name}): there is no file {picture}. Copy the scene again, or remove the frame.")
        if not _are_numbers(frame.get("transform_matrix"), 4, 4):
            raise DataError(f"{where} ({name}): transform_matrix must be a 4x4 matrix of finite numbers.")
        for key in (*INTRINSICS, *SIZES):
            value = contents.get(key, frame.get(key))
            if not _is_number(value) or value <= 0:
                raise DataError(f"{where} ({name}): {key} is {value!r:.40}, but must be a positive number.")
            if key in SIZES and (value != int(value) or value > MOST_SIDE):
                raise DataError(f"{where} ({name}): {key} is {value!r:.40}, but must be pixels, up to {MOST_SIDE:,}.")
        _check_optional(f"{where} ({name})", frame, DISTORTION)


def _check_names(path: Path, contents: dict[str, Any], allow_outside: bool) -> None:
    """Refuses what is no name, and names that lead out of the json file's folder or those of smaller pictures."""
    smaller = [folder for kind in SMALLER for folder in path.parent.glob(f"{kind}_*")]
    frames = enumerate(contents["frames"])
    named = [(f"{path}, frame {index}: its {key}", frame.get(key)) for index, frame in frames for key in NAMES]
    for where, name in [(f"{path}: its ply_file_path", contents.get("ply_file_path")), *named]:
        if not isinstance(name, str) or "\0" in name:
            if name is None:
                continue
            raise DataError(f"{where} is no name of a file: {name!r}.")
        for file in (path.parent / name, *(folder / Path(name).name for folder in smaller)):
            check_inside(path.parent, file, f"{where} {name}", allow_outside)


def _check_optional(where: str, values: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        holds, what = _OPTIONAL.get(key, (_is_number, "a finite number"))
        if key in values and not holds(values[key]):
            raise DataError(f"{where}: {key} is {values[key]!r:.40}, but must be {what}.")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _are_numbers(value: Any, *shape: int) -> bool:
    """Whether lists in lists hold numbers in this shape."""
    if not shape:
        return _is_number(value)
    return isinstance(value, list) and len(value) == shape[0] and all(_are_numbers(part, *shape[1:]) for part in value)


def _is_camera_model(value: Any) -> bool:
    from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE

    return isinstance(value, str) and value in CAMERA_MODEL_TO_TYPE


_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "distortion_params": (lambda value: _are_numbers(value, 6) or _are_numbers(value, 12), "6 or 12 finite numbers"),
    "camera_model": (_is_camera_model, "one that nerfstudio has, such as OPENCV"),
    "applied_transform": (lambda value: _are_numbers(value, 3, 4), "a 3x4 matrix of finite numbers"),
    "applied_scale": (_is_number, "a finite number"),
    "orientation_override": (lambda value: value in ORIENTATIONS, f"one of {', '.join(ORIENTATIONS)}"),
    "fisheye_crop_radius": (lambda value: value is None or _is_number(value), "a finite number"),
}
"""What keys must be that need not be there."""
