"""Reading pictures, volumes and occupancy grids, with checks whose messages name the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crossnorm_ns.reading import FileError, read_arrays, read_picture
from crossnorm_ns.representation.errors import RepresentationError


def read_image(path: Path, side: int | None = None) -> Float[Tensor, "height width 3"]:
    """An image file as RGB in [0, 1]; a transparent one is laid on white.

    Args:
        path: any format that Pillow reads.
        side: takes the square in the middle and shrinks it to this many pixels along a side, by averaging areas; None
            keeps the image as it is.

    Raises:
        RepresentationError: it is not an image, its values have no known range, or it is smaller than `side`.
    """
    from PIL import Image

    if side is not None and side < 1:
        raise RepresentationError(f"an image cannot be shrunk to {side}x{side} pixels: give at least 1")
    picture = _open_image(path)
    if picture.mode.startswith(("I", "F")):
        return _square(_deep_gray(picture, path)[..., None].expand(-1, -1, 3), side, path)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.array(picture.convert("RGB"), dtype=np.float32)
    pixels /= 255
    return _square(torch.from_numpy(pixels), side, path)


def _deep_gray(picture, path: Path) -> Float[Tensor, "height width"]:
    """Values in [0, 1] of a gray picture with more than 8 bits."""
    values = np.asarray(picture).astype(np.float32)
    if picture.mode.startswith("I;16") or picture.format == "PNG":  # older versions of Pillow call these I
        return torch.from_numpy(values / 65535)
    if picture.mode == "F" and np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
        return torch.from_numpy(values)
    raise RepresentationError(
        f"{path} has values from {values.min():g} to {values.max():g} in {picture.mode} (32 bits), of which white is "
        "not known: save it with 8 or 16 bits, or as real numbers in [0, 1]"
    )


def _square(pixels: Float[Tensor, "_ _ 3"], side: int | None, path: Path) -> Float[Tensor, "height width 3"]:
    """The square in the middle, shrunk to `side`; None leaves the picture as it is."""
    if side is None:
        return pixels.contiguous()
    height, width, _ = pixels.shape
    square = min(height, width)
    if side > square:
        raise RepresentationError(
            f"{path} has {width}x{height} pixels and cannot be shrunk to {side}x{side}: give a side of {square} or less"
        )
    top, left = (height - square) // 2, (width - square) // 2
    return _average(pixels[top : top + square, left : left + square].movedim(-1, 0), side, side).movedim(0, -1)


def read_gray_image(path: Path, downscale: int = 1) -> Float[Tensor, "height width"]:
    """An image file as densities: its gray value, or the green channel, scaled so that the range is [0, 1].

    8 and 16 bits. Source of the channel and of the scaling: WIRE's example of computed tomography.

    Args:
        path: any format that Pillow reads.
        downscale: how many times smaller it becomes, by averaging areas.

    Raises:
        RepresentationError: it is not an image, has one value everywhere, or NaN or infinite ones, or `downscale` is
            less than 1.
    """
    if downscale < 1:
        raise RepresentationError(f"an image cannot be made {downscale} times smaller: give at least 1")
    picture = _open_image(path)
    if picture.mode == "LA":
        picture = picture.getchannel("L")
    elif picture.mode not in ("1", "L", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB").getchannel("G")
    pixels = torch.from_numpy(np.asarray(picture).astype(np.float32))
    if not torch.isfinite(pixels).all():
        raise RepresentationError(f"{path} holds values that are NaN or infinite")
    low, high = float(pixels.min()), float(pixels.max())
    if not low < high:
        raise RepresentationError(f"{path} has the value {low:g} everywhere: there is nothing to reconstruct")
    height, width = (max(1, n // downscale) for n in pixels.shape)
    return _average(((pixels - low) / (high - low))[None], height, width)[0]


def read_volume(path: Path, size: int | None = None) -> Float[Tensor, "x y z"]:
    """A volume (.npy, or .npz with `volume` or a single array) as float32 in [0, 1].

    Whole numbers are divided by the largest of their type if they are bytes, else by their own largest; so are real
    numbers outside [0, 1].

    Args:
        path: the file.
        size: voxels along each axis to shrink it to by averaging; None keeps its own.

    Raises:
        RepresentationError: it cannot be read, has not three axes, holds NaN, infinite or negative values, or is empty,
            constant, or smaller than `size`.
    """
    if size is not None and size < 1:
        raise RepresentationError(f"a volume cannot be shrunk to {size}^3: give at least 1")
    array = _read_arrays(path, "volume")["volume"]
    if array.ndim != 3 or 0 in array.shape:
        raise RepresentationError(f"{path} holds an array of shape {array.shape}, but a volume has three axes")
    if array.dtype.kind not in "biuf":
        raise RepresentationError(f"{path} holds values of type {array.dtype}, but a volume has real numbers")
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise RepresentationError(
            f"{path} holds {int((~finite).sum())} values that are NaN or infinite, the first at {where}"
        )
    low, high = float(array.min()), float(array.max())
    scale = 255.0 if array.dtype == np.uint8 else high if high > 1 or array.dtype.kind in "iu" else 1.0
    real = np.result_type(array.dtype, np.float32)  # numbers may lie beyond single precision
    volume = torch.from_numpy((array / real.type(scale or 1.0)).astype(np.float32))
    if low < 0 or volume.min() == volume.max():
        raise RepresentationError(f"{path} has values from {low:g} to {high:g}, but intensities are >= 0 and vary")
    if size is None or volume.shape == (size,) * 3:
        return volume
    if size > min(volume.shape):
        raise RepresentationError(
            f"{path} has {_times(volume.shape)} voxels and cannot be shrunk to {size}^3: "
            f"give a size of {min(volume.shape)} or less"
        )
    return torch.nn.functional.adaptive_avg_pool3d(volume[None], size)[0]


def read_occupancy_grid(path: Path) -> Bool[np.ndarray, "x y z"]:
    """A voxel grid of what is inside: .npy or .npz with one array, or .npz with `packed` (bits) and `shape`.

    Values of 0.5 and more are inside.

    Raises:
        RepresentationError: it cannot be read, has not three axes, or holds no real numbers, or NaN.
    """
    arrays = _read_arrays(path, "packed", "shape")
    array = arrays["packed"]
    if "shape" in arrays:
        shape = tuple(arrays["shape"].ravel().tolist())
        if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise RepresentationError(f"{path} has the shape {shape}, but a voxel grid has three axes of 1 and more")
        if array.dtype != np.uint8 or array.size * 8 < math.prod(shape):
            raise RepresentationError(f"{path} packs fewer bits than a grid of shape {shape} has voxels")
        array = np.unpackbits(array, count=math.prod(shape)).reshape(shape)
    if array.dtype.kind not in "biuf":
        raise RepresentationError(f"{path} holds values of type {array.dtype}, but a voxel grid has real numbers")
    if array.ndim != 3 or 0 in array.shape:
        raise RepresentationError(f"{path} holds an array of shape {array.shape}, but a voxel grid has three axes")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise RepresentationError(f"{path} holds NaN")
    return array if array.dtype == np.bool_ else array >= 0.5


def _open_image(path: Path):
    if not path.is_file():
        raise RepresentationError(f"there is no file {path}")
    try:
        return read_picture(path)
    except FileError as error:
        raise RepresentationError(str(error)) from error


def _average(image: Float[Tensor, "channels _ _"], height: int, width: int) -> Float[Tensor, "channels height width"]:
    return torch.nn.functional.adaptive_avg_pool2d(image, (height, width))


def _read_arrays(path: Path, name: str, *others: str) -> dict[str, np.ndarray]:
    """The only array of a .npy or .npz file, or the one called `name` among several, under that name.

    Beside it those of `others` that a .npz file has too.
    """
    if not path.is_file():
        raise RepresentationError(f"there is no file {path}")
    try:
        arrays = read_arrays(path)
    except FileError as error:
        raise RepresentationError(str(error)) from error
    if isinstance(arrays, np.ndarray):
        return {name: arrays}
    key = name if name in arrays or len(arrays) != 1 else next(iter(arrays))
    if key not in arrays:
        raise RepresentationError(f"{path} holds the arrays {list(arrays)}: none of them is called {name!r}")
    return {name: arrays[key], **{other: arrays[other] for other in others if other in arrays}}


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
