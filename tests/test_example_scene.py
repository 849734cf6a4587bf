"""The procedural scene: repeatable, complete or absent, and right in geometry, checked without its own ray tracer."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from crossnorm_ns.data.blender_scene import check_scene, has_split, load_image, read_split
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.example_scene import LIGHT, Box, Cone, Solid, Sphere, Torus, example_solids, render, trace
from crossnorm_ns.data.make_scene import CAMERA_ANGLE_X, blender, complete_folder, look_at_origin
from crossnorm_ns.limits import LimitError

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("example") / "scene"
    blender(out, resolution=48, train=6, val=2, test=3, seed=3)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Which world points lie in the solid, from the inequality that defines it."""
    rotation = np.eye(3) if solid.rotation is None else solid.rotation
    own = (points - solid.centre) @ rotation
    around, z = np.hypot(own[..., 0], own[..., 1]), own[..., 2]
    if isinstance(solid, Sphere):
        return (own**2).sum(axis=-1) <= solid.radius**2
    if isinstance(solid, Torus):
        return (around - solid.radius) ** 2 + z**2 <= solid.tube**2
    if isinstance(solid, Cone):
        share = 0.5 * (1 + z / solid.half_height)
        return (around <= (1 - share) * solid.bottom_radius + share * solid.top_radius) & (share >= 0) & (share <= 1)
    assert isinstance(solid, Box)
    return (np.abs(own) <= solid.half_size).all(axis=-1)


def points_in(solid: Solid, count: int) -> np.ndarray:
    """About this many random world points in the solid: those of points near it that lie inside."""
    if isinstance(solid, Torus):
        turn = RNG.uniform(0, 2 * math.pi, count)
        own = solid.radius * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=-1)
        own += RNG.uniform(-solid.tube, solid.tube, (count, 3))
    elif isinstance(solid, Cone):
        widest = max(solid.bottom_radius, solid.top_radius)
        own = RNG.uniform(-1, 1, (2 * count, 3)) * (widest, widest, solid.half_height)
    elif isinstance(solid, Sphere):
        own = RNG.uniform(-1, 1, (2 * count, 3)) * solid.radius
    else:
        assert isinstance(solid, Box)
        own = RNG.uniform(-1, 1, (count, 3)) * solid.half_size
    rotation = np.eye(3) if solid.rotation is None else solid.rotation
    world = own @ rotation.T + solid.centre
    return world[inside(solid, world)]


def pixels_of(points: np.ndarray, pose: np.ndarray, focal: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that world points project onto."""
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
    return np.floor(0.5 * size + focal * y / z).astype(int), np.floor(0.5 * size - focal * x / z).astype(int)


def test_same_seed_gives_the_same_bytes_and_another_seed_other_views(scene: Path, tmp_path: Path) -> None:
    blender(tmp_path / "again", resolution=48, train=6, val=2, test=3, seed=3)
    assert digests(tmp_path / "again") == digests(scene)
    blender(tmp_path / "other", resolution=48, train=1, val=0, test=3, seed=4)
    other, first = read_split(tmp_path / "other", "train"), read_split(scene, "train")
    assert not np.allclose(other.camera_to_worlds[0], first.camera_to_worlds[0])


def test_scene_has_the_layout_of_nerf_synthetic(scene: Path) -> None:
    check_scene(scene, ("train", "val", "test"), 2)
    sizes = {split: len(read_split(scene, split).names) for split in ("train", "val", "test")}
    assert sizes == {"train": 6, "val": 2, "test": 3}
    contents = json.loads((scene / "transforms_test.json").read_text())
    assert contents["camera_angle_x"] == pytest.approx(0.6911112)
    assert [frame["file_path"] for frame in contents["frames"]] == ["./test/r_0", "./test/r_1", "./test/r_2"]


def test_cameras_look_at_the_origin_from_above_with_z_up(scene: Path) -> None:
    for split in ("train", "val", "test"):
        for pose in read_split(scene, split).camera_to_worlds:
            position = pose[:, 3]
            assert np.linalg.norm(position) == pytest.approx(4, abs=1e-5)
            assert position[2] >= 0
            np.testing.assert_allclose(-pose[:, 2], -position / 4, atol=1e-6)
            assert pose[2, 0] == pytest.approx(0, abs=1e-6)
            assert pose[2, 1] >= 0


def test_train_cameras_are_uniform_over_the_hemisphere(tmp_path: Path) -> None:
    """Archimedes: the height of a uniform point on a sphere is uniform."""
    blender(tmp_path / "many", resolution=1, train=100, val=0, test=1, supersampling=1)
    positions = read_split(tmp_path / "many", "train").camera_to_worlds[:, :, 3]
    assert np.abs(np.sort(positions[:, 2]) / 4 - np.linspace(0, 1, 100)).max() < 0.15
    assert np.abs(positions[:, :2].mean(axis=0)).max() < 0.5


def test_alpha_is_straight_and_background_transparent(scene: Path) -> None:
    for path in read_split(scene, "train").image_paths:
        rgba = np.asarray(Image.open(path))
        alpha = rgba[..., 3]
        assert rgba.dtype == np.uint8 and rgba.shape == (48, 48, 4)
        assert (alpha == 255).any() and (alpha == 0).any() and ((alpha > 0) & (alpha < 255)).any()
        assert (rgba[alpha == 0] == 0).all()
        edge, inside = rgba[(alpha > 0) & (alpha < 128)][:, :3], rgba[alpha == 255][:, :3]
        assert edge.mean() > 0.5 * inside.mean()


def test_alpha_is_the_covered_share_of_the_pixel() -> None:
    """Against a render at nine times the rays; colours too, where the pixel is covered well."""
    pose = look_at_origin(0.4, 0.5)[:3]
    coarse, fine = render(pose, 60.0, 40, 40, 3), render(pose, 180.0, 120, 120, 3)
    blocks = fine.reshape(40, 3, 40, 3, 4)
    alpha = blocks[..., 3].mean(axis=(1, 3))
    assert np.abs(coarse[..., 3] - alpha).max() <= 4 / 9
    assert np.abs(coarse[..., 3] - alpha).mean() < 0.015
    premultiplied = (blocks[..., :3] * blocks[..., 3:]).mean(axis=(1, 3))
    assert np.abs(coarse[..., :3] * coarse[..., 3:] - premultiplied).mean() < 0.02


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.3, 0.2), (2.5, 0.7), (4.4, 1.3)])
def test_silhouette_is_that_of_projected_points(azimuth: float, elevation: float) -> None:
    size, focal = 100, 50 / math.tan(0.5 * CAMERA_ANGLE_X)
    pose = look_at_origin(azimuth, elevation)
    alpha = render(pose[:3], focal, size, size)[..., 3]
    splats = np.zeros((size, size), dtype=bool)
    for solid in example_solids():
        splats[pixels_of(points_in(solid, 30_000), pose, focal, size)] = True
    assert not (alpha > 0)[ndimage.maximum_filter(splats, 3) == 0].any()
    assert not splats[ndimage.maximum_filter(alpha, 3) == 0].any()
    assert alpha[ndimage.minimum_filter(splats, 3) == 1].mean() > 0.97


def test_known_points_are_opaque_in_two_views() -> None:
    """The tip of the roof, the top of the ball, a place on the ring and the foot of a post."""
    points = np.array([[-0.4, 0.25, 0.5], [-0.3, -0.5, 0.09], [0, 0.98, 0.71], [0.98, 0, -0.62]])
    focal = 100 / math.tan(0.5 * CAMERA_ANGLE_X)
    for pose in (look_at_origin(0.3, 0.2), look_at_origin(2.5, 0.7)):
        alpha = render(pose[:3], focal, 200, 200)[..., 3]
        assert (alpha[pixels_of(points, pose, focal, 200)] > 0.5).all()


def test_object_lies_within_every_picture_and_between_near_and_far() -> None:
    """The cameras see all of the ball of radius 4 sin(half the field of view) around the origin, 1.355."""
    for solid in example_solids():
        assert np.linalg.norm(points_in(solid, 5_000), axis=-1).max() < 4 * math.sin(0.5 * CAMERA_ANGLE_X)


@pytest.mark.parametrize("index", [0, 1, *range(11, 18)])
def test_rays_meet_each_solid_where_its_inequality_says(index: int) -> None:
    """Against small steps along the ray; the normal leads out of the solid."""
    solid, step = example_solids()[index], 2e-3
    targets = points_in(solid, 4_000)[:60] + RNG.normal(0, 0.02, (60, 3))
    directions = RNG.normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = targets - 4 * directions
    steps = np.arange(1.2, 6.8, step)
    within = inside(solid, origins[:, None] + steps[:, None] * directions[:, None])
    expected = np.where(within.any(axis=1), steps[within.argmax(axis=1)], np.inf)

    origins, directions = origins.astype(np.float32), directions.astype(np.float32)
    distances = solid.distance(solid.to_own(origins), solid.turn_to_own(directions))
    hits = np.isfinite(expected)
    assert hits.sum() > 20
    assert (distances[hits] <= expected[hits] + 1e-4).all()
    agree = np.isclose(distances, expected, atol=1.5 * step) | (np.isinf(distances) & ~hits)
    assert agree.mean() >= 0.95, "more than grazing rays, which the steps can miss, disagree"

    points = origins[hits] + distances[hits, None] * directions[hits]
    normals = solid.turn_to_world(solid.normal(solid.to_own(points)))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert (inside(solid, points - 2e-3 * normals) & ~inside(solid, points + 1e-3 * normals)).mean() >= 0.95


@pytest.mark.parametrize("index", [0, 1, *range(11, 18)])
def test_normals_are_perpendicular_to_the_surface(index: int) -> None:
    """Three parallel rays 1e-3 apart meet the surface in a small triangle."""
    solid = example_solids()[index]
    direction = np.array([0.36, 0.48, -0.8])
    sideways = np.array([[0, 0, 0], [0.8, -0.6, 0], [0.48, 0.64, 0.6]]) * 1e-3
    origins = points_in(solid, 4_000)[:100, None] - 2 * direction + sideways
    rays = origins.reshape(-1, 3)
    distances = solid.distance(solid.to_own(rays), solid.turn_to_own(np.broadcast_to(direction, rays.shape)))
    triangles = origins + distances.reshape(-1, 3, 1) * direction
    triangles = triangles[np.isfinite(triangles).all(axis=(1, 2))]
    facets = np.cross(triangles[:, 2] - triangles[:, 0], triangles[:, 1] - triangles[:, 0])
    facets *= -np.sign(facets @ direction)[:, None] / np.linalg.norm(facets, axis=-1, keepdims=True)
    normals = solid.turn_to_world(solid.normal(solid.to_own(triangles[:, 0])))
    assert len(normals) > 70
    assert ((normals * facets).sum(axis=-1) > 0.99).mean() > 0.85


def test_nearer_solids_hide_farther_ones() -> None:
    """The pink ball is seen from its own side; from the other the house, whose bricks are never bluer than green."""
    ball, focal = np.array([[-0.3, -0.5, 0.01]]), 100 / math.tan(0.5 * CAMERA_ANGLE_X)
    behind_house = math.atan2(0.25 + 0.5, -0.4 + 0.3)
    for azimuth, seen in ((behind_house, False), (behind_house + math.pi, True)):
        pose = look_at_origin(azimuth, 0.0)
        _, green, blue, alpha = render(pose[:3], focal, 200, 200)[pixels_of(ball, pose, focal, 200)][0]
        assert alpha == 1
        assert (blue > green + 0.1) == seen


def test_glossy_surfaces_change_colour_with_the_view() -> None:
    point = np.array([-0.3, -0.5, 0.01]) + 0.1 * LIGHT
    across = np.cross(LIGHT, [0.0, 0.0, 1.0])
    away = np.stack([LIGHT, 0.5 * LIGHT + 0.866 * across / np.linalg.norm(across)])
    colours = trace((point + 0.1 * away).astype(np.float32), (-away).astype(np.float32))
    assert (colours[:, 3] == 1).all()
    assert np.abs(colours[0, :3] - colours[1, :3]).max() > 0.1


def test_scene_without_validation_views(tmp_path: Path) -> None:
    blender(tmp_path / "scene", resolution=8, train=1, val=0, test=1)
    assert not has_split(tmp_path / "scene", "val")


def test_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for out in (tmp_path, kept):
        with pytest.raises((DataError, LimitError), match="folder"):
            blender(out, resolution=8, train=1, val=0, test=1)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"] and kept.read_text() == "mine"


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    blender(tmp_path / "out", resolution=8, train=1, val=1, test=1)
    check_scene(tmp_path / "out", ("train", "val", "test"))


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), complete_folder(tmp_path / "deep" / "out") as folder:
        (folder / "half.png").write_bytes(b"half")
        assert not (tmp_path / "deep" / "out").exists()
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("option", ["resolution", "train", "test", "supersampling"])
def test_numbers_too_small_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(LimitError, match=f"--{option} is 0"):
        blender(tmp_path / "out", **{option: 0})
    assert list(tmp_path.iterdir()) == []


def test_command_writes_a_scene_and_explains_refusals_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crossnorm_ns.data.make_scene", "blender", "out"]
    options = ["--resolution", "8", "--train", "2", "--val", "0", "--test", "1", "--seed", "5"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "2 train" in done.stdout
    assert load_image(tmp_path / "out" / "train" / "r_1.png").shape == (8, 8, 4)
    again = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "not an empty folder" in again.stderr and "Traceback" not in again.stderr
