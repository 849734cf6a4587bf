"""Where a surface errs: point clouds coloured as DTUeval-python colours them, and a picture for people."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from eval.chamfer import MAX_DISTANCE, Comparison, Measured
from eval.files import write_atomically

RED_DISTANCE = 10.0
"""From white at 0 to full red here, millimetres."""
ANGLES = (-60, 0, 60)
"""Of the picture's three sides around the object, degrees."""
ELEVATION = 25
"""From which they look down on it, degrees."""
MOST_DOTS = 100_000
"""Dots a side: more points are thinned out for the picture."""
SIDE = 2.9
"""Of one view in the picture, inches."""


def error_colors(measured: Measured) -> UInt8[np.ndarray, "points 3"]:
    """White to red where a distance counts, green from 20 mm on, blue where the protocol leaves the point out."""
    distances = measured.distances
    share = np.nan_to_num(distances.clip(max=RED_DISTANCE) / RED_DISTANCE)[:, None]
    colors = np.array([1.0, 0.0, 0.0]) * share + np.array([1.0, 1.0, 1.0]) * (1 - share)
    colors[distances >= MAX_DISTANCE] = (0, 1, 0)
    colors[np.isnan(distances)] = (0, 0, 1)
    return np.rint(255 * colors).astype(np.uint8)


def write_clouds(folder: Path, scan: int, comparison: Comparison) -> None:
    """Writes `vis_024_d2s.ply` (surface to reference) and `vis_024_s2d.ply` (reference to surface)."""
    import trimesh

    for name, measured in (("d2s", comparison.data), ("s2d", comparison.reference)):
        cloud = trimesh.PointCloud(measured.points, colors=error_colors(measured))
        contents = cloud.export(file_type="ply")
        assert isinstance(contents, bytes)
        write_atomically(folder / f"vis_{scan:03}_{name}.ply", contents)


def write_picture(path: Path, comparison: Comparison, up: Float64[np.ndarray, " 3"], title: str) -> None:
    """Writes a PNG: both clouds from three sides, coloured by distance, and how the distances are distributed.

    Colours end at the 99th percentile of all distances that count; larger ones are red, points left out are grey.

    Args:
        path: Where to write; replaced atomically.
        comparison: What is shown.
        up: Direction in world space, such as the normal of the table.
        title: Heading of the picture.
    """
    sides = {
        "accuracy: surface to reference": comparison.data,
        "completeness: reference to surface": comparison.reference,
    }
    largest = float(np.percentile(np.concatenate([side.counted for side in sides.values()]), 99))
    scale = Normalize(0, max(largest, 1e-6))
    colors = ScalarMappable(scale, colormaps["viridis"].with_extremes(over="red", bad="0.75"))
    figure = Figure(figsize=(4 * SIDE + 1, 2 * SIDE + 1), dpi=150)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, len(ANGLES) + 1)
    for (label, measured), row in zip(sides.items(), grid, strict=True):
        step = max(1, round(len(measured.points) / MOST_DOTS))
        dots = Measured(measured.points[::step], measured.distances[::step])
        for angle, axes in zip(ANGLES, row, strict=False):
            _draw_side(axes, dots, angle, up, colors)
        row[0].set_ylabel(label, fontsize=9)
        row[-1].hist(measured.counted.clip(max=scale.vmax), bins=60, range=(0, scale.vmax), color="0.6")
        row[-1].axvline(measured.mean, color="tab:red", label=f"mean {measured.mean:.3f} mm")
        row[-1].axvline(measured.median, color="tab:blue", label=f"median {measured.median:.3f} mm")
        row[-1].legend(fontsize=8)
        row[-1].set(yticks=[], xlabel="distance (mm)")
        row[-1].tick_params(labelsize=8)
    figure.colorbar(colors, ax=grid[:, :-1], extend="max", fraction=0.03, pad=0.01).set_label("mm", fontsize=9)
    contents = io.BytesIO()
    figure.savefig(contents, format="png")
    write_atomically(path, contents.getvalue())


def _draw_side(axes: Axes, dots: Measured, angle: int, up: Float64[np.ndarray, " 3"], colors: ScalarMappable) -> None:
    """Draws what a camera sees that has gone around the object by the angle, the farthest dots first."""
    right, down, forward = _camera(angle, up)
    order = np.argsort(-dots.points @ forward)
    points, distances = dots.points[order], dots.distances[order]
    pixels = np.stack([points @ right, points @ down], axis=-1)
    seen = pixels[~np.isnan(distances)]
    middle, half = (seen.min(axis=0) + seen.max(axis=0)) / 2, 0.53 * np.ptp(seen, axis=0).max() + 1e-6
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
    axes.set_title(f"{angle:+d}°" if angle else "front", fontsize=9)
    axes.spines[:].set_color("0.8")
    shown = colors.to_rgba(np.where(np.isinf(distances), MAX_DISTANCE, distances))
    axes.scatter(*pixels.T, s=np.clip(1e5 / len(pixels), 0.8, 9), c=shown, linewidths=0)


def _camera(angle: int, up: Float64[np.ndarray, " 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, down and forward of a camera; at angle 0 it looks along z, as DTU's do, or along y where z is up."""
    up = up / np.linalg.norm(up)
    ahead = np.array([0.0, 0, 1]) if abs(up[2]) < 0.9 else np.array([0.0, 1, 0])
    ahead -= (ahead @ up) * up
    ahead /= np.linalg.norm(ahead)
    turn, dip = np.radians(angle), np.radians(ELEVATION)
    level = np.cos(turn) * ahead + np.sin(turn) * np.cross(up, ahead)
    forward = np.cos(dip) * level - np.sin(dip) * up
    right = np.cross(level, up)
    return right, np.cross(forward, right), forward
