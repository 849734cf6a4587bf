"""Cleaning of a mesh by the masks of its scene, before it is compared: each way is another metric, so it has a name."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from eval.errors import EvaluationError

if TYPE_CHECKING:
    import trimesh

    from crossnorm_ns.data.dtu_scene import DTUScene

Cull = Literal["none", "neus-womask", "2dgs"]
Mask = Float[np.ndarray, "height width"]

DTU_WIDTH = 1600
"""Of the images for which the sizes of the dilations are given, pixels."""


def clean_mesh(
    mesh: "trimesh.Trimesh", scene: "DTUScene", cull: Cull, on_view: Callable[[int, int], None] | None = None
) -> "trimesh.Trimesh":
    """Removes what the masks of a scene show to be background.

    `none` returns the mesh as it is. `neus-womask` is what NeuS without masks is evaluated with (Totoro97/NeuS, issue
    74): masks dilated by an ellipse of 101 pixels, a vertex stays if it is in the mask or outside the image in every
    view, then the largest connected component. `2dgs` is that of hbb1/2d-gaussian-splatting: masks dilated by a disk
    of radius 24, the same in every view, all components; vertices that lose their triangles stay. A triangle stays if
    its three vertices do. The sizes are for images 1600 pixels wide, and are scaled with the width of others.

    Args:
        mesh: In world millimetres.
        scene: With cameras and masks, at its full resolution.
        cull: How to clean.
        on_view: Told the number of views done and of all views.

    Raises:
        EvaluationError: nothing is left.
        DataError: a mask cannot be read.
    """
    if cull == "none":
        return mesh
    from crossnorm_ns.data.dtu_scene import load_mask

    def masks() -> Iterable[Mask]:
        for done, path in enumerate(scene.mask_paths, start=1):
            yield load_mask(path)
            if on_view is not None:
                on_view(done, len(scene.mask_paths))

    stays = vertices_in_masks(np.asarray(mesh.vertices), scene.projections, masks(), cull)
    cleaned = _keep(mesh, stays, cull)
    if not len(cleaned.faces):
        raise EvaluationError(
            f"--cull {cull} leaves no triangle: is the mesh in world millimetres, and of the scene {scene.folder}?"
        )
    return cleaned


def vertices_in_masks(
    vertices: Float64[np.ndarray, "vertices 3"],
    projections: Float64[np.ndarray, "views 3 4"],
    masks: Iterable[Mask],
    cull: Cull,
) -> Bool[np.ndarray, " vertices"]:
    """Which vertices lie in the dilated mask, or outside the image, in every view.

    Args:
        vertices: In world space.
        projections: World space to pixels, with pixel centres at integers.
        masks: One per view, in [0, 1].
        cull: `neus-womask` counts a vertex as inside the image if its nearest pixel is one, and thresholds masks at
            0.5; `2dgs` if it lies between the outermost pixel centres, and takes all of a mask that is not 0.
    """
    stays = np.ones(len(vertices), dtype=bool)
    for projection, mask in zip(projections, masks, strict=True):
        projected = vertices @ projection[:, :3].T + projection[:, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = projected[:, :2] / projected[:, 2:]
        stays &= _in_mask(pixels, mask, cull)
    return stays


def reaches(cull: Cull, width: int) -> Int64[np.ndarray, " rows"]:
    """What masks are dilated with in images of this width: how far it reaches along rows 0, 1, ... from its middle.

    `neus-womask` is OpenCV's ellipse of twice the number of rows, less one; `2dgs` is scikit-image's disk.
    """
    radius = round((50 if cull == "neus-womask" else 24) * width / DTU_WIDTH)
    reach = np.sqrt(float(radius) ** 2 - np.arange(radius + 1) ** 2)
    return (np.rint(reach) if cull == "neus-womask" else np.floor(reach)).astype(np.int64)


def dilated(inside: Bool[np.ndarray, "height width"], cull: Cull) -> Bool[np.ndarray, "height width"]:
    """A mask, grown by what `reaches` tells: row by row, so that time does not grow with the area of that."""
    height, width = inside.shape
    columns, far = np.arange(width, dtype=np.int32), 2 * width
    before = np.maximum.accumulate(np.where(inside, columns, -far), axis=1)
    behind = np.minimum.accumulate(np.where(inside, columns, far)[:, ::-1], axis=1)[:, ::-1]
    distance = np.minimum(columns - before, behind - columns)
    grown = np.zeros_like(inside)
    for row, reach in enumerate(reaches(cull, width)[:height]):
        near = distance <= reach
        grown[row:] |= near[: height - row]
        grown[: height - row] |= near[row:]
    return grown


def _in_mask(pixels: Float64[np.ndarray, "vertices 2"], mask: Mask, cull: Cull) -> Bool[np.ndarray, " vertices"]:
    height, width = mask.shape
    grown = dilated(mask > (0.5 if cull == "neus-womask" else 0), cull)
    last = np.array([width - 1, height - 1])
    nearest = np.rint(pixels)
    if cull == "neus-womask":
        in_image = ((nearest >= 0) & (nearest <= last)).all(axis=-1)
    else:
        in_image = ((pixels > 0) & (pixels < last)).all(axis=-1)
    stays = ~in_image
    columns, rows = nearest[in_image].astype(np.int64).T
    stays[in_image] = grown[rows, columns]
    return stays


def _keep(mesh: "trimesh.Trimesh", stays: Bool[np.ndarray, " vertices"], cull: Cull) -> "trimesh.Trimesh":
    """The mesh without the other vertices and their triangles."""
    import trimesh

    numbers = np.cumsum(stays) - 1
    faces = numbers[mesh.faces[stays[mesh.faces].all(axis=-1)]]
    left = trimesh.Trimesh(mesh.vertices[stays], faces, process=cull == "neus-womask")
    if cull == "2dgs" or not len(left.faces):
        return left
    labels = trimesh.graph.connected_component_labels(left.face_adjacency, node_count=len(left.faces))
    left.update_faces(labels == np.bincount(labels).argmax())
    left.remove_unreferenced_vertices()
    return left
