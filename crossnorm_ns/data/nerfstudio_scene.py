"""Checks of scenes in nerfstudio's own format, which its dataparser reads with no words for what is wrong."""

from __future__ import annotations

import os
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
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")


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
    if not allow_outside:
        _check_inside(path, contents)
    for index, frame in enumerate(frames):
        where = f"{path}, frame {index}"
        name = frame.get("file_path")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: no file_path. Each frame must name its picture.")
        picture = path.parent / name
        if downscale_factor in (None, 1) and not os.path.isfile(picture):
            raise DataError(f"{where} ({name}): there is no file {picture}. Copy the scene again, or remove the frame.")
        if not _is_pose(frame.get("transform_matrix")):
            raise DataError(f"{where} ({name}): transform_matrix must be a 4x4 matrix of finite numbers.")
        for key in INTRINSICS:
            value = contents.get(key, frame.get(key))
            if type(value) not in (int, float) or not 0 < value <= LARGEST:
                raise DataError(f"{where} ({name}): {key} is {value!r}, but must be a positive number.")


def _check_inside(path: Path, contents: dict[str, Any]) -> None:
    """Refuses names that lead out of the folder of the json file, also of the folders of smaller pictures."""
    smaller = [folder for kind in SMALLER for folder in path.parent.glob(f"{kind}_*")]
    frames = enumerate(contents["frames"])
    named = [(f"{path}, frame {index}: its {key}", frame.get(key)) for index, frame in frames for key in NAMES]
    for where, name in [(f"{path}: its ply_file_path", contents.get("ply_file_path")), *named]:
        if not isinstance(name, str) or "\0" in name:
            if name is None:
                continue
            raise DataError(f"{where} is no name of a file: {name!r}.")
        for file in (path.parent / name, *(folder / Path(name).name for folder in smaller)):
            check_inside(path.parent, file, f"{where} {name}", allow_outside=False)


def _is_pose(value: Any) -> bool:
    try:
        matrix = np.array(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return False
    return matrix.shape == (4, 4) and bool(np.isfinite(matrix).all())
