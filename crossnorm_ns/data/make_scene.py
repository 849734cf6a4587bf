"""Writes example scenes: `python -m crossnorm_ns.data.make_scene blender OUT --resolution 100 --train 60 --test 10`."""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from crossnorm_ns.data.blender_scene import transforms_path
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.example_scene import render

CAMERA_ANGLE_X = 0.6911112070083618
"""Horizontal field of view in radians, as in nerf_synthetic."""
CAMERA_DISTANCE = 4.0
"""From the origin, in world units."""


def blender(
    out: tyro.conf.Positional[Path],
    *,
    resolution: int = 100,
    train: int = 60,
    val: int = 5,
    test: int = 10,
    seed: int = 0,
    supersampling: int = 3,
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
        DataError: the folder is not empty, or a number is too small.
    """
    for name, value, least in (
        ("resolution", resolution, 1),
        ("train", train, 1),
        ("val", val, 0),
        ("test", test, 1),
        ("seed", seed, 0),
        ("supersampling", supersampling, 1),
    ):
        if value < least:
            raise DataError(f"--{name} is {value}, but must be at least {least}.")
    rng = np.random.default_rng(seed)
    cameras = {"train": _hemisphere(rng, train), "val": _hemisphere(rng, val), "test": _circle(test)}
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with complete_folder(out) as folder, Progress(*columns, console=Console(stderr=True)) as progress:
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


def look_at_origin(azimuth: float, elevation: float) -> Float[np.ndarray, "4 4"]:
    """Camera to world of a camera (OpenGL: x right, y up, z backward) that sees the origin, with world z up.

    Args:
        azimuth: Around z, in radians from x.
        elevation: Above the xy plane, in radians, less than a quarter turn.
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
    pose[:3] = np.stack([right, np.cross(backward, right), backward, CAMERA_DISTANCE * backward], axis=-1)
    return pose


def _hemisphere(rng: np.random.Generator, num_views: int) -> list[Float[np.ndarray, "4 4"]]:
    """Uniform over the area of the upper hemisphere."""
    return [look_at_origin(rng.uniform(0, 2 * math.pi), math.asin(rng.uniform(0, 1))) for _ in range(num_views)]


def _circle(num_views: int) -> list[Float[np.ndarray, "4 4"]]:
    shares = (np.arange(num_views) + 0.5) / num_views
    return [look_at_origin(2 * math.pi * share, math.radians(10 + 50 * share)) for share in shares]


def _write_view(path: Path, pose: Float[np.ndarray, "4 4"], resolution: int, supersampling: int) -> None:
    focal = 0.5 * resolution / math.tan(0.5 * CAMERA_ANGLE_X)
    rgba = render(pose[:3], focal, resolution, resolution, supersampling)
    Image.fromarray(np.rint(255 * rgba).astype(np.uint8)).save(path)


def main() -> None:
    """The command: sub-commands by the format they write."""
    app = tyro.extras.SubcommandApp()
    app.command(blender)
    try:
        app.cli(prog="python -m crossnorm_ns.data.make_scene", description=__doc__)
    except (DataError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
