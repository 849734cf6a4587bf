"""Surface extraction: closed forms of sphere and torus, the same mesh for all block sizes, nothing to extract."""

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from crossnorm_ns.functional.marching_cubes import EmptySurfaceError, extract_surface

BOX = ((-1.0, -1.2, -0.9), (1.1, 1.0, 1.3))
RESOLUTION = 72
LARGEST_CELL = 2.2 / (RESOLUTION - 1)
RING, TUBE = 0.6, 0.25


def sphere(points: Tensor) -> Tensor:
    """Signed distance to a sphere of radius 0.7 around (0.1, 0, 0.2)."""
    return (points - torch.tensor([0.1, 0.0, 0.2])).norm(dim=-1) - 0.7


def torus(points: Tensor) -> Tensor:
    """Signed distance to a torus around the z axis, (points, 1)."""
    around = points[:, :2].norm(dim=-1) - RING
    return torch.stack([around, points[:, 2]], dim=-1).norm(dim=-1, keepdim=True) - TUBE


def occupancy(points: Tensor) -> Tensor:
    return torch.sigmoid(-40 * sphere(points))


CASES = {
    "sphere": (sphere, {}, sphere, 4 / 3 * math.pi * 0.7**3, 4 * math.pi * 0.7**2, 2),
    "torus": (torus, {}, torus, 2 * math.pi**2 * RING * TUBE**2, 4 * math.pi**2 * RING * TUBE, 0),
    "offset": (sphere, {"level": 0.05}, lambda p: sphere(p) - 0.05, 4 / 3 * math.pi * 0.75**3, math.pi * 1.5**2, 2),
    "occupancy": (
        occupancy,
        {"level": 0.5, "inside": "above"},
        sphere,
        4 / 3 * math.pi * 0.7**3,
        4 * math.pi * 0.7**2,
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mesh_has_the_place_the_size_and_the_topology_of_the_surface(name: str) -> None:
    """Linear interpolation is off by at most an eighth of cell^2 times the curvature, so volume and area are, too."""
    function, options, distance, volume, area, euler_number = CASES[name]
    vertices, faces = extract_surface(function, BOX, RESOLUTION, **options)
    assert (vertices.dtype, faces.dtype) == (np.float64, np.int64)
    assert float(distance(torch.from_numpy(vertices).float()).abs().max()) < LARGEST_CELL**2
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.euler_number == euler_number
    assert mesh.volume == pytest.approx(volume, rel=0.01)  # negative if faces looked inward
    assert mesh.area == pytest.approx(area, rel=0.005)


def test_faces_look_away_from_the_inside() -> None:
    vertices, faces = extract_surface(torus, BOX, RESOLUTION)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normals, centers = np.cross(b - a, c - a), (a + b + c) / 3
    on_ring = centers * [1, 1, 0]
    outward = centers - RING * on_ring / np.linalg.norm(on_ring, axis=1, keepdims=True)
    cosines = (normals * outward).sum(1) / (np.linalg.norm(normals, axis=1) * np.linalg.norm(outward, axis=1))
    assert np.median(cosines) > 0.99
    assert (cosines > 0).all()


@pytest.mark.parametrize("block_size", [1000, 4096, 10**9])
def test_mesh_does_not_depend_on_the_block_size(block_size: int) -> None:
    sizes = []

    def counted(points: Tensor) -> Tensor:
        sizes.append(len(points))
        return torus(points)

    expected = extract_surface(torus, BOX, 40)
    found = extract_surface(counted, BOX, 40, block_size=block_size)
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, reference)
    assert max(sizes) <= block_size
    assert sum(sizes) == 40**3


def test_grid_includes_the_faces_of_the_box() -> None:
    seen = []

    def recorded(points: Tensor) -> Tensor:
        seen.append(points)
        return sphere(points)

    extract_surface(recorded, BOX, 5)
    points = torch.cat(seen)
    for axis in range(3):
        expected = torch.linspace(BOX[0][axis], BOX[1][axis], 5)
        torch.testing.assert_close(points[:, axis].unique(), expected)


def test_progress_reaches_the_total_in_steps_of_blocks() -> None:
    told = []
    extract_surface(sphere, BOX, 10, block_size=300, progress=lambda done, total: told.append((done, total)))
    assert told == [(300, 1000), (600, 1000), (900, 1000), (1000, 1000)]


@pytest.mark.parametrize("seed", range(5))
def test_mesh_is_closed_even_where_grid_values_equal_the_level(seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (10, 10, 10))).float()
    solid = torch.nn.functional.pad(values, (1, 1, 1, 1, 1, 1), value=1.0).flatten()
    _, faces = extract_surface(lambda points: solid, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 12)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_surface_that_leaves_the_box_ends_at_it() -> None:
    vertices, _ = extract_surface(sphere, ((0.1, -1.0, -1.0), (1.0, 1.0, 1.0)), 40)
    assert vertices[:, 0].min() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("offset", "inside", "where"),
    [(3, "below", "outside"), (-3, "below", "inside"), (3, "above", "inside"), (-3, "above", "outside")],
)
def test_empty_surface_says_on_which_side_everything_lies(offset: float, inside, where: str) -> None:
    with pytest.raises(EmptySurfaceError, match=f"no surface.*lie {where}"):
        extract_surface(lambda points: sphere(points) + offset, BOX, 8, inside=inside)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((sphere, BOX, 1), "resolution is 1"),
        ((sphere, BOX[::-1], 8), "lowest corner first"),
        ((lambda points: sphere(points) / 0, BOX, 8), "not finite"),
        ((lambda points: sphere(points).where(points[:, 0] < 1, math.nan), BOX, 8), "not finite"),
    ],
)
def test_unusable_input_is_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        extract_surface(*arguments)


def test_block_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        extract_surface(sphere, BOX, 8, block_size=0)
