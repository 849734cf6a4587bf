"""mip-NeRF on nerfstudio: rays, levels, losses, and rendering that is a function of each ray alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mipnerf_reference import Rays, camera_rays, render
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.model_components.ray_generators import RayGenerator
from skimage.metrics import structural_similarity
from torch import nn

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.data.make_scene import look_at_origin
from crossnorm_ns.models import mipnerf
from crossnorm_ns.models.mipnerf import MipNeRFModel, MipNeRFModelConfig
from crossnorm_ns.norms import calibrate, norms_of

WIDTH, HEIGHT, FOCAL = 14, 11, 17.0
NORMS = [("none", "released"), ("bn", "released"), ("ln", "released"), ("gn", "released"), ("cn", "released")]
NORMS += [("cn", "paper")]


def make_model(**options) -> MipNeRFModel:
    defaults = {"width": 16, "head_width": 8, "num_samples": 12, "point_degrees": 8}
    config = MipNeRFModelConfig(**(defaults | options))
    return config.setup(scene_box=SceneBox(torch.tensor([[-1.5] * 3, [1.5] * 3])), num_train_data=1)


def test_weights_before_norms_start_at_half_the_glorot_scale_by_default() -> None:
    torch.manual_seed(0)
    ours = make_model().field.trunk.layers[3].weight
    torch.manual_seed(0)
    glorot = make_model(normed_weight_scale=1.0).field.trunk.layers[3].weight
    torch.testing.assert_close(ours, 0.5 * glorot)


def make_camera(pose: np.ndarray, with_spacing: bool = True, width: int = WIDTH, height: int = HEIGHT) -> Cameras:
    return Cameras(
        camera_to_worlds=torch.from_numpy(pose[None, :3]).float(),
        fx=FOCAL,
        fy=FOCAL,
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
        metadata={"pixel_spacing": torch.full((1, 1), 1 / FOCAL)} if with_spacing else None,
    )


@pytest.fixture
def pose() -> np.ndarray:
    return look_at_origin(0.7, 0.4)


def all_rays(pose: np.ndarray) -> RayBundle:
    return make_camera(pose).generate_rays(0).flatten()


def train_some_steps(model: MipNeRFModel, rays: RayBundle, steps: int = 3) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.field.parameters(), lr=1e-2)
    target = torch.rand(len(rays), 3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model.get_loss_dict(model(rays), {"image": target}).values())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
    model.eval()


def samples_of(model: MipNeRFModel) -> list[RaySamples]:
    """Filled with what the field is asked for, level by level."""
    asked: list[RaySamples] = []
    model.field.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    return asked


def radii_of(samples: RaySamples) -> np.ndarray:
    return (samples.frustums.pixel_area[:, 0, 0].double() / math.pi).sqrt().numpy()


def numpy_field(model: MipNeRFModel) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in model.field.state_dict().items()}


def test_whole_image_equals_a_numpy_rendering_with_the_same_weights(pose: np.ndarray):
    """Rays, t, radii, encodings, resampling, network and compositing at once; directions are not unit here."""
    torch.manual_seed(0)
    model = make_model(norm="none", width=32, point_degrees=16, num_samples=24).eval()
    for name, parameter in model.field.named_parameters():
        nn.init.normal_(parameter, std=0.2 if name.endswith("bias") else 1.4 / math.sqrt(parameter.shape[-1]))
    model.field.density_layer.weight.data *= 2
    model.field.density_layer.bias.data -= 3
    seen: list[torch.Tensor] = []
    model.field.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    outputs = model.get_outputs_for_camera(make_camera(pose))

    rays = camera_rays(pose, FOCAL, WIDTH, HEIGHT)
    lengths = np.linalg.norm(rays.directions, axis=-1)
    assert lengths.max() > 1.1
    levels = render(numpy_field(model), rays, num_samples=24)
    assert levels[0].accumulation.std() > 0.02
    assert np.abs(levels[1].t - levels[0].t).max() > 0.3, "the fine level must differ from the coarse one"
    for level, encoded, suffix in zip(levels, seen, ("_coarse", ""), strict=True):
        np.testing.assert_allclose(encoded, level.encoded, atol=2e-3)
        for name, expected in (
            ("rgb", level.color),
            ("accumulation", level.accumulation[:, None]),
            ("depth", (level.distance * lengths)[:, None]),
        ):
            image = expected.reshape(HEIGHT, WIDTH, -1)
            np.testing.assert_allclose(outputs[name + suffix], image, atol=1e-4, err_msg=name + suffix)


def test_coarse_fenceposts_mean_depths_not_distances(pose: np.ndarray):
    """t runs from 2 to 6 along directions with z = -1: distances are longer towards the corners."""
    model, rays = make_model().eval(), all_rays(pose)
    train_some_steps(model, rays)
    asked = samples_of(model)
    model(rays)
    frustums = asked[0].frustums
    mean_z = (frustums.origins + frustums.ends * frustums.directions - torch.from_numpy(pose[:3, 3]).float()) @ (
        -torch.from_numpy(pose[:3, 2]).float()
    )
    expected = torch.linspace(2, 6, 13)[1:].expand(len(rays), -1)
    torch.testing.assert_close(mean_z, expected, rtol=0, atol=1e-4)


def reference_radii(pose: np.ndarray, focal: float, width: int, height: int) -> np.ndarray:
    return camera_rays(pose, focal, width, height).radii[:, 0]


@pytest.mark.parametrize("with_spacing", [True, False], ids=["dataparser's", "viewer's"])
def test_radii_are_exact_for_every_camera_that_is_rendered(pose: np.ndarray, with_spacing: bool):
    model = make_model(norm="none").eval()
    asked = samples_of(model)
    model.get_outputs_for_camera(make_camera(pose, with_spacing))
    np.testing.assert_allclose(radii_of(asked[0]), reference_radii(pose, FOCAL, WIDTH, HEIGHT), rtol=1e-6)
    np.testing.assert_array_equal(radii_of(asked[0]), radii_of(asked[1]))


def test_radii_follow_a_camera_whose_resolution_was_changed(pose: np.ndarray):
    """As the viewer and `ns-render --rendered-resolution-scaling-factor` do, without touching the metadata."""
    model = make_model(norm="none").eval()
    asked = samples_of(model)
    camera = make_camera(pose)
    camera.rescale_output_resolution(2.0)
    outputs = model.get_outputs_for_camera(camera)
    assert outputs["rgb"].shape == (2 * HEIGHT, 2 * WIDTH, 3)
    expected = reference_radii(pose, 2 * FOCAL, 2 * WIDTH, 2 * HEIGHT)
    np.testing.assert_allclose(radii_of(asked[0]), expected, rtol=1e-6)


def test_radii_of_training_rays_are_exact_for_the_blender_dataparser(tiny_scene: Path):
    cameras = BlenderCNDataParserConfig(data=tiny_scene).setup().get_dataparser_outputs("train").cameras
    pixels = torch.cartesian_prod(torch.arange(len(cameras)), torch.tensor([0, 11, 23]), torch.tensor([0, 11, 23]))
    model = make_model(norm="none")
    asked = samples_of(model)
    model(RayGenerator(cameras)(pixels))
    focal = 12 / math.tan(0.5 * 0.6911112070083618)
    np.testing.assert_allclose(radii_of(asked[0]), 2 / (math.sqrt(12) * focal), rtol=1e-6)


def test_radii_of_training_rays_of_other_dataparsers_come_within_half_a_percent(pose: np.ndarray):
    """The solid angle of a pixel is all that nerfstudio gives; here to the corners of a field of view of 40 degrees."""
    width = height = 200
    focal = 0.5 * width / math.tan(math.radians(20))
    camera = make_camera(pose, with_spacing=False, width=width, height=height)
    camera.fx[:] = camera.fy[:] = focal
    model = make_model(norm="none", num_samples=2)
    asked = samples_of(model)
    some = torch.tensor([0, 50, 100, 199]) + 0.5
    model(camera.generate_rays(0, coords=torch.cartesian_prod(some, some)))
    np.testing.assert_allclose(radii_of(asked[0]), 2 / (math.sqrt(12) * focal), rtol=5e-3)


@pytest.mark.parametrize(("norm", "variant"), NORMS)
@pytest.mark.parametrize("calibrated", [False, True], ids=["moving average", "calibrated"])
def test_rendering_does_not_depend_on_chunk_size(pose: np.ndarray, norm, variant, calibrated: bool):
    torch.manual_seed(0)
    model = make_model(norm=norm, norm_variant=variant)
    rays = all_rays(pose)
    train_some_steps(model, rays)
    if calibrated:
        calibrate(model, [(rays[:80],), (rays[80:],)])
    pictures = []
    for chunk in (WIDTH * HEIGHT, 64, 11):
        model.config.eval_num_rays_per_chunk = chunk
        pictures.append(model.get_outputs_for_camera(make_camera(pose)))
    assert pictures[0]["rgb"].std() > 1e-3
    for picture in pictures[1:]:
        for name, values in pictures[0].items():
            torch.testing.assert_close(picture[name], values, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("norm", ["bn", "gn", "cn"])
def test_each_level_has_its_own_statistics(pose: np.ndarray, norm):
    torch.manual_seed(0)
    model, rays = make_model(norm=norm), all_rays(pose)
    train_some_steps(model, rays)
    calibrate(model, [(rays,)])
    before = model(rays)
    for part in norms_of(model):
        assert set(part.domains) == {"coarse", "fine"}
        coarse, fine = part.domains["coarse"], part.domains["fine"]
        assert not torch.equal(coarse.mean, fine.mean)
        assert not torch.equal(coarse.running_mean, fine.running_mean)
        fine.mean += 0.5
    after = model(rays)
    assert torch.equal(before["rgb_coarse"], after["rgb_coarse"])
    assert not torch.allclose(before["rgb"], after["rgb"], atol=1e-4)


def test_calibrated_statistics_of_a_level_are_those_of_its_own_samples(pose: np.ndarray):
    """The first norm's input is a linear layer on the encoding, which a hook can gather."""
    torch.manual_seed(0)
    model, rays = make_model(norm="bn"), all_rays(pose)
    train_some_steps(model, rays)
    layer, features = model.field.trunk.layers[0], []
    handle = layer.norm.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].reshape(-1, 16)))
    calibrate(model, [(rays[:100],), (rays[100:],)])
    handle.remove()
    for domain, batches in (("coarse", features[0::2]), ("fine", features[1::2])):
        stored = layer.norm.domains[domain]
        torch.testing.assert_close(stored.mean, torch.cat(batches).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stored.var, torch.cat(batches).var(0), rtol=1e-4, atol=1e-5)


def test_loss_is_the_mean_squared_error_of_the_fine_level_and_a_tenth_of_the_coarse_levels():
    model, generator = make_model(norm="none"), torch.Generator().manual_seed(0)
    target, fine, coarse = torch.rand(3, 20, 3, generator=generator)
    losses = model.get_loss_dict({"rgb": fine, "rgb_coarse": coarse}, {"image": target})
    expected = ((fine - target) ** 2).mean() + 0.1 * ((coarse - target) ** 2).mean()
    torch.testing.assert_close(sum(losses.values()), expected)


def test_both_levels_train_one_network_and_no_gradient_flows_through_the_resampling(pose, monkeypatch):
    model, rays, taken = make_model(norm="none").train(), all_rays(pose), []

    def record(t, weights, *arguments):
        taken.append((t.requires_grad, weights.requires_grad))
        return resample(t, weights, *arguments)

    resample = mipnerf.resample_fenceposts
    monkeypatch.setattr(mipnerf, "resample_fenceposts", record)
    outputs = model(rays)
    assert taken == [(False, False)]
    for name in ("rgb", "rgb_coarse"):
        gradients = torch.autograd.grad(outputs[name].sum(), list(model.field.parameters()), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients), name


def test_training_draws_new_fenceposts_each_time_and_rendering_never_does(pose: np.ndarray):
    model, rays = make_model(norm="none"), all_rays(pose)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(rays)["rgb"], model(rays)["rgb"])
    model.eval()
    before = torch.get_rng_state()
    assert torch.equal(model(rays)["rgb"], model(rays)["rgb"])
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_reach_the_rendering(pose: np.ndarray):
    options = {"near": 1.0, "far": 9.0, "num_samples": 5, "point_degrees": 3, "view_degrees": 2, "depth": 2}
    torch.manual_seed(0)
    model, rays = make_model(norm="none", **options).eval(), camera_rays(pose, FOCAL, WIDTH, HEIGHT)
    fine = render(numpy_field(model), rays, 5, near=1, far=9, point_degrees=3, view_degrees=2)[1]
    outputs = model.get_outputs_for_camera(make_camera(pose))
    np.testing.assert_allclose(outputs["rgb"].reshape(-1, 3), fine.color, atol=1e-5)
    model.config.background = 0.0
    black = model.get_outputs_for_camera(make_camera(pose))["rgb"].reshape(-1, 3)
    np.testing.assert_allclose(black, fine.color - 1 + fine.accumulation[:, None], atol=1e-5)


def test_image_metrics_and_pictures_show_truth_beside_render(pose: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_):
        raise AssertionError("LPIPS is off by default")

    monkeypatch.setattr(mipnerf, "lpips", refuse)
    model = make_model(norm="none").eval()
    outputs = model.get_outputs_for_camera(make_camera(pose))
    target = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))

    metrics, pictures = model.get_image_metrics_and_images(outputs, {"image": target})

    truth, shown = target.double().numpy(), outputs["rgb"].double().numpy()
    assert set(metrics) == {"psnr", "ssim"}
    assert metrics["psnr"] == pytest.approx(-10 * math.log10(((truth - shown) ** 2).mean()), rel=1e-9)
    whole = structural_similarity(
        truth, shown, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
    )
    assert metrics["ssim"] == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(pictures["img"], torch.cat([target, outputs["rgb"]], dim=1))
    assert pictures["accumulation"].shape == pictures["depth"].shape == (HEIGHT, WIDTH, 3)

    monkeypatch.setattr(mipnerf, "lpips", lambda *_: torch.tensor(0.25))
    model.config.eval_lpips = True
    assert model.get_image_metrics_and_images(outputs, {"image": target})[0]["lpips"] == 0.25


def test_transparent_pixels_of_other_datasets_are_laid_on_the_background():
    model = make_model(norm="none")
    pixel = torch.tensor([[0.2, 0.4, 0.6, 0.25]])
    rgb = torch.tensor([[0.2, 0.4, 0.6]]) * 0.25 + 0.75
    outputs = {"rgb": rgb, "rgb_coarse": rgb}
    assert sum(model.get_loss_dict(outputs, {"image": pixel}).values()).item() == pytest.approx(0, abs=1e-12)
    assert model.get_metrics_dict(outputs, {"image": pixel})["psnr"] > 100


def test_checkpoint_holds_the_field_alone():
    model = make_model(norm="cn")
    assert {name.split(".")[0] for name in model.state_dict()} == {"field", "device_indicator_param"}
    parameters = model.get_param_groups()["fields"]
    assert {id(p) for p in parameters} == {id(p) for p in model.field.parameters()}


def test_defaults_are_the_published_settings():
    config = MipNeRFModelConfig()
    assert (config.near, config.far, config.num_samples, config.background) == (2, 6, 128, 1)
    assert (config.depth, config.width, config.head_width) == (8, 256, 128)
    assert (config.point_degrees, config.view_degrees) == (16, 4)
    assert (config.resample_padding, config.coarse_loss_mult) == (0.01, 0.1)


def test_reference_rays_are_not_unit_length(pose: np.ndarray):
    """Guards the oracle: with unit directions the tests above could not see a missing conversion."""
    rays = camera_rays(pose, FOCAL, WIDTH, HEIGHT)
    assert isinstance(rays, Rays)
    np.testing.assert_allclose(rays.directions @ -pose[:3, 2], 1, rtol=1e-12)


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_rgba_takes_the_background_out(pose: np.ndarray, background: float):
    torch.manual_seed(0)
    model = make_model(norm="none", background=background).eval()
    outputs = model.get_outputs_for_camera(make_camera(pose))
    for name, suffix in (("rgb", ""), ("rgb_coarse", "_coarse")):
        rgba = model.get_rgba_image(outputs, name)
        assert torch.equal(rgba[..., 3:], outputs[f"accumulation{suffix}"])
        laid_back = rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])
        torch.testing.assert_close(laid_back, outputs[name], rtol=0, atol=1e-5)
    nothing = {"rgb": torch.full((2, 3), background), "accumulation": torch.zeros(2, 1)}
    assert model.get_rgba_image(nothing).tolist() == [[0, 0, 0, 0]] * 2
