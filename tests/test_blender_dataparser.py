"""The nerfstudio side of the Blender reader: cameras, rays, pictures, notes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.model_components.ray_generators import RayGenerator
from PIL import Image

from crossnorm_ns.data import blender_dataparser
from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.data.blender_dataset import BlenderDataset
from crossnorm_ns.data.blender_scene import composite_on_white, load_image
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.make_scene import look_at_origin

ANGLE = 0.7
POINT = np.array([0.31, -0.22, 0.18])
"""A bright dot in every picture of the scene below."""


def pixel_of(pose: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Row and column of POINT by the textbook pinhole projection."""
    x, y, z = np.linalg.inv(pose)[:3] @ [*POINT, 1]
    focal = 0.5 * width / math.tan(0.5 * ANGLE)
    return math.floor(0.5 * height - focal * y / -z), math.floor(0.5 * width + focal * x / -z)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Transparent pictures of 40x24 with one opaque red pixel where POINT is seen; there is no val split."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        frames = []
        for index in range(4):
            pose = look_at_origin(rng.uniform(0, 6), rng.uniform(0.1, 1.4))
            pixels = np.zeros((24, 40, 4), dtype=np.uint8)
            pixels[pixel_of(pose, 40, 24)] = (255, 0, 0, 255)
            Image.fromarray(pixels).save(tmp_path / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
        contents = {"camera_angle_x": ANGLE, "frames": frames}
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(contents))
    return tmp_path


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed, in a process that has said nothing yet."""
    messages: list[str] = []
    monkeypatch.setattr(blender_dataparser.CONSOLE, "print", messages.append)
    blender_dataparser._say_once.cache_clear()
    return messages


def outputs(scene: Path, split: str = "train", factor: int = 1):
    return BlenderCNDataParserConfig(data=scene, downscale_factor=factor).setup().get_dataparser_outputs(split)


def test_cameras_are_pinholes_with_the_principal_point_in_the_middle(scene: Path) -> None:
    cameras = outputs(scene, factor=2).cameras
    assert cameras.shape == (4,)
    assert (cameras.camera_type == CameraType.PERSPECTIVE.value).all()
    assert (cameras.width == 20).all() and (cameras.height == 12).all()
    assert (cameras.cx == 10).all() and (cameras.cy == 6).all()
    torch.testing.assert_close(cameras.fx, torch.full((4, 1), 10 / math.tan(ANGLE / 2)))
    torch.testing.assert_close(cameras.fy, cameras.fx)


def test_poses_and_scale_are_those_of_the_file(scene: Path) -> None:
    parsed = outputs(scene)
    frames = json.loads((scene / "transforms_train.json").read_text())["frames"]
    expected = torch.tensor([frame["transform_matrix"][:3] for frame in frames])
    torch.testing.assert_close(parsed.cameras.camera_to_worlds, expected)
    assert parsed.dataparser_scale == 1
    torch.testing.assert_close(parsed.dataparser_transform, torch.eye(4)[:3])
    torch.testing.assert_close(parsed.alpha_color, torch.ones(3))


def test_rays_through_the_coloured_pixel_pass_the_point(scene: Path) -> None:
    """Within half a pixel's footprint: axes, signs, pixel centres and focal length must all be right."""
    parsed = outputs(scene)
    dataset = BlenderDataset(parsed)
    for index in range(4):
        image = dataset[index]["image"]
        red = (image[..., 1] < 0.5).nonzero()
        assert len(red) == 1
        rays = RayGenerator(parsed.cameras)(torch.tensor([[index, *red[0].tolist()]]))
        offset = torch.tensor(POINT, dtype=torch.float32) - rays.origins[0]
        along = offset @ rays.directions[0]
        miss = (offset - along * rays.directions[0]).norm()
        assert along > 0
        assert miss <= 0.75 * along / parsed.cameras.fx[0].item()


def test_pixel_spacing_reaches_rays_by_both_ways(scene: Path) -> None:
    cameras = outputs(scene, factor=2).cameras
    spacing = 2 * math.tan(ANGLE / 2) / 20
    picked = RayGenerator(cameras)(torch.tensor([[0, 1, 2], [3, 11, 19]]))
    torch.testing.assert_close(picked.metadata["pixel_spacing"], torch.full((2, 1), spacing))
    whole = cameras[1:2].generate_rays(camera_indices=0, keep_shape=True)
    torch.testing.assert_close(whole.metadata["pixel_spacing"], torch.full((12, 20, 1), spacing))
    part = whole.get_row_major_sliced_ray_bundle(5, 8)
    assert part.metadata["pixel_spacing"].shape == (3, 1)


def test_pixel_spacing_is_the_distance_of_neighbours_at_depth_one(scene: Path) -> None:
    rays = outputs(scene).cameras.generate_rays(camera_indices=2, keep_shape=True)
    at_depth_one = rays.directions * rays.metadata["directions_norm"]
    distance = (at_depth_one[:, 1:] - at_depth_one[:, :-1]).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(distance, rays.metadata["pixel_spacing"][:, 1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2])
def test_dataset_gives_area_averages_on_white(shared_data: Path, factor: int) -> None:
    parsed = outputs(shared_data / "blender" / "lego", "train", factor)
    image = BlenderDataset(parsed)[7]["image"]
    rgba = np.asarray(Image.open(parsed.image_filenames[7])).astype(np.float64) / 255
    size = 100 // factor
    mean = rgba.reshape(size, factor, size, factor, 4).mean(axis=(1, 3))
    expected = mean[..., :3] * mean[..., 3:] + 1 - mean[..., 3:]
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)


def test_eight_bit_pictures_have_the_downscaled_size(scene: Path) -> None:
    dataset = BlenderDataset(outputs(scene, factor=2))
    rgba = dataset.get_numpy_image(0)
    assert rgba.shape == (12, 20, 4) and rgba.dtype == np.uint8
    np.testing.assert_allclose(rgba / 255, load_image(dataset.image_filenames[0], 2), atol=0.5 / 255 + 1e-6)
    assert dataset.get_data(0, "uint8")["image"].shape == (12, 20, 3)


def test_other_dataparsers_are_read_as_nerfstudio_does(scene: Path) -> None:
    parsed = BlenderDataParserConfig(data=scene).setup().get_dataparser_outputs("train")
    ours, theirs = BlenderDataset(parsed, 0.5), InputDataset(parsed, 0.5)
    torch.testing.assert_close(ours[1]["image"], theirs[1]["image"])
    np.testing.assert_array_equal(ours.get_numpy_image(1), theirs.get_numpy_image(1))


def test_other_resampling_is_refused(scene: Path) -> None:
    with pytest.raises(DataError, match="downscale_factor"):
        BlenderDataset(outputs(scene), 0.5)


def test_data_manager_pairs_rays_with_their_pixels(scene: Path) -> None:
    config = VanillaDataManagerConfig(
        _target=VanillaDataManager[BlenderDataset],
        dataparser=BlenderCNDataParserConfig(data=scene, downscale_factor=2),
        train_num_rays_per_batch=64,
    )
    manager = config.setup(device="cpu", test_mode="val")
    assert isinstance(manager.train_dataset, BlenderDataset)
    rays, batch = manager.next_train(0)
    assert rays.metadata["pixel_spacing"].shape == (64, 1)
    for (camera, row, column), pixel in zip(batch["indices"].tolist(), batch["image"], strict=True):
        path = manager.train_dataset.image_filenames[camera]
        np.testing.assert_allclose(pixel.numpy(), composite_on_white(load_image(path, 2))[row, column])


def test_test_split_stands_in_for_missing_validation_and_says_so_once(scene: Path, said: list[str]) -> None:
    for _ in range(2):
        assert outputs(scene, "val").image_filenames[0] == scene / "test" / "r_0.png"
    assert sum("transforms_val.json" in message for message in said) == 1


def test_validation_split_is_used_where_it_exists(shared_data: Path, said: list[str]) -> None:
    parsed = outputs(shared_data / "blender" / "lego", "val")
    assert len(parsed.image_filenames) == 25
    assert said == []


def test_numbers_on_other_pictures_are_called_not_comparable_once(shared_data: Path, said: list[str]) -> None:
    for _ in range(2):
        assert len(outputs(shared_data / "blender" / "lego", "test").image_filenames) == 200
    assert len(said) == 1
    assert "test images are not the official ones: numbers are not comparable with published ones" in said[0]


def test_official_pictures_get_no_note(scene: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blender_dataparser, "official_scene", lambda paths: "lego")
    outputs(scene, "test")
    assert said == []


def test_check_reads_all_splits_of_the_folder_set_last(scene: Path, said: list[str]) -> None:
    config = BlenderCNDataParserConfig()
    with pytest.raises(DataError, match="No scene folder"):
        config.check_data()
    config.data = scene
    config.check_data()
    Image.new("RGB", (40, 24)).save(scene / "test" / "r_3.png")
    with pytest.raises(DataError, match="frame 3"):
        config.check_data()


@pytest.mark.parametrize(("factor", "fine"), [(2.0, True), (1.5, False)])
def test_factor_may_be_a_whole_float(scene: Path, factor: float, fine: bool) -> None:
    """`ns-render dataset --downscale-factor 2` sets a float."""
    config = BlenderCNDataParserConfig(data=scene)
    config.downscale_factor = factor  # pyright: ignore[reportAttributeAccessIssue]
    if fine:
        assert (config.setup().get_dataparser_outputs("train").cameras.width == 20).all()
    else:
        with pytest.raises(DataError, match="whole number"):
            config.check_data()


def test_nerfstudio_finds_the_dataparser() -> None:
    assert isinstance(all_dataparsers["blender-cn"], BlenderCNDataParserConfig)
