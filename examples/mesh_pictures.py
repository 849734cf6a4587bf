"""Pictures of triangle meshes by matplotlib alone: no graphics card, no display."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.collections import PolyCollection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from trimesh import Trimesh

AMBIENT = 0.35
LIGHT = np.array([0.4, 0.5, 1.0]) / np.linalg.norm([0.4, 0.5, 1.0])
"""Toward the light: right, up and toward the observer."""


def draw_mesh(
    axes: Axes,
    mesh: Trimesh,
    colors: Float[np.ndarray, "faces 3"],
    toward: Float[np.ndarray, " 3"],
    up: Float[np.ndarray, " 3"],
) -> None:
    """Draws what an observer far away sees of a mesh, shaded, in parallel projection.

    Args:
        axes: where to draw, in the mesh's units.
        mesh: with faces that look outward.
        colors: of the faces, before shading.
        toward: from the mesh to the observer.
        up: points up in the picture; not parallel to `toward`.
    """
    forward = toward / np.linalg.norm(toward)
    right = np.cross(up, forward)
    right /= np.linalg.norm(right)
    view = np.stack([right, np.cross(forward, right), forward])
    normals, corners = mesh.face_normals @ view.T, mesh.vertices[mesh.faces] @ view.T
    order = np.argsort(corners[..., 2].mean(axis=1))  # the painter's: near faces over far ones
    order = order[normals[order, 2] > 0]
    shade = AMBIENT + (1 - AMBIENT) * np.clip(normals[order] @ LIGHT, 0, 1)
    shaded = colors[order] * shade[:, None]
    # without antialiasing, whose rims would show between neighbouring faces
    axes.add_collection(PolyCollection(list(corners[order, :, :2]), facecolors=shaded, antialiased=False))
    axes.autoscale_view()
    axes.set(aspect="equal", xticks=[], yticks=[])
