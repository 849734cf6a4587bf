"""Figures: reconstruction, truth and error beside each other; shaded views of voxel grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from crossnorm_ns.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """One row of a figure: a reconstruction and the truth it is compared with, values in [0, 1]."""

    title: str
    reconstruction: Float[np.ndarray, "height width *channels"]
    truth: Float[np.ndarray, "height width *channels"]


def to_8_bits(image: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in [0, 1], clipped and rounded."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def write_picture(pixels: Shaped[np.ndarray, "height width *channels"], path: Path) -> None:
    """Writes a picture of 8 bits, or 16 where it is gray, as PNG."""
    from PIL import Image

    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, format="png")


def comparison(panels: Sequence[Panel]) -> Figure:
    """Reconstruction, truth and absolute error of each panel in a row; all errors on one scale."""
    from matplotlib.figure import Figure

    errors = [_error(panel) for panel in panels]
    largest = max(float(np.percentile(error, 99.5)) for error in errors) or 1.0
    height, width = errors[0].shape
    figure = Figure(figsize=(10, (10 / 3.2) * height / width * len(panels) + 0.5), dpi=120, layout="constrained")
    grid = figure.subplots(len(panels), 3, squeeze=False)
    for heading, axes in zip(("reconstruction", "truth", "absolute error"), grid[0], strict=True):
        axes.set_title(heading, fontsize=10)
    for panel, error, (left, middle, right) in zip(panels, errors, grid, strict=True):
        left.imshow(np.clip(panel.reconstruction, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        middle.imshow(np.clip(panel.truth, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        right.imshow(error, cmap="magma", vmin=0, vmax=largest, interpolation="nearest")
        left.set_ylabel(panel.title, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure


def shaded(inside: Bool[np.ndarray, "x y z"], axis: Literal[0, 2]) -> Float[np.ndarray, "height width"]:
    """A voxel grid seen along x (z is up) or along z (y is up), as an eye sees it.

    Each pixel is shaded by the slope of the first voxel behind it, white if there is none.
    """
    grid = np.moveaxis(inside, axis, 0)
    depth = np.where(grid.any(axis=0), grid.argmax(axis=0), np.nan).astype(np.float64)
    rows, columns = np.gradient(depth)
    shade = 1 / np.sqrt(1 + rows**2 + columns**2)
    shade = np.where(np.isnan(depth), 1.0, np.where(np.isnan(shade), 0.1, 0.1 + 0.8 * shade))
    return shade.T[::-1, ::-1]


def _error(panel: Panel) -> Float[np.ndarray, "height width"]:
    error = np.abs(panel.reconstruction.astype(np.float64) - panel.truth)
    return error.mean(axis=-1) if error.ndim == 3 else error
