"""Pictures of the surfaces that trainings of NeuS have left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import trimesh
from matplotlib.figure import Figure

from crossnorm_ns.data.dtu_scene import read_scene
from examples.mesh_pictures import draw_mesh

NUM_VIEWS = 3
_GREY = 0.8


def draw_surfaces(surfaces: Mapping[str, Path], scene_folder: Path, path: Path) -> None:
    """Draws each surface from the side of three cameras of its scene, in parallel projection.

    Args:
        surfaces: files in world space, by what stands beside their row.
        scene_folder: in the layout of IDR and NeuS.
        path: of the picture.
    """
    poses = read_scene(scene_folder).camera_to_worlds
    views = np.linspace(0, len(poses) - 1, NUM_VIEWS).round().astype(int)
    figure = Figure(figsize=(3 * NUM_VIEWS, 3 * len(surfaces)), dpi=100, layout="constrained")
    rows = figure.subplots(len(surfaces), NUM_VIEWS, squeeze=False)
    for row, (label, file) in zip(rows, surfaces.items(), strict=True):
        mesh = trimesh.load(file, process=False)
        assert isinstance(mesh, trimesh.Trimesh)
        for axes, view in zip(row, views, strict=True):
            _, down, forward = poses[view, :, :3].T
            draw_mesh(axes, mesh, np.full((len(mesh.faces), 3), _GREY), -forward, -down)
            axes.set_title(f"from camera {view}", fontsize=9)
        row[0].set_ylabel(label, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
