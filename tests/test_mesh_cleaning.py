"""Cleaning by masks: projection, dilation, what outside an image means, components; beside loops over vertices."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from skimage.morphology import disk

from crossnorm_ns.data.dtu_scene import read_scene
from eval.errors import EvaluationError
from eval.mesh_cleaning import Cull, clean_mesh, dilated, reaches, vertices_in_masks

WIDTH, HEIGHT = 64, 48
FRONT = np.array([[32.0, 0, 32, 0], [0, 32, 24, 0], [0, 0, 1, 0]])
"""Looks along z from the origin: (x, y, z) is at pixel (32 + 32 x / z, 24 + 32 y / z)."""


def at_pixel(column: float, row: float, depth: float = 4.0) -> np.ndarray:
    return np.array([(column - 32) / 32 * depth, (row - 24) / 32 * depth, depth])


def dot(column: int, row: int, value: float = 1.0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    mask[row, column] = value
    return mask


def stays(pixels: list[tuple[float, float]], masks: list[np.ndarray], cull, projections=None) -> list[bool]:
    vertices = np.stack([at_pixel(*pixel) for pixel in pixels])
    projections = np.stack([FRONT] * len(masks)) if projections is None else projections
    return vertices_in_masks(vertices, projections, masks, cull).tolist()


def kernel(cull: Cull, radius: int) -> np.ndarray:
    """As the published programs make it."""
    if cull == "2dgs":
        return disk(radius, dtype=np.uint8)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)


@pytest.mark.parametrize(("cull", "at_dtus_width"), [("neus-womask", 50), ("2dgs", 24)])
def test_masks_are_dilated_by_what_the_published_protocols_dilate_with(cull: Cull, at_dtus_width: int) -> None:
    """At DTU's width and at others, for which it is scaled."""
    assert len(reaches(cull, 1600)) == at_dtus_width + 1
    for width in (1, 64, 399, 400, 1600, 6400):
        radius = round(at_dtus_width * width / 1600)
        middle = kernel(cull, radius)[radius:]
        assert ((middle.sum(axis=1) - 1) // 2).tolist() == reaches(cull, width).tolist()


@pytest.mark.parametrize("cull", ["neus-womask", "2dgs"])
@pytest.mark.parametrize("size", [(300, 400), (7, 800), (90, 30), (1, 500), (40, 1)])
def test_dilation_is_that_of_opencv(cull: Cull, size: tuple[int, int]) -> None:
    rng, radius = np.random.default_rng(0), len(reaches(cull, size[1])) - 1
    for share in (0, 0.001, 0.01, 0.5, 1):
        inside = rng.random(size) < share
        expected = cv2.dilate(inside.astype(np.uint8), kernel(cull, radius))
        assert np.array_equal(dilated(inside, cull), expected)


@pytest.mark.parametrize(("cull", "reach"), [("neus-womask", 31_250), ("2dgs", 15_000)])
def test_masks_may_be_a_million_pixels_wide(cull: Cull, reach: int) -> None:
    inside = np.zeros((1, 1_000_000), dtype=bool)
    inside[0, 500_000] = True
    assert np.flatnonzero(dilated(inside, cull)[0])[[0, -1]].tolist() == [500_000 - reach, 500_000 + reach]


@pytest.mark.parametrize(("cull", "reach"), [("neus-womask", 2), ("2dgs", 1)])
def test_masks_are_dilated(cull, reach: int) -> None:
    """At 64 pixels the radii 50 and 24 become 2 and 1."""
    pixels = [(20 + step, 30) for step in range(-4, 5)]
    assert stays(pixels, [dot(20, 30)], cull) == [abs(column - 20) <= reach for column, _ in pixels]
    pixels = [(20, 30 + step) for step in range(-4, 5)]
    assert stays(pixels, [dot(20, 30)], cull) == [abs(row - 30) <= reach for _, row in pixels]


def test_vertices_must_be_in_the_masks_of_all_views() -> None:
    """The second view is shifted by 10 pixels."""
    shifted = FRONT + np.array([[0, 0, 10, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    projections = np.stack([FRONT, shifted])
    pixels = [(20, 30), (40, 30)]
    both = dot(20, 30) + dot(40, 30)
    assert stays(pixels, [both, dot(30, 30)], "2dgs", projections) == [True, False]
    assert stays(pixels, [both, dot(50, 30)], "neus-womask", projections) == [False, True]


@pytest.mark.parametrize("cull", ["neus-womask", "2dgs"])
def test_outside_the_image_counts_as_inside_the_mask(cull) -> None:
    empty = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    pixels = [(-3, 10), (WIDTH + 2, 10), (10, -3), (10, HEIGHT + 2), (10, 10)]
    assert stays(pixels, [empty], cull) == [True, True, True, True, False]


def test_where_the_image_ends_differs_between_the_protocols() -> None:
    """neus-womask: where the nearest pixel does. 2dgs: at the centres of the outermost pixels."""
    empty = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    pixels = [(-0.4, 10), (-0.6, 10), (WIDTH - 0.6, 10), (WIDTH - 0.4, 10), (10, HEIGHT - 0.6)]
    assert stays(pixels, [empty], "neus-womask") == [False, True, False, True, False]
    pixels = [(-0.1, 10), (0.1, 10), (WIDTH - 0.9, 10), (WIDTH - 1.1, 10), (10, HEIGHT - 1.1)]
    assert stays(pixels, [empty], "2dgs") == [True, False, True, False, False]


def test_pixels_are_rounded_to_the_nearest() -> None:
    assert stays([(22.4, 30), (22.6, 30), (20, 32.4), (20, 32.6)], [dot(20, 30)], "neus-womask") == [
        True,
        False,
        True,
        False,
    ]


def test_half_transparent_mask_is_object_for_2dgs_alone() -> None:
    assert stays([(20, 30)], [dot(20, 30, 0.4)], "2dgs") == [True]
    assert stays([(20, 30)], [dot(20, 30, 0.4)], "neus-womask") == [False]
    assert stays([(20, 30)], [dot(20, 30, 0.6)], "neus-womask") == [True]


def write_scene(folder: Path, mask: np.ndarray) -> Path:
    """Two views of the same camera, with equal masks."""
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    scale = np.diag([2.0, 2, 2, 1])
    scale[2, 3] = 4
    world = np.eye(4)
    world[:3] = FRONT
    for view in range(2):
        Image.fromarray((255 * mask).astype(np.uint8)).save(folder / "mask" / f"{view:03}.png")
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "image" / f"{view:06}.png")
    arrays = {f"{name}_{view}": m for view in range(2) for name, m in (("world_mat", world), ("scale_mat", scale))}
    np.savez(folder / "cameras_sphere.npz", **arrays)
    return folder


def fan(column: float, row: float, count: int) -> trimesh.Trimesh:
    """Triangles around a pixel, all within 1.5 pixels."""
    angles = np.linspace(0, 2 * np.pi, count + 1)[:-1]
    rim = [at_pixel(column + 1.5 * np.cos(a), row + 1.5 * np.sin(a)) for a in angles]
    faces = [[0, 1 + i, 1 + (i + 1) % count] for i in range(count)]
    return trimesh.Trimesh([at_pixel(column, row), *rim], faces, process=False)


@pytest.fixture
def left_half(tmp_path: Path):
    """Scene whose object fills the left half of the image."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    mask[:, :32] = 1
    return read_scene(write_scene(tmp_path / "scene", mask))


def test_triangles_need_all_three_vertices(left_half) -> None:
    across = trimesh.Trimesh([at_pixel(10, 10), at_pixel(20, 10), at_pixel(50, 20)], [[0, 1, 2]], process=False)
    mesh = trimesh.util.concatenate([across, fan(10, 30, 8)])
    for cull in ("neus-womask", "2dgs"):
        assert len(clean_mesh(mesh, left_half, cull).faces) == 8


def test_only_neus_womask_keeps_the_largest_component_alone(left_half) -> None:
    mesh = trimesh.util.concatenate([fan(10, 10, 6), fan(20, 30, 9), fan(50, 30, 20)])
    largest = clean_mesh(mesh, left_half, "neus-womask")
    np.testing.assert_allclose(largest.vertices, fan(20, 30, 9).vertices)
    both = clean_mesh(mesh, left_half, "2dgs")
    np.testing.assert_allclose(both.triangles, np.concatenate([fan(10, 10, 6).triangles, fan(20, 30, 9).triangles]))


def test_component_is_connected_over_copies_of_vertices(left_half) -> None:
    """As trimesh merges them where NeuS loads and splits: a fan of separate triangles is one component."""
    whole = fan(20, 30, 9)
    pieces = trimesh.Trimesh(whole.triangles.reshape(-1, 3), np.arange(27).reshape(9, 3), process=False)
    mesh = trimesh.util.concatenate([pieces, fan(10, 10, 6)])
    assert len(clean_mesh(mesh, left_half, "neus-womask").faces) == 9


def test_2dgs_keeps_vertices_that_lose_their_triangles(left_half) -> None:
    mesh = trimesh.Trimesh(
        [at_pixel(10, 10), at_pixel(20, 10), at_pixel(50, 20), *fan(10, 30, 8).vertices],
        [[0, 1, 2], *(fan(10, 30, 8).faces + 3)],
        process=False,
    )
    assert len(clean_mesh(mesh, left_half, "2dgs").vertices) == 2 + 9
    assert len(clean_mesh(mesh, left_half, "neus-womask").vertices) == 9


def test_no_cleaning_returns_the_mesh_itself(left_half) -> None:
    mesh = fan(50, 30, 5)
    assert clean_mesh(mesh, left_half, "none") is mesh


def test_cleaning_that_leaves_nothing_is_refused(left_half) -> None:
    for cull in ("neus-womask", "2dgs"):
        with pytest.raises(EvaluationError, match="leaves no triangle"):
            clean_mesh(fan(50, 30, 5), left_half, cull)


def test_cleaning_tells_of_its_progress(left_half) -> None:
    told = []
    clean_mesh(fan(10, 10, 5), left_half, "2dgs", lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
