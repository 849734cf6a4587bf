"""Writes example scenes: `python -m crossnorm_ns.data.make_scene blender OUT --resolution 100 --train 60 --test 10`.

With `dtu` instead of `blender` a scan with masks, in the layout of IDR and NeuS, and the reference of its surface.
"""

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from crossnorm_ns.command import errors_in_one_line, read_options
from crossnorm_ns.data.blender_scene import transforms_path
from crossnorm_ns.data.dtu_scene import CAMERA_FILE
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.example_object import render as render_object
from crossnorm_ns.data.example_scene import render
from crossnorm_ns.limits import LimitError, OutputFolder, PictureSide, Seed, between, within_limits

CAMERA_ANGLE_X = 0.6911112070083618
"""Horizontal field of view in radians, as in nerf_synthetic."""
CAMERA_DISTANCE = 4.0
"""Of Blender cameras from the origin, in world units."""
SCALE_MAT = np.array([[100.0, 0, 0, -40], [0, 100, 0, 25], [0, 0, 100, 620], [0, 0, 0, 1]])
"""Of scans: unit-sphere coordinates to world millimetres."""
MOST_RAYS = 2**28
"""Of a picture."""

_Views = Annotated[int, between(1, 100_000)]
_Supersampling = Annotated[int, between(1, 64)]


@within_limits
def blender(
    out: tyro.conf.Positional[OutputFolder],
    *,
    resolution: PictureSide = 100,
    train: _Views = 60,
    val: Annotated[int, between(0, 100_000)] = 5,
    test: _Views = 10,
    seed: Seed = 0,
    supersampling: _Supersampling = 3,
) -> None:
    """Writes a scene in the Blender format of NeRF: RGBA pictures of a procedural object and its cameras.

    Train and validation cameras are drawn uniformly over the upper hemisphere; test cameras circle the object once,
    rising from 10 to 60 degrees. The same arguments give the same scene.

    Args:
        out: Folder to write; it must be empty or not exist.
        resolution: Width and height of the pictures in pixels.
        train: Number of training views.
        val: Number of validation views; 0 writes no transforms_val.json.
        test: Number of test views.
        seed: Of the cameras.
        supersampling: Rays per pixel along each axis.

    Raises:
        DataError: the folder is not empty.
        LimitError: a number is too small or too large.
    """
    _check_rays(resolution, supersampling)
    rng = np.random.default_rng(seed)
    cameras = {"train": _hemisphere(rng, train), "val": _hemisphere(rng, val), "test": _circle(test)}
    with complete_folder(out) as folder, _progress() as progress:
        task = progress.add_task("Rendering", total=train + val + test)
        for split, poses in cameras.items():
            if not poses:
                continue
            (folder / split).mkdir()
            frames = []
            for index, pose in enumerate(poses):
                _write_view(folder / split / f"r_{index}.png", pose, resolution, supersampling)
                frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
                progress.advance(task)
            transforms = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
            transforms_path(folder, split).write_text(json.dumps(transforms, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {out}: {train} train, {val} val, {test} test views of {resolution}x{resolution} pixels.")


@within_limits
def dtu(
    out: tyro.conf.Positional[OutputFolder],
    *,
    resolution: PictureSide = 128,
    views: _Views = 40,
    scan: Annotated[int, between(0, 10**6)] = 0,
    points: Annotated[int, between(1, 10**8)] = 1_000_000,
    seed: Seed = 0,
    supersampling: _Supersampling = 2,
) -> None:
    """Writes a scan in the layout of IDR and NeuS: pictures and masks of a procedural object, and its cameras.

    The object's surface lies beside them as DTU's reference does, so that the same folder is the `--dataset-dir` of
    `python -m eval.dtu_chamfer`. The cameras surround the object at elevations from 5 to 75 degrees, in random order.
    World coordinates are millimetres, 620 from the origin; the unit sphere has a radius of 100 in them. The same
    arguments give the same scan.

    Args:
        out: Folder to write; it must be empty or not exist.
        resolution: Width and height of the pictures in pixels.
        views: Number of views.
        scan: Number in the names of the reference's files; DTU's own begin with 1.
        points: Number of points of the reference; with a million a perfect mesh has a chamfer distance of 0.12 mm.
        seed: Of the cameras and of the reference's points.
        supersampling: Rays per pixel along each axis.

    Raises:
        DataError: the folder is not empty.
        LimitError: a number is too small or too large.
    """
    from crossnorm_ns.data.example_reference import write_reference

    _check_rays(resolution, supersampling)
    with complete_folder(out) as folder, _progress() as progress:
        task = progress.add_task("Rendering", total=views)
        (folder / "image").mkdir()
        (folder / "mask").mkdir()
        cameras: dict[str, np.ndarray] = {}
        for view, pose in enumerate(_surrounding(np.random.default_rng(seed), views)):
            rgba = render_object(_intrinsics(resolution), pose, resolution, resolution, supersampling)
            Image.fromarray(np.rint(255 * rgba[..., :3]).astype(np.uint8)).save(folder / "image" / f"{view:03}.png")
            mask = np.where(rgba[..., 3] >= 0.5, 255, 0).astype(np.uint8)
            Image.fromarray(mask).save(folder / "mask" / f"{view:03}.png")
            cameras[f"world_mat_{view}"] = _world_mat(_intrinsics(resolution), pose)
            cameras[f"scale_mat_{view}"] = SCALE_MAT
            progress.advance(task)
        np.savez(folder / CAMERA_FILE, **cameras)
        progress.update(task, description="Sampling the surface")
        write_reference(folder, SCALE_MAT, scan, points, seed)
    print(
        f"Wrote {out}: {views} views of {resolution}x{resolution} pixels with masks, and the reference of scan {scan}."
    )


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into, which becomes `out` at the end of the block, or vanishes on errors.

    Raises:
        DataError: `out` is a file or a folder that is not empty.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder: remove it, or choose another name.")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def look_at_origin(azimuth: float, elevation: float, distance: float = CAMERA_DISTANCE) -> Float[np.ndarray, "4 4"]:
    """Camera to world of a camera (OpenGL: x right, y up, z backward) that sees the origin, with world z up.

    Args:
        azimuth: Around z, in radians from x.
        elevation: Above the xy plane, in radians, less than a quarter turn.
        distance: From the origin, in world units.
    """
    backward = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, distance * backward], axis=-1)
    return pose


def _hemisphere(rng: np.random.Generator, num_views: int) -> list[Float[np.ndarray, "4 4"]]:
    """Uniform over the area of the upper hemisphere."""
    return [look_at_origin(rng.uniform(0, 2 * math.pi), math.asin(rng.uniform(0, 1))) for _ in range(num_views)]


def _circle(num_views: int) -> list[Float[np.ndarray, "4 4"]]:
    shares = (np.arange(num_views) + 0.5) / num_views
    return [look_at_origin(2 * math.pi * share, math.radians(10 + 50 * share)) for share in shares]


def _surrounding(rng: np.random.Generator, num_views: int) -> list[Float[np.ndarray, "3 4"]]:
    """Well spread over the sphere between 5 and 75 degrees above the horizon; x right, y down, z forward (OpenCV)."""
    low, high = math.sin(math.radians(5)), math.sin(math.radians(75))
    start, golden_angle = rng.uniform(0, 2 * math.pi), math.pi * (3 - math.sqrt(5))
    poses = []
    for place in rng.permutation(num_views):
        elevation = math.asin(low + (high - low) * (place + rng.uniform()) / num_views)
        pose = look_at_origin(start + place * golden_angle, elevation, distance=3.0)
        poses.append(pose[:3] * np.array([1, -1, -1, 1]))
    return poses


def _intrinsics(resolution: int) -> Float[np.ndarray, "3 3"]:
    """Of a camera that sees all of the object, with a principal point beside the middle as real ones have."""
    focal = 1.5 * resolution
    return np.array([[focal, 0, 0.51 * resolution - 0.5], [0, 0.998 * focal, 0.493 * resolution - 0.5], [0, 0, 1]])


def _world_mat(
    intrinsics: Float[np.ndarray, "3 3"], camera_to_world: Float[np.ndarray, "3 4"]
) -> Float[np.ndarray, "4 4"]:
    """World millimetres to pixels, for a camera in unit-sphere coordinates."""
    rotation = camera_to_world[:, :3].T
    centre = SCALE_MAT[:3, :3] @ camera_to_world[:, 3] + SCALE_MAT[:3, 3]
    matrix = np.eye(4)
    matrix[:3] = intrinsics @ np.column_stack([rotation, -rotation @ centre])
    return matrix


def _check_rays(resolution: int, supersampling: int) -> None:
    if (rays := (resolution * supersampling) ** 2) > MOST_RAYS:
        raise LimitError(
            f"--resolution is {resolution}, but with --supersampling {supersampling} a picture has {rays:,} rays, "
            f"above the limit of {MOST_RAYS:,}."
        )


def _progress() -> Progress:
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=Console(stderr=True))


def _write_view(path: Path, pose: Float[np.ndarray, "4 4"], resolution: int, supersampling: int) -> None:
    focal = 0.5 * resolution / math.tan(0.5 * CAMERA_ANGLE_X)
    rgba = render(pose[:3], focal, resolution, resolution, supersampling)
    Image.fromarray(np.rint(255 * rgba).astype(np.uint8)).save(path)


def _postponed(write: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """For tyro, which calls what it reads the options of."""

    @functools.wraps(write)
    def postpone(*args: object, **kwargs: object) -> Callable[[], None]:
        return functools.partial(write, *args, **kwargs)

    return postpone


FORMATS: dict[str, Callable[..., None]] = {"blender": blender, "dtu": dtu}
"""By the names of the sub-commands."""


def main() -> None:
    """The command: sub-commands by the format they write."""
    formats = {name: _postponed(write) for name, write in FORMATS.items()}
    write = read_options(
        lambda: tyro.extras.subcommand_cli_from_dict(
            formats, prog="python -m crossnorm_ns.data.make_scene", description=__doc__
        )
    )
    with errors_in_one_line(LimitError, DataError, OSError):
        write()


if __name__ == "__main__":
    main()
