"""The Blender reader: pixel values, geometry, and errors that name file, frame and cure."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossnorm_ns.data import blender_scene, official_blender
from crossnorm_ns.data.blender_scene import check_scene, composite_on_white, has_split, load_image, read_split
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.official_blender import official_scene, official_scenes

ANGLE = 0.6911112070083618


def look_along_minus_z(distance: float = 4.0) -> list[list[float]]:
    """A camera on the z axis with the world's x to the right and y up."""
    return [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, distance], [0, 0, 0, 1]]


def write_split(scene: Path, split: str, num_frames: int = 3, size: tuple[int, int] = (12, 8)) -> dict:
    """Writes random RGBA pictures and their json; gives the json's contents back."""
    rng = np.random.default_rng(num_frames)
    (scene / split).mkdir(parents=True)
    frames = []
    for index in range(num_frames):
        pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        Image.fromarray(pixels).save(scene / split / f"r_{index}.png")
        frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": look_along_minus_z()})
    contents = {"camera_angle_x": ANGLE, "frames": frames}
    rewrite(scene, split, contents)
    return contents


def rewrite(scene: Path, split: str, contents: object) -> None:
    (scene / f"transforms_{split}.json").write_text(json.dumps(contents))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    folder = tmp_path / "scene"
    for split in ("train", "test"):
        write_split(folder, split)
    return folder


def raises(scene: Path, *words: str, factor: int = 1) -> None:
    """check_scene refuses the scene with a message that holds all these words."""
    with pytest.raises(DataError) as caught:
        check_scene(scene, ["train", "test"], factor)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def test_full_size_picture_is_the_file_over_255(scene: Path) -> None:
    path = scene / "train" / "r_0.png"
    rgba = load_image(path)
    assert rgba.dtype == np.float32
    np.testing.assert_array_equal(rgba, np.asarray(Image.open(path)).astype(np.float32) / 255)


@pytest.mark.parametrize("factor", [2, 4])
def test_smaller_picture_is_the_block_mean_of_straight_alpha(scene: Path, factor: int) -> None:
    path = scene / "train" / "r_1.png"
    full = np.asarray(Image.open(path)) / 255
    expected = np.zeros((8 // factor, 12 // factor, 4))
    for row in range(8):
        for column in range(12):
            expected[row // factor, column // factor] += full[row, column] / factor**2
    np.testing.assert_allclose(load_image(path, factor), expected, atol=1e-6)


def test_white_shows_where_alpha_does_not_cover() -> None:
    rgba = np.array([[0.2, 0.4, 0.6, 1.0], [0.2, 0.4, 0.6, 0.0], [0.2, 0.4, 0.6, 0.25]], dtype=np.float32)
    expected = [[0.2, 0.4, 0.6], [1.0, 1.0, 1.0], [0.8, 0.85, 0.9]]
    np.testing.assert_allclose(composite_on_white(rgba), expected, atol=1e-6)


def test_averaging_comes_before_compositing(tmp_path: Path) -> None:
    """Half the block opaque black, half transparent red: the two orders differ, mip-NeRF averages first."""
    pixels = np.array([[[0, 0, 0, 255], [255, 0, 0, 0]]] * 2, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rgb = composite_on_white(load_image(tmp_path / "a.png", 2))
    np.testing.assert_allclose(rgb, [[[0.5 * 0.5 + 0.5, 0.5, 0.5]]], atol=1e-6)


def test_focal_length_follows_the_downscaled_width(scene: Path) -> None:
    full, half = read_split(scene, "train"), read_split(scene, "train", 2)
    assert (full.width, full.height, half.width, half.height) == (12, 8, 6, 4)
    assert full.focal == pytest.approx(6 / math.tan(ANGLE / 2))
    assert half.focal == pytest.approx(full.focal / 2)


def test_focal_length_of_official_scenes_is_the_known_one(shared_data: Path) -> None:
    """1111.111 pixels at 800x800 is quoted throughout the literature."""
    lego = read_split(shared_data / "blender" / "lego", "train")
    assert (lego.width, lego.height) == (100, 100)
    assert 8 * lego.focal == pytest.approx(1111.1110, abs=1e-3)


@pytest.mark.parametrize("place", ["../r_0", "./train/../../r_0", "absolute"])
def test_pictures_outside_of_the_scene_are_read_only_where_that_is_allowed(scene: Path, place: str) -> None:
    (scene / "train" / "r_0.png").rename(scene.parent / "r_0.png")
    path = scene / "transforms_train.json"
    contents = json.loads(path.read_text())
    contents["frames"][0]["file_path"] = str(scene.parent / "r_0") if place == "absolute" else place
    path.write_text(json.dumps(contents))
    for read in (lambda: read_split(scene, "train"), lambda: check_scene(scene, ["train"])):
        with pytest.raises(DataError, match=r"frame 0: its picture .* lies outside .*--allow-outside"):
            read()
    check_scene(scene, ["train"], allow_outside=True)
    assert read_split(scene, "train", allow_outside=True).image_paths[0].resolve() == scene.parent / "r_0.png"


def test_json_outside_of_the_scene_is_read_only_where_that_is_allowed(scene: Path) -> None:
    path = scene / "transforms_train.json"
    path.rename(scene.parent / "elsewhere.json")
    path.symlink_to(scene.parent / "elsewhere.json")
    for read in (lambda: read_split(scene, "train"), lambda: check_scene(scene, ["train"])):
        with pytest.raises(DataError, match=r"transforms_train\.json lies outside .*--allow-outside"):
            read()
    check_scene(scene, ["train"], allow_outside=True)
    (scene / "inside.json").write_text(path.read_text())
    path.unlink()
    path.symlink_to("inside.json")
    check_scene(scene, ["train"])


def test_detours_within_the_scene_are_no_matter(scene: Path) -> None:
    path = scene / "transforms_train.json"
    path.write_text(path.read_text().replace("./train/r_0", "./train/../train/r_0"))
    assert read_split(scene, "train").image_paths[0].resolve() == scene / "train" / "r_0.png"


def test_frames_keep_the_order_of_the_json_file(scene: Path) -> None:
    contents = json.loads((scene / "transforms_train.json").read_text())
    contents["frames"] = [contents["frames"][index] for index in (2, 0, 1)]
    contents["frames"][1]["file_path"] += ".png"
    contents["frames"][1]["transform_matrix"] = look_along_minus_z(7.0)
    rewrite(scene, "train", contents)
    split = read_split(scene, "train")
    assert split.names == ("r_2", "r_0", "r_1")
    assert [path.name for path in split.image_paths] == ["r_2.png", "r_0.png", "r_1.png"]
    assert split.camera_to_worlds.shape == (3, 3, 4)
    np.testing.assert_array_equal(split.camera_to_worlds[:, 2, 3], [4, 7, 4])


def test_real_scene_passes_the_check(shared_data: Path) -> None:
    lego = shared_data / "blender" / "lego"
    assert has_split(lego, "val")
    check_scene(lego, ("train", "val", "test"), 2)
    assert len(read_split(lego, "test").names) == 200


def test_missing_folder(tmp_path: Path) -> None:
    raises(tmp_path / "nowhere", "nowhere", "make_scene")


def test_missing_json(scene: Path) -> None:
    (scene / "transforms_test.json").unlink()
    raises(scene, "transforms_test.json")


def test_folder_above_the_scene_is_told_from_the_scene(scene: Path) -> None:
    raises(scene.parent, "transforms_train.json", f"give {scene}")


@pytest.mark.parametrize("text", ["{", '"scene"', "\udcff", "[" * 100_000])
def test_broken_json(scene: Path, text: str) -> None:
    (scene / "transforms_train.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    raises(scene, "transforms_train.json", "json")


@pytest.mark.parametrize("angle", [None, "0.69", 0, -1, 3.2, math.nan, True])
def test_bad_camera_angle(scene: Path, angle: object) -> None:
    contents = json.loads((scene / "transforms_train.json").read_text())
    rewrite(scene, "train", {**contents, "camera_angle_x": angle})
    raises(scene, "transforms_train.json", "camera_angle_x", repr(angle))


@pytest.mark.parametrize("frames", [[], None, {"a": 1}])
def test_empty_split(scene: Path, frames: object) -> None:
    rewrite(scene, "test", {"camera_angle_x": ANGLE, "frames": frames})
    raises(scene, "transforms_test.json", "no frames")


@pytest.mark.parametrize("frame", ["r_0", {}, {"file_path": 3}])
def test_frame_without_file_path(scene: Path, frame: object) -> None:
    contents = json.loads((scene / "transforms_train.json").read_text())
    contents["frames"][1] = frame
    rewrite(scene, "train", contents)
    raises(scene, "transforms_train.json", "frame 1", "file_path")


def test_missing_picture(scene: Path) -> None:
    (scene / "train" / "r_2.png").unlink()
    raises(scene, "transforms_train.json", "frame 2", "./train/r_2", str(scene / "train" / "r_2.png"))


def set_matrix(scene: Path, matrix: object) -> None:
    contents = json.loads((scene / "transforms_train.json").read_text())
    contents["frames"][1]["transform_matrix"] = matrix
    rewrite(scene, "train", contents)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (None, "transform_matrix"),
        ([[1, 0, 0, 0]] * 2, "(2, 4)"),
        ([[1, 0, 0, 0], [0, 1, 0]], "not a matrix"),
        ([["a"] * 4] * 4, "not a matrix"),
        ([[1, 0, 0, 10**400], [0, 1, 0, 0], [0, 0, 1, 4]], "not a matrix"),
        (look_along_minus_z(1e39), "beyond single precision"),
        ([*look_along_minus_z()[:2], [0, 0, 1, math.nan], [0, 0, 0, 1]], "NaN"),
        ([*look_along_minus_z()[:2], [0, 0, math.inf, 4], [0, 0, 0, 1]], "infinity"),
        ([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 4], [0, 0, 0, 1]], "not a rotation"),
        ([[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]], "determinant -1"),
        (np.transpose(look_along_minus_z()).tolist(), "transposed"),
    ],
)
def test_bad_matrix(scene: Path, matrix: object, words: str) -> None:
    set_matrix(scene, matrix)
    raises(scene, "transforms_train.json", "frame 1", "./train/r_1", words)


def test_matrix_with_the_rounding_of_float32_is_rigid(scene: Path, shared_data: Path) -> None:
    set_matrix(scene, look_along_minus_z()[:3])
    assert read_split(scene, "train").camera_to_worlds.shape == (3, 3, 4)
    official = read_split(shared_data / "blender" / "lego", "train")
    np.testing.assert_allclose(np.linalg.det(official.camera_to_worlds[:, :, :3]), 1, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 20, 100, -20])
def test_truncated_picture(scene: Path, keep: int) -> None:
    path = scene / "train" / "r_1.png"
    path.write_bytes(path.read_bytes()[:keep])
    raises(scene, str(path), "frame 1", "copy it again")


def test_truncated_picture_is_not_loaded(scene: Path) -> None:
    path = scene / "train" / "r_1.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"r_1\.png .*copy it again"):
        load_image(path)


def test_damaged_picture(scene: Path) -> None:
    path = scene / "train" / "r_1.png"
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    path.write_bytes(contents)
    raises(scene, str(path), "frame 1", "copy it again")


def test_picture_of_another_size(scene: Path) -> None:
    Image.new("RGBA", (10, 8)).save(scene / "test" / "r_2.png")
    raises(scene, str(scene / "test" / "r_2.png"), "frame 2", "10x8", "12x8")


def test_a_picture_that_many_frames_name_is_read_once(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = json.loads((scene / "transforms_train.json").read_text())
    rewrite(scene, "train", contents | {"frames": contents["frames"] * 50})
    read, resolved = [], []
    original, check_inside = blender_scene.size_and_mode, blender_scene.check_inside
    monkeypatch.setattr(blender_scene, "size_and_mode", lambda *args: read.append(args[0]) or original(*args))
    monkeypatch.setattr(blender_scene, "check_inside", lambda *args: resolved.append(args[1]) or check_inside(*args))
    check_scene(scene, ["train"])
    assert sorted(set(read)) == [scene / "train" / f"r_{i}.png" for i in range(3)]
    assert len(read) <= 4, "each once, and the first for the size"
    assert sorted(resolved) == [scene / "train" / f"r_{i}.png" for i in range(3)] + [scene / "transforms_train.json"]
    Image.new("RGBA", (10, 8)).save(scene / "train" / "r_2.png")
    raises(scene, "frame 2 ", "10x8", "12x8")


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P"])
def test_picture_without_alpha(scene: Path, mode: str) -> None:
    path = scene / "train" / "r_2.png"
    Image.new(mode, (12, 8)).save(path)
    raises(scene, str(path), "frame 2", "alpha")
    with pytest.raises(DataError, match="alpha"):
        load_image(path)


@pytest.mark.parametrize("factor", [3, 8, 0, -2])
def test_factor_that_does_not_divide(scene: Path, factor: int) -> None:
    raises(scene, "12x8", f"downscale_factor {factor}", factor=factor)
    with pytest.raises(DataError, match="downscale_factor"):
        load_image(scene / "train" / "r_0.png", factor)


def test_checking_writes_nothing(scene: Path) -> None:
    before = sorted(scene.rglob("*"))
    check_scene(scene, ["train", "test"])
    assert sorted(scene.rglob("*")) == before


def test_table_of_official_pictures_follows_from_the_published_hashes(shared_data: Path) -> None:
    published = json.loads((shared_data / "blender" / "official_sha256_size.json").read_text())
    assert len(official_scenes()) == 8
    for name, scene in official_scenes().items():
        files = [published[f"{name}/test/r_{index}.png"] for index in range(200)]
        assert scene["sizes"] == [size for _, size in files]
        assert scene["sha256"] == hashlib.sha256(bytes.fromhex("".join(sha for sha, _ in files))).hexdigest()


def test_downscaled_copies_are_not_the_official_pictures(shared_data: Path) -> None:
    assert official_scene(read_split(shared_data / "blender" / "lego", "test").image_paths) is None


def test_official_pictures_are_known_by_content_not_by_folder(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = read_split(scene, "test").image_paths
    digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    table = {
        "other": {"sha256": "", "sizes": [1, 2, 3]},
        "toy": {"sha256": hashlib.sha256(digests).hexdigest(), "sizes": [path.stat().st_size for path in paths]},
    }
    monkeypatch.setattr(official_blender, "official_scenes", lambda: table)
    shutil.copytree(scene, tmp_path / "copy")
    copied = read_split(tmp_path / "copy", "test").image_paths
    assert official_scene(copied) == "toy"
    assert official_scene(copied[:2]) is None
    contents = bytearray(copied[1].read_bytes())
    contents[-20] ^= 1
    copied[1].write_bytes(contents)
    assert official_scene(copied) is None
