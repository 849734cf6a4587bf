"""The example scan: its surface against closed forms, its pictures against the surface, its files against DTU's."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from crossnorm_ns.data.dtu_scene import load_image, load_mask, read_scene
from crossnorm_ns.data.example_object import BOTTOM, RADIUS, STEEPEST, gradient, signed_distance, trace
from crossnorm_ns.data.example_reference import surface_points
from crossnorm_ns.data.make_scene import dtu
from crossnorm_ns.limits import LimitError
from eval.chamfer import compare
from eval.dtu_files import load_reference

SIZE = 96
AREA = 5.79
"""Of the object's surface, where the unit sphere has a radius of 1."""
DENSITY = 200_000 / AREA
"""Points of the scan below on an area of 1."""


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("example") / "scan"
    dtu(out, resolution=SIZE, views=6, points=200_000, seed=3)
    return out


@pytest.fixture(scope="module")
def reference_points(scan: Path) -> np.ndarray:
    """The written points of the surface, in unit-sphere coordinates."""
    return (load_reference(scan, 0).points - read_scene(scan).scale_mat[:3, 3]) / 100


def ball(count: int, radius: float = 1.0) -> np.ndarray:
    """Random points of a ball around the origin."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return radius * rng.random((count, 1)) ** (1 / 3) * directions


@pytest.mark.parametrize(
    ("point", "outwards"),
    [
        ((0, 0, 0.76), (0, 0, 1)),  # top of the ball, where bumps vanish
        ((0.692, 0, -0.02), (1, 0, 0)),  # outermost of a handle: 0.49 + 0.16 + 0.042
        ((-0.49, 0.042, 0.14), (0, 1, 0)),  # side of the other, at its top
        ((0.2, 0.1, -0.68), (0, 0, -1)),  # under the pedestal
        ((0.17, 0, 0.42), (1, 0, 0)),  # edge of the disc
    ],
)
def test_distance_near_simple_parts_is_the_known_one(
    point: tuple[float, float, float], outwards: tuple[float, float, float]
) -> None:
    heights = np.array([-0.01, 0.0, 0.02])
    found = signed_distance(np.array(point) + heights[:, None] * np.array(outwards))
    np.testing.assert_allclose(found, heights, atol=1e-3)


def test_hollows_are_outside() -> None:
    """In the bowl, in a handle, between bowl and pedestal, above the object."""
    hollows = np.array([[0.2, 0.1, 0.0], [0.5, 0, -0.02], [0.35, 0.1, -0.45], [0, 0, 0.9]])
    assert (signed_distance(hollows) > 0.02).all()
    solid = np.array([[0, 0, 0.6], [0, 0, 0.2], [0.1, 0.2, -0.6], [0.42, 0, 0.0], [0, 0.2, -0.38]])
    assert (signed_distance(solid) < 0).all()


def test_object_lies_within_its_radius_and_stands_on_its_bottom() -> None:
    points = ball(400_000)
    inside = points[signed_distance(points) < 0]
    assert 0.85 < np.linalg.norm(inside, axis=-1).max() <= RADIUS
    assert BOTTOM <= inside[:, 2].min() < BOTTOM + 0.01


def test_distances_are_no_steeper_than_stated() -> None:
    """Between random points of the unit sphere that are 1e-4 apart."""
    points, step = ball(200_000), 1e-4
    away = np.random.default_rng(1).normal(size=points.shape)
    away *= step / np.linalg.norm(away, axis=-1, keepdims=True)
    change = np.abs(signed_distance(points + away) - signed_distance(points)) / step
    assert 1 < change.max() < STEEPEST


def test_gradient_is_that_of_the_distance() -> None:
    points, step = ball(2_000), 1e-6
    found = gradient(points)
    for axis in range(3):
        offset = step * np.eye(3)[axis]
        expected = (signed_distance(points + offset) - signed_distance(points - offset)) / (2 * step)
        assert np.median(np.abs(found[:, axis] - expected)) < 1e-4


def test_distance_is_close_to_that_of_the_reference_points(reference_points: np.ndarray) -> None:
    """Within 0.02 to 0.05 of the surface: never much too large, and of the stated accuracy for most points."""
    from scipy.spatial import cKDTree

    points = ball(20_000)
    true = cKDTree(reference_points).query(points)[0]
    near = (true > 0.02) & (true < 0.05)
    ratio = np.abs(signed_distance(points[near])) / true[near]
    assert ratio.max() < 1.2
    assert np.quantile(ratio, 0.05) > 0.7
    assert np.abs(np.median(ratio) - 1) < 0.01


def test_reference_points_lie_on_the_surface_in_millimetres(reference_points: np.ndarray) -> None:
    """To the rounding of 620 mm to float32, 3e-5 mm."""
    assert np.abs(100 * signed_distance(reference_points)).max() < 2e-3


def test_reference_points_are_spread_evenly(reference_points: np.ndarray) -> None:
    """On a part of the pedestal's flat under side, 0.3 by 0.3 in its turned frame, and on the upper half of a ball."""
    cos, sin = np.cos(0.4), np.sin(0.4)
    x, y, z = reference_points.T
    turned = np.maximum(np.abs(cos * x + sin * y), np.abs(cos * y - sin * x)) < 0.3
    assert (turned & (z < BOTTOM + 1e-4)).sum() == pytest.approx(0.36 * DENSITY, rel=0.02)
    half_sphere = 2 * np.pi * 0.16**2
    assert (z > 0.6).sum() == pytest.approx(half_sphere * DENSITY, rel=0.05)


def test_rays_end_where_small_steps_first_enter_the_object() -> None:
    rng = np.random.default_rng(5)
    targets, step = ball(300, 0.8), 1e-3
    directions = rng.normal(size=targets.shape)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = targets - 3 * directions
    steps = np.arange(1, 5, step)
    values = signed_distance(origins[:, None] + steps[:, None] * directions[:, None])
    expected = np.where((values < 0).any(axis=1), steps[(values < 0).argmax(axis=1)], np.inf)
    found = trace(origins, directions)
    clear = np.abs(values.min(axis=1)) > 2e-3
    assert np.isfinite(expected).sum() > 60 and clear.mean() > 0.95
    same = (found <= expected + 1e-4) & (found >= expected - step - 1e-3)
    assert (same | (np.isinf(found) & np.isinf(expected)))[clear].mean() > 0.98


def test_rays_that_lead_away_or_pass_by_meet_nothing() -> None:
    origins = np.array([[0, 0, 3.0], [2, 2, 0], [0, 0, 3.0]])
    directions = np.array([[0, 0, 1.0], [0, 0, 1], [0, 0, -1]])
    np.testing.assert_allclose(trace(origins, directions), [np.inf, np.inf, 3 - 0.76], atol=1e-3)


def rays_of(scan: Path, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions of all pixel centres, from the matrices in the file alone."""
    with np.load(scan / "cameras_sphere.npz") as arrays:
        matrix = arrays[f"world_mat_{view}"] @ arrays[f"scale_mat_{view}"]
    row, column = np.indices((SIZE, SIZE)).reshape(2, -1)
    directions = np.linalg.solve(matrix[:3, :3], np.stack([column, row, np.ones(SIZE * SIZE)])).T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(-np.linalg.solve(matrix[:3, :3], matrix[:3, 3]), directions.shape), directions


def test_masks_are_where_rays_pass_through_the_object(scan: Path) -> None:
    """Small steps along the rays of pixel centres; rays within half a pixel's width of the outline may do either."""
    steps = np.arange(2, 4, 0.01)
    for view in (0, 2, 5):
        origins, directions = rays_of(scan, view)
        nearest = np.full(len(origins), np.inf)
        for step in steps:
            nearest = np.minimum(nearest, signed_distance(origins + step * directions))
        mask = load_mask(scan / "mask" / f"{view:03}.png").reshape(-1) > 0.5
        half_pixel = 0.5 * 3 / (1.5 * SIZE)
        assert mask[nearest < -half_pixel].all()
        assert not mask[nearest > half_pixel].any()
        assert (nearest < -half_pixel).sum() > 200 and (nearest > half_pixel).sum() > 1000


def test_pictures_are_black_outside_and_textured_inside_of_the_masks(scan: Path) -> None:
    for view in range(6):
        image = load_image(scan / "image" / f"{view:03}.png")
        mask = load_mask(scan / "mask" / f"{view:03}.png") > 0.5
        edge = np.zeros_like(mask)
        for rows, columns in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            edge |= np.roll(mask, (rows, columns), axis=(0, 1))
        assert (image[~mask & ~edge] == 0).all()
        assert image[mask].std(axis=0).min() > 0.1
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any(), "the picture's frame cuts the object"


def test_views_agree_on_the_colours_of_the_surface(scan: Path) -> None:
    """Points that two cameras see look the same in both pictures, unlike points at random."""
    scene = read_scene(scan)
    points = surface_points(20_000, seed=1)
    millimetres = points @ scene.scale_mat[:3, :3].T + scene.scale_mat[:3, 3]
    seen, colours = np.ones(len(points), dtype=bool), []
    for view in range(2):
        origin = scene.camera_to_worlds[view, :, 3]
        far = np.linalg.norm(points - origin, axis=-1)
        seen &= trace(np.broadcast_to(origin, points.shape), (points - origin) / far[:, None]) > far - 0.01
        pixels = millimetres @ scene.projections[view, :, :3].T + scene.projections[view, :, 3]
        column, row = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        colours.append(load_image(scene.image_paths[view])[row, column])
    assert seen.sum() > 2_000
    difference = np.abs(colours[0] - colours[1])[seen]
    at_random = np.abs(colours[0][seen] - np.roll(colours[1][seen], 1, axis=0))
    assert np.median(difference) < 0.05
    assert np.median(at_random) > 0.1


def test_scan_is_as_dtu_in_millimetres_far_from_the_origin(scan: Path) -> None:
    scene = read_scene(scan)
    assert len(scene.image_paths) == 6 and (scene.width, scene.height) == (SIZE, SIZE)
    reference = load_reference(scan, 0)
    assert np.linalg.norm(reference.points, axis=-1).min() > 500
    unit = (reference.points - scene.scale_mat[:3, 3]) / scene.scale_mat[0, 0]
    assert np.linalg.norm(unit, axis=-1).max() <= RADIUS
    elevations = np.degrees(np.arcsin(scene.camera_to_worlds[:, 2, 3] / 3))
    assert (elevations > 5).all() and (elevations < 75).all() and np.ptp(elevations) > 45
    np.testing.assert_allclose(np.linalg.norm(scene.camera_to_worlds[:, :, 3], axis=-1), 3, atol=1e-9)


def test_observed_volume_and_plane_are_laid_out_as_dtu_reads_them(scan: Path) -> None:
    observed = loadmat(scan / "ObsMask" / "ObsMask0_10.mat")
    grid, box, resolution = observed["ObsMask"], observed["BB"], observed["Res"].item()
    assert grid.ndim == 3 and set(np.unique(grid)) == {0, 1} and box.shape == (2, 3)
    np.testing.assert_allclose(np.rint((box[1] - box[0]) / resolution) + 1, grid.shape)
    plane = loadmat(scan / "ObsMask" / "Plane0.mat")["P"]
    assert plane.shape == (4, 1)
    points = load_reference(scan, 0).points
    height = points @ plane[:3, 0] + plane[3, 0]
    cell = np.rint((points - box[0]) / resolution).astype(int)
    inside = grid[tuple(cell.T)].astype(bool)
    assert inside[height > resolution].all() and not inside[height < -resolution].any()
    assert height.min() == pytest.approx(-2, abs=1e-3), "the under side lies 2 mm below the plane"
    assert (height > 0).mean() > 0.8


def test_reference_is_nearly_its_own_surface(scan: Path) -> None:
    """The mean distance from a point to the nearest of n even ones per area is 0.5 / sqrt(n)."""
    other = surface_points(100_000, seed=9) * 100 + read_scene(scan).scale_mat[:3, 3]
    result = compare(other, load_reference(scan, 0))
    assert result.accuracy == pytest.approx(100 * 0.5 / DENSITY**0.5, rel=0.03)
    assert result.completeness == pytest.approx(100 * 0.5 / (DENSITY / 2) ** 0.5, rel=0.1)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mat")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_scan(tmp_path: Path) -> None:
    """Files of Matlab hold the time at which they were written."""
    scans = [tmp_path / name for name in ("first", "again")]
    for scan in scans:
        dtu(scan, resolution=16, views=2, points=20_000, seed=3)
    assert digests(scans[1]) == digests(scans[0])
    for name in ("ObsMask0_10", "Plane0"):
        first, again = (loadmat(scan / "ObsMask" / f"{name}.mat") for scan in scans)
        for key in first.keys() - {"__header__", "__version__", "__globals__"}:
            np.testing.assert_array_equal(first[key], again[key])


@pytest.mark.parametrize(
    ("option", "value"), [("resolution", 0), ("views", 0), ("points", 0), ("supersampling", 0), ("scan", -1)]
)
def test_numbers_too_small_are_refused(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(LimitError, match=f"--{option} is {value}"):
        dtu(tmp_path / "out", **{option: value})
    assert list(tmp_path.iterdir()) == []


def test_command_writes_a_scan_and_explains_refusals_without_a_traceback(scan: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crossnorm_ns.data.make_scene", "dtu", "out"]
    options = ["--resolution", "8", "--views", "6", "--seed", "5", "--scan", "24", "--points", "50000"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "6 views" in done.stdout and "scan 24" in done.stdout
    out = tmp_path / "out"
    assert Image.open(out / "image" / "005.png").size == (8, 8)
    assert len(load_reference(out, 24).points) > 49_000
    centres, others = (read_scene(folder).camera_to_worlds[:, :, 3] for folder in (out, scan))
    assert np.linalg.norm(centres - others, axis=-1).min() > 0.01, "another seed, other views"
    again = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "not an empty folder" in again.stderr and "Traceback" not in again.stderr
