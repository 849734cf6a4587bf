"""Reader of scenes in the layout of IDR and NeuS: `image/*.png`, `mask/*.png` and `cameras_sphere.npz`.

Of view i the camera file holds `world_mat_i`, which projects world points (millimetres in DTU) to pixels whose centres
are at integers, and `scale_mat_i`, which takes the unit sphere around the object to the world. Views are the pictures
in the order of their names, as in Totoro97/NeuS (`models/dataset.py`), but values are divided by 255, there by 256.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.pictures import check_inside, decoded, downscaled_size, size_and_mode
from crossnorm_ns.reading import FileError, read_arrays

CAMERA_FILE = "cameras_sphere.npz"
SKEW_TOLERANCE = 0.1
"""Largest shift in pixels that leaving out the skew may cause in a picture: DTU's own stays below 2e-4."""
SCALE_TOLERANCE = 1e-5
"""Largest relative difference that rounding explains between scale matrices, or from a uniform scale."""
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}


@dataclass(frozen=True, eq=False)
class DTUScene:
    """Cameras and files of all views, in the order of their names."""

    folder: Path
    """The scene's folder."""
    image_paths: tuple[Path, ...]
    """Picture of each view."""
    mask_paths: tuple[Path, ...]
    """Mask of each view."""
    projections: Float[np.ndarray, "views 3 4"]
    """World coordinates to pixels whose centres are at integers, at the read resolution; float64."""
    intrinsics: Float[np.ndarray, "views 3 3"]
    """Camera coordinates to pixels whose centres are at integers, at the read resolution, [2, 2] = 1; float64."""
    camera_to_worlds: Float[np.ndarray, "views 3 4"]
    """Camera to unit-sphere coordinates, [rotation | centre]; x right, y down, z forward (OpenCV); float64."""
    scale_mat: Float[np.ndarray, "4 4"]
    """Unit-sphere coordinates to world coordinates, a uniform scale and a translation; float64."""
    width: int
    """Width of the pictures in pixels, after downscaling."""
    height: int
    """Height of the pictures in pixels, after downscaling."""


def read_scene(folder: Path, downscale_factor: int = 1, allow_outside: bool = False) -> DTUScene:
    """Reads the cameras and checks all that training and evaluation will read.

    Pictures are checked by their checksums and sizes; masks are decoded, since an empty one must show.

    Args:
        folder: Folder with `image`, `mask` and `cameras_sphere.npz`.
        downscale_factor: How many times smaller pictures and masks become, a divisor of their size.
        allow_outside: Reads files outside of the scene's folder where links in it lead there.

    Raises:
        DataError: something is missing, left over, unreadable or inconsistent.
    """
    image_paths, mask_paths = _views(folder)
    for path in (folder / CAMERA_FILE, *image_paths, *mask_paths):
        check_inside(folder, path, str(path), allow_outside)
    size = _common_size((*image_paths, *mask_paths))
    width, height = downscaled_size(str(image_paths[0]), size, downscale_factor)
    for mask_path in mask_paths:
        if not (load_mask(mask_path, downscale_factor) > 0.5).any():
            raise DataError(
                f"{mask_path} is empty: masks are 255 on the object and 0 elsewhere; remove or redo the view."
            )
    path = folder / CAMERA_FILE
    world_mats, scale_mat = _read_cameras(path, len(image_paths))
    shrink = _shrinking(downscale_factor)
    cameras = [_decompose(f"{path}: view {view}", mat[:3] @ scale_mat) for view, mat in enumerate(world_mats)]
    intrinsics = np.stack([shrink @ camera[0] for camera in cameras])
    _check_skew(path, intrinsics, height)
    return DTUScene(
        folder=folder,
        image_paths=image_paths,
        mask_paths=mask_paths,
        projections=shrink @ world_mats[:, :3],
        intrinsics=intrinsics,
        camera_to_worlds=np.stack([camera[1] for camera in cameras]),
        scale_mat=scale_mat,
        width=width,
        height=height,
    )


def load_image(path: Path, downscale_factor: int = 1) -> Float[np.ndarray, "height width 3"]:
    """Loads a picture as float32 RGB in [0, 1], averaged over blocks of downscale_factor^2 pixels; alpha is left out.

    Raises:
        DataError: the picture is unreadable or has a size that the factor does not divide.
    """
    return _load(path, "RGB", downscale_factor)


def load_mask(path: Path, downscale_factor: int = 1) -> Float[np.ndarray, "height width"]:
    """Loads a mask as float32 in [0, 1], averaged over blocks of downscale_factor^2 pixels: above 0.5 is the object.

    Raises:
        DataError: the mask is unreadable or has a size that the factor does not divide.
    """
    return _load(path, "L", downscale_factor)


def read_scale_mat(cameras: Path, allow_outside: bool = False) -> Float[np.ndarray, "4 4"]:
    """Reads what takes unit-sphere coordinates to the world: `scale_mat_0`, a uniform scale and a translation.

    Args:
        cameras: A camera file, or a scene's folder with `cameras_sphere.npz`.
        allow_outside: Reads a file outside of the scene's folder where a link in it leads there.

    Raises:
        DataError: there is no such file, it lies outside of the scene, or it holds no such matrix.
    """
    path = cameras / CAMERA_FILE if cameras.is_dir() else cameras
    if not path.is_file():
        raise DataError(f"No camera file {path}: give a scene with {CAMERA_FILE}, or a file with scale_mat_0.")
    if cameras.is_dir():
        check_inside(cameras, path, str(path), allow_outside)
    arrays = _read_arrays(path)
    if "scale_mat_0" not in arrays:
        raise DataError(f"{path} has no scale_mat_0: it is no camera file of IDR or NeuS.")
    return _similarity(path, _matrix(path, arrays, "scale_mat_0"))


def _load(path: Path, mode: str, downscale_factor: int) -> Float[np.ndarray, "..."]:
    image = decoded(path)
    _check_mode(path, image.mode)
    pixels = np.array(image.convert(mode), dtype=np.float32)
    pixels /= 255
    height, width = pixels.shape[:2]
    size = downscaled_size(str(path), (width, height), downscale_factor)
    if downscale_factor == 1:
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _views(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The pictures and masks of a scene, paired by order."""
    if not folder.is_dir():
        raise DataError(
            f"No scene folder at {folder.absolute()}. Give the folder of one scan in NeuS's layout (dtu_scan24), or "
            "write an example scene with: python -m crossnorm_ns.data.make_scene dtu FOLDER"
        )
    if not (folder / CAMERA_FILE).is_file():
        scenes = sorted(found.parent.name for found in folder.glob(f"*/{CAMERA_FILE}"))
        inside = f" Its sub-folder {scenes[0]!r} has one: give {folder / scenes[0]}." if scenes else ""
        raise DataError(f"No file {folder / CAMERA_FILE}: {folder} is not a scene in NeuS's layout.{inside}")
    image_paths, mask_paths = _pictures(folder / "image"), _pictures(folder / "mask")
    numbers, mask_numbers = _numbers(image_paths), _numbers(mask_paths)
    if numbers is not None and mask_numbers is not None:
        _check_partners(image_paths, numbers, folder / "mask", mask_numbers)
        _check_partners(mask_paths, mask_numbers, folder / "image", numbers)
    elif len(image_paths) != len(mask_paths):
        raise DataError(
            f"{folder} has {len(image_paths)} pictures in image but {len(mask_paths)} in mask: "
            "each picture needs its mask, at the same place in the order of names."
        )
    return image_paths, mask_paths


def _pictures(folder: Path) -> tuple[Path, ...]:
    paths = tuple(sorted(path for path in folder.glob("*.png") if not path.name.startswith(".")))
    if not paths:
        raise DataError(f"No pictures {folder}/*.png: the scene is incomplete, copy it again.")
    numbers = _numbers(paths) or []
    for place, (number, following) in enumerate(pairwise(numbers)):
        if number > following:
            raise DataError(
                f"{folder}: {paths[place].name} comes before {paths[place + 1].name} in the order of names, in "
                "which views are, so that cameras would be mixed up: pad the numbers with zeros."
            )
    return paths


def _numbers(paths: Sequence[Path]) -> list[int] | None:
    """The numbers that all files are named by, or None."""
    if not all(re.fullmatch(r"[0-9]+", path.stem) for path in paths):
        return None
    return [int(path.stem) for path in paths]


def _check_partners(paths: Sequence[Path], numbers: list[int], other: Path, other_numbers: list[int]) -> None:
    for path, number in zip(paths, numbers, strict=True):
        if number not in other_numbers:
            raise DataError(f"{path} has no partner of number {number} in {other}: remove it, or copy the scene again.")


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Width and height in pixels that all pictures and masks have, from headers and checksums."""
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(_image_size, paths))
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{path} is {size[0]}x{size[1]}, but {paths[0]} is {sizes[0][0]}x{sizes[0][1]}: "
                "all pictures and masks of a scene must have one size."
            )
    return sizes[0]


def _image_size(path: Path) -> tuple[int, int]:
    size, mode = size_and_mode(path, str(path))
    _check_mode(path, mode)
    return size


def _check_mode(path: Path, mode: str) -> None:
    if mode not in EIGHT_BIT_MODES:
        raise DataError(f"{path} does not have 8 bits per channel (mode {mode}): save it as an 8-bit PNG.")


def _shrinking(factor: int) -> Float[np.ndarray, "3 3"]:
    """Pixel coordinates of the full picture to those of the block averages, centres at integers in both."""
    offset = 0.5 / factor - 0.5
    return np.array([[1 / factor, 0, offset], [0, 1 / factor, offset], [0, 0, 1]])


def _read_cameras(path: Path, num_views: int) -> tuple[Float[np.ndarray, "views 4 4"], Float[np.ndarray, "4 4"]]:
    """The world matrices of all views, and the scale matrix that they share."""
    arrays = _read_arrays(path)
    for name in ("world_mat", "scale_mat"):
        found = {key for key in arrays if re.fullmatch(rf"{name}_[0-9]+", key)}
        wanted = [f"{name}_{view}" for view in range(num_views)]
        if missing := [key for key in wanted if key not in found]:
            raise DataError(
                f"{path}: no {missing[0]}, but there are {num_views} pictures, which views 0 to {num_views - 1} "
                "belong to: remove the picture without camera, or copy the camera file again."
            )
        if extra := sorted(found.difference(wanted)):
            raise DataError(
                f"{path}: {extra[0]:.40} has no picture, there are only {num_views}: "
                "add the missing picture and mask, or remove the camera."
            )
    world_mats = np.stack([_matrix(path, arrays, f"world_mat_{view}") for view in range(num_views)])
    scale_mats = [_matrix(path, arrays, f"scale_mat_{view}") for view in range(num_views)]
    scale_mat = scale_mats[0]
    similarity = _similarity(path, scale_mat)
    for view, other in enumerate(scale_mats):
        if np.abs(other - scale_mat).max() > SCALE_TOLERANCE * np.abs(scale_mat).max():
            raise DataError(
                f"{path}: scale_mat_{view} differs from scale_mat_0: "
                "all views must share one unit sphere, normalise the cameras together."
            )
    return world_mats, similarity


def _similarity(path: Path, scale_mat: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The matrix with what is uneven by rounding made even."""
    scale = scale_mat[0, 0]
    similarity = np.eye(4)
    similarity[:3] = np.column_stack([scale * np.eye(3), scale_mat[:3, 3]])
    if scale <= 0 or np.abs(scale_mat - similarity).max() > SCALE_TOLERANCE * scale:
        raise DataError(
            f"{path}: scale_mat_0 is not a uniform positive scale and a translation: "
            "meshes of it could not be taken to the world; normalise the cameras again."
        )
    return similarity


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(path)
    except FileError as error:
        raise DataError(f"{error}: copy it again, or save the matrices as float arrays.") from error
    if not isinstance(arrays, dict):
        raise DataError(f"{path} cannot be read as an npz file of plain arrays: it holds a single array.")
    return arrays


def _matrix(path: Path, arrays: dict[str, np.ndarray], key: str) -> Float[np.ndarray, "4 4"]:
    matrix = arrays[key]
    if matrix.shape != (4, 4) or matrix.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: {key} has shape {matrix.shape} and type {matrix.dtype}, but must be 4x4 real numbers."
        )
    matrix = matrix.astype(np.float64)
    if not (np.abs(matrix) <= np.finfo(np.float32).max).all():
        raise DataError(
            f"{path}: {key} holds NaN, infinity or a number beyond single precision: export the cameras again, or "
            "remove the view."
        )
    if np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise DataError(f"{path}: {key} is singular: export the cameras again, or remove the view.")
    return matrix


def _decompose(
    where: str, projection: Float[np.ndarray, "3 4"]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 4"]]:
    """Intrinsics and camera-to-world of a projection of unit-sphere coordinates, both with OpenCV's axes."""
    if np.linalg.det(projection[:, :3]) < 0:
        raise DataError(f"{where}: the camera is mirrored (negative determinant): export the cameras again.")
    intrinsics, rotation, centre = cv2.decomposeProjectionMatrix(projection / np.abs(projection[:, :3]).max())[:3]
    with np.errstate(all="ignore"):  # a centre at infinity is refused below
        camera_to_world = np.column_stack([rotation.T, centre[:3, 0] / centre[3, 0]])
    if not (np.abs(camera_to_world) <= np.finfo(np.float32).max).all():
        raise DataError(f"{where}: the camera lies beyond single precision: export the cameras again.")
    if -camera_to_world[:, 2] @ camera_to_world[:, 3] < -1:
        raise DataError(
            f"{where}: the camera looks away from the unit sphere around the object: "
            "is world_mat inverted, or scale_mat of another scene?"
        )
    return intrinsics / intrinsics[2, 2], camera_to_world


def _check_skew(path: Path, intrinsics: Float[np.ndarray, "views 3 3"], height: int) -> None:
    """Cameras of nerfstudio have no skew."""
    rows = np.array([-0.5, height - 0.5])
    shifts = intrinsics[:, 0, 1, None] * (rows - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    largest = np.abs(shifts).max(axis=1)
    view = int(largest.argmax())
    if largest[view] > SKEW_TOLERANCE:
        raise DataError(
            f"{path}: view {view} has skew, which shifts pixels by up to {largest[view]:.2g} and which nerfstudio's "
            "cameras cannot have: rectify the pictures, or export cameras without skew."
        )
