"""The picture of the surface demo: renders, normals, and surfaces from three sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import trimesh
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.spatial import KDTree

from crossnorm_ns.data.example_object import signed_distance
from crossnorm_ns.data.make_scene import SCALE_MAT
from crossnorm_ns.functional.marching_cubes import extract_surface
from examples.mesh_pictures import draw_mesh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from examples.demo_neus import Side

VIEWPOINTS = {"front": (0.0, -1.0, 0.35), "left": (-1.0, 0.25, 0.35), "above": (0.3, -0.55, 1.0)}
"""Toward the observer; z is up."""
GREY = 0.8


def draw(sides: Sequence[Side], path: Path) -> None:
    """The truth, then a row for each method: a held-out view, its normals, and the surface coloured by error."""
    errors = [_errors(side) for side in sides]
    scale = Normalize(0, float(np.percentile(np.concatenate(errors), 95)))
    colors = ScalarMappable(scale, colormaps["viridis"].with_extremes(over="tab:red"))
    figure = Figure(figsize=(13.5, 2.6 * (len(sides) + 1)), dpi=150, layout="constrained")
    grid = figure.subplots(len(sides) + 1, 2 + len(VIEWPOINTS), squeeze=False)
    _draw_picture(grid[0, 0], sides[0].scores.truth, "a held-out view")
    grid[0, 1].set_axis_off()
    _draw_surface(grid[0, 2:], _true_surface(), GREY)
    grid[0, 0].set_ylabel("truth", fontsize=11)
    for side, error, axes in zip(sides, errors, grid[1:], strict=True):
        axes[0].set_ylabel(side.title, fontsize=11)
        _draw_picture(axes[0], side.scores.render, f"render, {side.scores.psnr:.2f} dB")
        _draw_picture(axes[1], side.scores.normals, "normals")
        surface = side.scores.surface
        _draw_surface(axes[2:], surface, colors.to_rgba(error[surface.faces].mean(axis=1))[:, :3])
        axes[2].set_title(f"surface, chamfer {side.scores.comparison.overall:.3f} mm", fontsize=9)
    figure.colorbar(colors, ax=grid[1:, -1], extend="max", label="distance to the truth (mm)")
    figure.savefig(path)


def _errors(side: Side) -> np.ndarray:
    return KDTree(side.scores.comparison.reference.points).query(side.scores.surface.vertices)[0]


def _true_surface() -> trimesh.Trimesh:
    vertices, faces = extract_surface(
        lambda points: torch.from_numpy(signed_distance(points.numpy())), ([-1.0] * 3, [1.0] * 3), 160
    )
    return trimesh.Trimesh(vertices * SCALE_MAT[0, 0] + SCALE_MAT[:3, 3], faces, process=False)


def _draw_picture(axes: Axes, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture.clip(0, 1))
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


def _draw_surface(row: Sequence[Axes], surface: trimesh.Trimesh, colors: np.ndarray | float) -> None:
    face_colors = np.broadcast_to(colors, (len(surface.faces), 3))
    for axes, (title, toward) in zip(row, VIEWPOINTS.items(), strict=True):
        draw_mesh(axes, surface, face_colors, np.array(toward), np.array([0.0, 0.0, 1.0]))
        axes.set_title(title, fontsize=9)
