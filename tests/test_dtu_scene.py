"""The reader of NeuS's layout: cameras against known ones, pixel values, and errors that name file, view and cure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dtu_scans import SCALE_MAT, SIZE, change_cameras, known_camera, world_matrix, write_scan
from PIL import Image

from crossnorm_ns.data.dtu_scene import load_image, load_mask, read_scale_mat, read_scene
from crossnorm_ns.data.errors import DataError

RNG = np.random.default_rng(3)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_scan(tmp_path / "scan")
    return tmp_path / "scan"


def raises(scan: Path, *words: str, factor: int = 1) -> None:
    """read_scene refuses the scan with one line that holds all these words."""
    with pytest.raises(DataError) as caught:
        read_scene(scan, factor)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert "\n" not in str(caught.value)


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels of 3-D points under a 3x4 projection."""
    pixels = points @ matrix[:, :3].T + matrix[:, 3]
    return pixels[:, :2] / pixels[:, 2:]


def test_known_cameras_are_found_again(tmp_path: Path) -> None:
    cameras = write_scan(tmp_path / "scan")
    scene = read_scene(tmp_path / "scan")
    assert (scene.width, scene.height) == SIZE
    np.testing.assert_array_equal(scene.scale_mat, SCALE_MAT)
    for view, (intrinsics, rotation, centre) in enumerate(cameras):
        np.testing.assert_allclose(scene.intrinsics[view], intrinsics, atol=1e-9)
        np.testing.assert_allclose(scene.camera_to_worlds[view], np.column_stack([rotation.T, centre]), atol=1e-9)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_projections_in_millimetres_and_in_the_unit_sphere_agree(scan: Path, factor: int) -> None:
    scene = read_scene(scan, factor)
    points = RNG.uniform(-0.6, 0.6, (20, 3))
    millimetres = points @ SCALE_MAT[:3, :3].T + SCALE_MAT[:3, 3]
    for view in range(4):
        rotation, centre = scene.camera_to_worlds[view, :, :3].T, scene.camera_to_worlds[view, :, 3]
        in_camera = scene.intrinsics[view] @ rotation @ np.column_stack([np.eye(3), -centre])
        np.testing.assert_allclose(project(scene.projections[view], millimetres), project(in_camera, points), atol=1e-9)


@pytest.mark.parametrize("factor", [2, 4])
def test_downscaled_cameras_follow_the_averaged_pictures(scan: Path, factor: int) -> None:
    """A small picture's red and green are the mean column and row of its block: where its pixel centre lies."""
    full, small = read_scene(scan), read_scene(scan, factor)
    assert (small.width, small.height) == (SIZE[0] // factor, SIZE[1] // factor)
    centres = 255 * load_image(small.image_paths[0], factor)[..., :2].reshape(-1, 2)
    row, column = np.indices((small.height, small.width)).reshape(2, -1)
    for view in range(4):
        rays = np.linalg.inv(full.intrinsics[view]) @ np.column_stack([centres, np.ones(len(centres))]).T
        pixels = (small.intrinsics[view] @ rays).T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], np.column_stack([column, row]), atol=1e-4)


def test_views_are_the_sorted_files(scan: Path) -> None:
    scene = read_scene(scan)
    assert [path.name for path in scene.image_paths] == [f"{view:06}.png" for view in range(4)]
    assert [path.name for path in scene.mask_paths] == [f"{view:03}.png" for view in range(4)]
    for view, path in enumerate(scene.image_paths):
        assert (255 * load_image(path)[..., 2] == view).all()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pictures_and_masks_are_block_means(scan: Path, factor: int) -> None:
    pixels = RNG.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    mask = 255 * RNG.integers(0, 2, SIZE[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(scan / "image" / "000001.png")
    Image.fromarray(mask).save(scan / "mask" / "001.png")
    blocks = (SIZE[1] // factor, factor, SIZE[0] // factor, factor)
    image, share = load_image(scan / "image" / "000001.png", factor), load_mask(scan / "mask" / "001.png", factor)
    assert image.dtype == np.float32 and share.dtype == np.float32
    np.testing.assert_allclose(image, (pixels / 255).reshape(*blocks, 3).mean(axis=(1, 3)), atol=1e-6)
    np.testing.assert_allclose(share, (mask / 255).reshape(blocks).mean(axis=(1, 3)), atol=1e-6)


def test_masks_with_three_channels_are_masks_with_one(scan: Path) -> None:
    path = scan / "mask" / "002.png"
    one = load_mask(path)
    Image.fromarray(np.asarray(Image.open(path))[..., None].repeat(3, axis=-1)).save(path)
    np.testing.assert_array_equal(load_mask(path), one)
    assert set(np.unique(one)) == {0, 1}


def test_alpha_of_pictures_is_left_out(scan: Path) -> None:
    path = scan / "image" / "000000.png"
    rgb = load_image(path)
    rgba = np.concatenate([np.asarray(Image.open(path)), np.full((*SIZE[::-1], 1), 7, dtype=np.uint8)], axis=-1)
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(load_image(path), rgb)


def test_real_scan_is_read_as_published(shared_data: Path) -> None:
    """DTU's cameras: 49 views of one camera, focal length 2892 pixels at 1600x1200, object within the unit sphere."""
    scene = read_scene(shared_data / "dtu" / "dtu_scan24")
    assert len(scene.image_paths) == len(scene.mask_paths) == len(scene.projections) == 49
    np.testing.assert_allclose(4 * scene.intrinsics[:, 0, 0], 2892.33, atol=0.01)
    np.testing.assert_allclose(scene.scale_mat[0, 0], 231.068, atol=1e-3)
    rotations = scene.camera_to_worlds[:, :, :3]
    np.testing.assert_allclose(
        rotations.transpose(0, 2, 1) @ rotations, np.broadcast_to(np.eye(3), (49, 3, 3)), atol=1e-9
    )
    assert np.abs(scene.intrinsics[:, 0, 1]).max() < 2e-4, "skew, which at most shifts pixels by a fifth of it"


def test_masks_of_the_real_scan_see_the_middle_of_the_unit_sphere_and_nothing_outside_of_it(shared_data: Path) -> None:
    scene = read_scene(shared_data / "dtu" / "dtu_scan24", 2)
    row, column = np.indices((scene.height, scene.width)).reshape(2, -1)
    pixels = np.stack([column, row, np.ones_like(row)])
    for view, path in enumerate(scene.mask_paths):
        mask = load_mask(path, 2).reshape(-1) > 0.5
        rotation, centre = scene.camera_to_worlds[view, :, :3], scene.camera_to_worlds[view, :, 3]
        rays = (rotation @ np.linalg.inv(scene.intrinsics[view]) @ pixels).T
        nearest = np.linalg.norm(np.cross(rays, centre), axis=-1) / np.linalg.norm(rays, axis=-1)
        assert mask[nearest.argmin()]
        assert nearest[mask].max() < 1


def test_missing_folder(tmp_path: Path) -> None:
    raises(tmp_path / "nowhere", "nowhere", "make_scene dtu")


def test_folder_above_the_scan_is_told_from_the_scan(scan: Path) -> None:
    raises(scan.parent, "cameras_sphere.npz", f"give {scan}")


@pytest.mark.parametrize(("kind", "name"), [("image", "000001.png"), ("mask", "001.png")])
def test_missing_picture_or_mask(scan: Path, kind: str, name: str) -> None:
    partner = {"image": scan / "mask" / "001.png", "mask": scan / "image" / "000001.png"}[kind]
    (scan / kind / name).unlink()
    raises(scan, str(partner), "number 1", f"{scan / kind}")


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_extra_picture_or_mask(scan: Path, kind: str) -> None:
    extra = scan / kind / "7.png"
    Image.new("L", SIZE, 255).save(extra)
    raises(scan, str(extra), "number 7", "remove")


def test_extra_picture_without_number(scan: Path) -> None:
    Image.new("RGB", SIZE).save(scan / "image" / "cover.png")
    raises(scan, "5 pictures in image but 4 in mask")


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_no_pictures_at_all(scan: Path, kind: str) -> None:
    for path in (scan / kind).iterdir():
        path.unlink()
    raises(scan, f"{scan / kind}/*.png")


def test_hidden_files_are_no_pictures(scan: Path) -> None:
    (scan / "image" / "._000000.png").write_bytes(b"of another system")
    assert len(read_scene(scan).image_paths) == 4


def test_numbers_without_zeros_that_sort_otherwise(scan: Path) -> None:
    for kind in ("image", "mask"):
        paths = sorted((scan / kind).iterdir())
        for path, number in zip(paths, (1, 2, 9, 10), strict=True):
            path.rename(path.with_name(f"{number}.png"))
    raises(scan, "10.png comes before 2.png", "pad the numbers with zeros")


def test_missing_camera(scan: Path) -> None:
    change_cameras(scan, world_mat_2=None)
    raises(scan, "cameras_sphere.npz", "world_mat_2", "4 pictures")
    change_cameras(scan, world_mat_2=np.eye(4), scale_mat_3=None)
    raises(scan, "scale_mat_3")


def test_extra_camera(scan: Path) -> None:
    change_cameras(scan, world_mat_4=np.eye(4), scale_mat_4=SCALE_MAT)
    raises(scan, "cameras_sphere.npz", "world_mat_4", "no picture")


@pytest.mark.parametrize("number", ["1" * 5000, "00"])
def test_extra_camera_whose_number_is_written_oddly(scan: Path, number: str) -> None:
    change_cameras(scan, **{f"world_mat_{number}": np.eye(4)})
    raises(scan, "cameras_sphere.npz", f"world_mat_{number}"[:40], "no picture")


def test_scale_matrix_outside_of_the_scene_is_read_where_that_is_allowed(scan: Path) -> None:
    outside = scan.parent / "outside.npz"
    (scan / "cameras_sphere.npz").rename(outside)
    (scan / "cameras_sphere.npz").symlink_to(outside)
    with pytest.raises(DataError, match="lies outside of the scene's folder"):
        read_scale_mat(scan)
    for found in (read_scale_mat(scan, allow_outside=True), read_scale_mat(outside)):
        np.testing.assert_allclose(found, SCALE_MAT)


def test_other_arrays_of_the_camera_file_do_not_matter(scan: Path) -> None:
    change_cameras(scan, camera_mat_9=np.eye(4), world_mat_inv_0=np.eye(4))
    assert len(read_scene(scan).projections) == 4


@pytest.mark.parametrize(("path", "size"), [("image/000002.png", (20, 16)), ("mask/001.png", (12, 8))])
def test_sizes_that_differ(scan: Path, path: str, size: tuple[int, int]) -> None:
    Image.new("L", size, 255).save(scan / path)
    raises(scan, str(scan / path), f"{size[0]}x{size[1]}", "24x16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world_mat_1": np.zeros((4, 4))}, ("world_mat_1", "singular")),
        ({"world_mat_1": np.ones((4, 4))}, ("world_mat_1", "singular")),
        ({"scale_mat_0": np.diag([0.0, 0, 0, 1])}, ("scale_mat_0", "singular")),
        ({"world_mat_3": np.full((4, 4), np.nan)}, ("world_mat_3", "NaN")),
        ({"scale_mat_2": np.diag([np.inf, 1, 1, 1])}, ("scale_mat_2", "infinity")),
        ({"world_mat_0": np.eye(3)}, ("world_mat_0", "(3, 3)")),
        ({"world_mat_0": np.full((4, 4), "a")}, ("world_mat_0", "real numbers")),
        ({"world_mat_0": np.eye(4) * 1j}, ("world_mat_0", "complex128")),
        ({"scale_mat_0": np.diag([230.0, 230, 100, 1])}, ("scale_mat_0", "uniform")),
        ({"scale_mat_0": np.diag([-230.0, -230, -230, 1])}, ("scale_mat_0", "uniform")),
        ({"scale_mat_2": np.diag([231.0, 231, 231, 1])}, ("scale_mat_2", "differs from scale_mat_0")),
    ],
)
def test_bad_matrices(scan: Path, change: dict[str, np.ndarray], words: tuple[str, ...]) -> None:
    change_cameras(scan, **change)
    raises(scan, "cameras_sphere.npz", *words)


def test_rounding_of_scale_matrices_to_float32_is_no_difference(scan: Path) -> None:
    change_cameras(scan, scale_mat_1=SCALE_MAT.astype(np.float32) * np.float32(1 + 1e-7))
    np.testing.assert_array_equal(read_scene(scan).scale_mat, SCALE_MAT)


def test_mirrored_camera(scan: Path) -> None:
    intrinsics, rotation, centre = known_camera(RNG)
    change_cameras(scan, world_mat_2=world_matrix(intrinsics @ np.diag([-1, 1, 1]), rotation, centre))
    raises(scan, "view 2", "mirrored")


def test_camera_that_looks_away_from_the_object(scan: Path) -> None:
    intrinsics, rotation, centre = known_camera(RNG)
    change_cameras(scan, world_mat_3=world_matrix(intrinsics, rotation, -centre))
    raises(scan, "view 3", "looks away")


@pytest.mark.parametrize(("skew", "fine"), [(0.2, True), (1.0, False)])
def test_skew_that_moves_pixels_is_refused(scan: Path, skew: float, fine: bool) -> None:
    """At the lowest row, 7.4 below the principal point at a focal length of 29.5, the shift is skew / 4."""
    intrinsics, rotation, centre = known_camera(RNG)
    intrinsics[0, 1] = skew
    change_cameras(scan, world_mat_1=world_matrix(intrinsics, rotation, centre))
    if fine:
        assert read_scene(scan).intrinsics[1, 0, 1] == pytest.approx(skew)
    else:
        raises(scan, "view 1", "skew", f"{skew * (8.1 + 0.5) / 29.5:.2g}")


def test_empty_mask(scan: Path) -> None:
    Image.new("L", SIZE).save(scan / "mask" / "003.png")
    raises(scan, str(scan / "mask" / "003.png"), "empty", "255")


@pytest.mark.parametrize("name", ["image/000001.png", "mask/001.png"])
@pytest.mark.parametrize("keep", [0, 20, -20])
def test_truncated_files(scan: Path, name: str, keep: int) -> None:
    path = scan / name
    path.write_bytes(path.read_bytes()[:keep])
    raises(scan, str(path), "copy it again")


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_truncated_picture_is_not_loaded(scan: Path, load: Callable[[Path], np.ndarray]) -> None:
    path = scan / "image" / "000001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"000001\.png .*copy it again"):
        load(path)


def test_damaged_picture(scan: Path) -> None:
    path = scan / "image" / "000002.png"
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    path.write_bytes(contents)
    raises(scan, str(path), "copy it again")


def test_sixteen_bit_pictures(scan: Path) -> None:
    path = scan / "mask" / "000.png"
    Image.fromarray(np.full(SIZE[::-1], 65535, dtype=np.uint16)).save(path)
    raises(scan, str(path), "8 bits")


@pytest.mark.parametrize("factor", [3, 5, 0, -2])
def test_factor_that_does_not_divide(scan: Path, factor: int) -> None:
    raises(scan, "24x16", f"downscale_factor {factor}", factor=factor)
    with pytest.raises(DataError, match="downscale_factor"):
        load_mask(scan / "mask" / "000.png", factor)


@pytest.mark.parametrize("contents", [b"", b"cameras", b"PK\x03\x04 cut short"])
def test_unreadable_camera_file(scan: Path, contents: bytes) -> None:
    (scan / "cameras_sphere.npz").write_bytes(contents)
    raises(scan, "cameras_sphere.npz", "copy it again")


def test_camera_file_of_pickled_objects_is_not_loaded(scan: Path) -> None:
    change_cameras(scan, world_mat_0=np.array([None] * 16, dtype=object).reshape(4, 4))
    raises(scan, "cameras_sphere.npz", "plain arrays", "float arrays")


def test_camera_file_that_is_a_single_array(scan: Path) -> None:
    with open(scan / "cameras_sphere.npz", "wb") as file:
        np.save(file, np.eye(4))
    raises(scan, "cameras_sphere.npz", "single array")


def test_reading_writes_nothing(scan: Path) -> None:
    before = sorted(scan.rglob("*"))
    read_scene(scan, 2)
    assert sorted(scan.rglob("*")) == before
