"""The nerfstudio side of NeuS's layout: rays, masks, held-out views, the way back to the world, batches."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dtu_scans import SCALE_MAT, SIZE, change_cameras, write_scan
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler
from nerfstudio.model_components.ray_generators import RayGenerator
from PIL import Image

from crossnorm_ns.data import dtu_dataparser
from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig
from crossnorm_ns.data.dtu_dataset import DTUDataset
from crossnorm_ns.data.dtu_scene import load_image, load_mask
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.uniform_sampler import UniformPixelSampler, UniformPixelSamplerConfig


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_scan(tmp_path / "scan")
    return tmp_path / "scan"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the dataparser prints."""
    messages: list[str] = []
    monkeypatch.setattr(dtu_dataparser.CONSOLE, "print", messages.append)
    return messages


def outputs(scan: Path, split: str = "train", **options: object) -> DataparserOutputs:
    config = DTUCNDataParserConfig(data=scan, **options)  # pyright: ignore[reportArgumentType]
    return config.setup().get_dataparser_outputs(split)


def pixels_of_file(scan: Path, view: int, points: np.ndarray) -> np.ndarray:
    """Columns and rows, centres at integers, of points in millimetres, by the matrix that stands in the file."""
    with np.load(scan / "cameras_sphere.npz") as arrays:
        matrix = arrays[f"world_mat_{view}"].astype(np.float64)
    homogeneous = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:3]


def check_rays(scan: Path, scale_mat: np.ndarray, views: list[int], size: tuple[int, int], factor: int) -> None:
    """Points along the rays of pixels, taken to millimetres, project onto the middle of the pixels' blocks."""
    cameras = outputs(scan, downscale_factor=factor).cameras
    rng = np.random.default_rng(0)
    row, column = rng.integers(size[1] // factor, size=50), rng.integers(size[0] // factor, size=50)
    for view in views:
        rays = RayGenerator(cameras)(torch.from_numpy(np.stack([np.full(50, view), row, column], axis=-1)))
        points = (rays.origins + torch.linspace(1, 4, 50)[:, None] * rays.directions).double().numpy()
        found = pixels_of_file(scan, view, points @ scale_mat[:3, :3].T + scale_mat[:3, 3])
        middle = (factor - 1) / 2
        np.testing.assert_allclose(found, np.stack([column, row], axis=-1) * factor + middle, atol=1e-3)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_rays_of_pixels_project_back_onto_them(scan: Path, factor: int) -> None:
    check_rays(scan, SCALE_MAT, [0, 1, 2, 3], SIZE, factor)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_rays_of_the_real_scan_project_back(shared_data: Path, factor: int) -> None:
    real = shared_data / "dtu" / "dtu_scan24"
    with np.load(real / "cameras_sphere.npz") as arrays:
        scale_mat = arrays["scale_mat_0"].astype(np.float64)
    check_rays(real, scale_mat, [0, 17, 48], (400, 300), factor)


def test_rays_look_forward(scan: Path) -> None:
    cameras = outputs(scan).cameras
    rays = RayGenerator(cameras)(torch.tensor([[view, 8, 11] for view in range(4)]))
    along = -(rays.origins * rays.directions).sum(dim=-1)
    assert (along > 2.5).all(), "the sphere's middle is three ahead"


def test_world_and_unit_sphere_by_nerfstudio_transform(scan: Path, tmp_path: Path) -> None:
    """What stands in dataparser_transforms.json beside config.yml inverts scale_mat_0."""
    parsed = outputs(scan)
    parsed.save_dataparser_transform(tmp_path / "dataparser_transforms.json")
    saved = json.loads((tmp_path / "dataparser_transforms.json").read_text())
    unit = np.random.default_rng(1).uniform(-1, 1, (10, 3))
    world = unit @ SCALE_MAT[:3, :3].T + SCALE_MAT[:3, 3]
    transform = np.array(saved["transform"])
    np.testing.assert_allclose(saved["scale"] * (world @ transform[:, :3].T + transform[:, 3]), unit, atol=1e-6)
    scale_mat = parsed.metadata["scale_mat"]
    assert scale_mat.dtype == torch.float64
    np.testing.assert_array_equal(scale_mat.numpy(), SCALE_MAT)


def test_nerfstudio_takes_cameras_to_the_world(scan: Path) -> None:
    parsed = outputs(scan)
    poses = parsed.transform_poses_to_original_space(parsed.cameras.camera_to_worlds, "opencv")
    for view in range(4):
        with np.load(scan / "cameras_sphere.npz") as arrays:
            matrix = arrays[f"world_mat_{view}"][:3]
        np.testing.assert_allclose(poses[view, :, 3], -np.linalg.solve(matrix[:, :3], matrix[:, 3]), rtol=1e-5)
        forward = matrix[2, :3] / np.linalg.norm(matrix[2, :3])
        np.testing.assert_allclose(poses[view, :, 2], forward, atol=1e-6)


def test_scene_box_is_the_cube_around_the_unit_sphere(scan: Path) -> None:
    assert outputs(scan).scene_box.aabb.tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_all_views_train_and_evaluate_by_default_and_it_is_said(scan: Path, said: list[str]) -> None:
    train = outputs(scan, "train")
    assert said == []
    test = outputs(scan, "test")
    assert train.image_filenames == test.image_filenames and len(train.image_filenames) == 4
    assert len(said) == 1 and "views that training sees" in said[0]


def test_held_out_views_are_every_nth(tmp_path: Path, said: list[str]) -> None:
    cameras = write_scan(tmp_path / "scan", num_views=7)
    train, test = (
        outputs(tmp_path / "scan", split, eval_mode="interval", eval_interval=3) for split in ("train", "val")
    )
    for parsed, views in ((train, [1, 2, 4, 5]), (test, [0, 3, 6])):
        assert parsed.mask_filenames is not None
        assert [int(path.stem) for path in parsed.image_filenames] == views
        assert [int(path.stem) for path in parsed.mask_filenames] == views
        centres = np.stack([cameras[view][2] for view in views])
        np.testing.assert_allclose(parsed.cameras.camera_to_worlds[:, :, 3], centres, atol=1e-6)
    assert said == []


@pytest.mark.parametrize(("interval", "views"), [(1, 4), (0, 4), (8, 1)])
def test_split_without_training_views_is_refused(tmp_path: Path, interval: int, views: int) -> None:
    write_scan(tmp_path / "scan", views)
    config = DTUCNDataParserConfig(data=tmp_path / "scan", eval_mode="interval", eval_interval=interval)
    with pytest.raises(DataError, match=f"eval_interval {interval}"):
        config.check_data()


def test_check_reads_the_folder_set_last(scan: Path) -> None:
    config = DTUCNDataParserConfig()
    with pytest.raises(DataError, match="No scene folder"):
        config.check_data()
    config.data = scan
    config.check_data()
    change_cameras(scan, world_mat_2=np.zeros((4, 4)))
    with pytest.raises(DataError, match="world_mat_2 is singular"):
        config.check_data()


@pytest.mark.parametrize(("factor", "fine"), [(2.0, True), (1.5, False)])
def test_factor_may_be_a_whole_float(scan: Path, factor: float, fine: bool) -> None:
    """`ns-render dataset --downscale-factor 2` sets a float."""
    config = DTUCNDataParserConfig(data=scan)
    config.downscale_factor = factor  # pyright: ignore[reportAttributeAccessIssue]
    if fine:
        assert (config.setup().get_dataparser_outputs("train").cameras.width == SIZE[0] // 2).all()
    else:
        with pytest.raises(DataError, match="whole number"):
            config.check_data()


@pytest.mark.parametrize("factor", [1, 2])
def test_dataset_gives_averaged_pictures_and_masks(scan: Path, factor: int) -> None:
    data = DTUDataset(outputs(scan, downscale_factor=factor))[2]
    shape = (SIZE[1] // factor, SIZE[0] // factor)
    assert data["image_idx"] == 2
    assert data["image"].dtype == torch.float32 and data["image"].shape == (*shape, 3)
    assert data["mask"].dtype == torch.float32 and data["mask"].shape == (*shape, 1)
    np.testing.assert_array_equal(data["image"], load_image(scan / "image" / "000002.png", factor))
    np.testing.assert_array_equal(data["mask"][..., 0], load_mask(scan / "mask" / "002.png", factor))


def test_eight_bit_pictures_have_the_downscaled_size(scan: Path) -> None:
    dataset = DTUDataset(outputs(scan, downscale_factor=2))
    image = dataset.get_data(1, "uint8")["image"]
    assert image.dtype == torch.uint8 and image.shape == (8, 12, 3)
    np.testing.assert_allclose(image / 255, load_image(dataset.image_filenames[1], 2), atol=0.5 / 255 + 1e-6)


def test_other_dataparsers_are_read_as_nerfstudio_does(tiny_scene: Path) -> None:
    parsed = BlenderDataParserConfig(data=tiny_scene).setup().get_dataparser_outputs("train")
    ours, theirs = DTUDataset(parsed, 0.5)[1], InputDataset(parsed, 0.5)[1]
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours["image"], theirs["image"])


def test_other_resampling_is_refused(scan: Path) -> None:
    with pytest.raises(DataError, match="downscale_factor"):
        DTUDataset(outputs(scan), 0.5)


def data_manager(scan: Path, rays: int, single_image: bool = True) -> VanillaDataManager:
    config = VanillaDataManagerConfig(
        _target=VanillaDataManager[DTUDataset],
        dataparser=DTUCNDataParserConfig(data=scan, downscale_factor=2),
        train_num_rays_per_batch=rays,
        pixel_sampler=UniformPixelSamplerConfig(single_image=single_image),
    )
    return config.setup(device="cpu", test_mode="val")


def test_data_manager_pairs_rays_pixels_and_masks(scan: Path) -> None:
    manager = data_manager(scan, rays=64)
    rays, batch = manager.next_train(0)
    assert batch["image"].shape == (64, 3) and batch["mask"].shape == (64, 1)
    assert batch["mask"].dtype == torch.float32
    torch.testing.assert_close(rays.camera_indices, batch["indices"][:, :1])
    for (view, row, column), pixel, share in zip(batch["indices"], batch["image"], batch["mask"], strict=True):
        np.testing.assert_array_equal(pixel, load_image(scan / "image" / f"{view:06}.png", 2)[row, column])
        np.testing.assert_array_equal(share, load_mask(scan / "mask" / f"{view:03}.png", 2)[row, column])


def test_each_batch_is_of_one_random_picture(scan: Path) -> None:
    manager = data_manager(scan, rays=16)
    views = [manager.next_train(step)[1]["indices"][:, 0] for step in range(100)]
    assert all((view == view[0]).all() for view in views)
    counts = np.bincount([int(view[0]) for view in views], minlength=4)
    assert (counts > 10).all(), "each of the four is expected 25 times, with a deviation of 4.3"


def test_a_batch_can_be_of_all_pictures(scan: Path) -> None:
    manager = data_manager(scan, rays=400, single_image=False)
    counts = np.bincount(manager.next_train(0)[1]["indices"][:, 0], minlength=4)
    assert (counts > 50).all(), "each of the four is expected 100 times, with a deviation of 8.7"


def test_pixels_are_uniform_over_the_whole_picture_whatever_the_mask(scan: Path) -> None:
    """With replacement: of 960 draws from 96 pixels each is expected 10 times; chi-squared stays below its 1 - 1e-6."""
    torch.manual_seed(0)
    indices = data_manager(scan, rays=960).next_train(0)[1]["indices"]
    counts = np.bincount(indices[:, 1] * 12 + indices[:, 2], minlength=96)
    assert ((counts - 10) ** 2 / 10).sum() < 172
    assert len(counts) == 96


def test_without_masks_the_sampler_works_alike() -> None:
    sampler = UniformPixelSampler(UniformPixelSamplerConfig(num_rays_per_batch=32))
    batch = sampler.sample({"image": torch.rand(5, 6, 7, 3), "image_idx": torch.tensor([9, 8, 7, 6, 5])})
    assert batch["image"].shape == (32, 3) and "mask" not in batch
    assert len(batch["indices"][:, 0].unique()) == 1 and batch["indices"][0, 0] >= 5


def test_same_random_state_gives_the_same_batch(scan: Path) -> None:
    """Resumed runs restore that state and nothing else."""
    manager = data_manager(scan, rays=8)
    manager.next_train(0)
    state = torch.get_rng_state()
    first = [manager.next_train(step)[1]["indices"] for step in range(3)]
    torch.set_rng_state(state)
    again = [manager.next_train(step)[1]["indices"] for step in range(3)]
    torch.testing.assert_close(first, again)


def test_sampler_overrides_what_nerfstudio_calls() -> None:
    ours = inspect.signature(UniformPixelSampler.sample_method)
    assert list(ours.parameters) == list(inspect.signature(PixelSampler.sample_method).parameters)


def test_masks_are_read_by_other_methods_of_nerfstudio_too(scan: Path) -> None:
    """At full size; these sample inside of them."""
    data = InputDataset(outputs(scan))[1]
    np.testing.assert_array_equal(data["mask"][..., 0], np.asarray(Image.open(scan / "mask" / "001.png")) > 0)


def test_nerfstudio_finds_the_dataparser() -> None:
    assert isinstance(all_dataparsers["dtu-cn"], DTUCNDataParserConfig)
