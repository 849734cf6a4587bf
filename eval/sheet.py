"""A sheet of pictures: render, truth and error side by side for a few test frames."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from eval.files import write_atomically
from eval.protocols import Image, Scores


class Panel(NamedTuple):
    """One row of the sheet."""

    name: str
    render: Image
    truth: Image
    scores: Scores


def spread(indices: Sequence[int], count: int) -> set[int]:
    """Up to `count` of the indices, from the first to the last in equal steps."""
    positions = np.linspace(0, len(indices) - 1, min(count, len(indices)))
    return {indices[round(position)] for position in positions}


def write_sheet(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Writes a PNG with one row per panel. Error maps share one scale, which ends at the 99.5th percentile of all.

    Args:
        path: Where to write; replaced atomically.
        panels: At least one.
        title: Heading of the sheet.
    """
    errors = [np.abs(panel.render - panel.truth).mean(axis=-1) for panel in panels]
    largest = max(float(np.percentile(np.stack(errors), 99.5)), 1e-3)
    height, width = errors[0].shape
    figure = Figure(figsize=(9.4, 2.62 * height / width * len(panels) + 0.7), dpi=max(100, min(300, width / 2.6)))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, hspace=0, wspace=0)
    figure.suptitle(_shown(title), fontsize=11, parse_math=False)
    grid = figure.subplots(len(panels), 3, squeeze=False)
    for heading, axes in zip(("render", "truth", "absolute error"), grid[0], strict=True):
        axes.set_title(heading, fontsize=10)
    shown = None
    for panel, error, (render, truth, difference) in zip(panels, errors, grid, strict=True):
        render.imshow(panel.render.clip(0, 1), interpolation="nearest")
        truth.imshow(panel.truth.clip(0, 1), interpolation="nearest")
        shown = difference.imshow(error, cmap="magma", vmin=0, vmax=largest, interpolation="nearest")
        label = f"{panel.name}\n{panel.scores.psnr:.2f} dB\nSSIM {panel.scores.ssim:.4f}"
        render.set_ylabel(_shown(label), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
    assert shown is not None, "a sheet has at least one panel"
    bar = figure.colorbar(shown, ax=grid[:, 2], extend="max", fraction=0.06, pad=0.02, aspect=12 * len(panels))
    bar.set_label("mean of |render - truth| over R, G, B", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    contents = io.BytesIO()
    figure.savefig(contents, format="png")
    write_atomically(path, contents.getvalue())


def _shown(text: str) -> str:
    """Names of files need not be UTF-8, but what is drawn has to be."""
    return text.encode(errors="backslashreplace").decode()
