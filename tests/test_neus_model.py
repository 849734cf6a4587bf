"""NeuS on nerfstudio: rendering, losses, and norms that the render pass alone trains."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from scipy.special import expit
from torch import nn
from torch.nn import functional

from crossnorm_ns.data.make_scene import look_at_origin
from crossnorm_ns.fields.sdf_field import SDFFieldConfig
from crossnorm_ns.models import neus
from crossnorm_ns.models.neus import NeuSModel, NeuSModelConfig
from crossnorm_ns.norms import calibrate, norms_of

WIDTH, HEIGHT, FOCAL = 14, 12, 22.0
RADIUS = 0.4
SMALL = {
    "sdf_depth": 3,
    "sdf_width": 32,
    "sdf_skip": None,
    "num_features": 8,
    "color_depth": 2,
    "color_width": 16,
    "point_degrees": 3,
}
NORMS = [("none", "paper"), ("bn", "paper"), ("ln", "paper"), ("gn", "paper"), ("cn", "released"), ("cn", "paper")]
WITH_COLUMNS = [(norm, variant) for norm, variant in NORMS if norm not in ("none", "ln")]


def make_model(norm="none", variant="paper", sdf_field=None, **options) -> NeuSModel:
    defaults = {"sdf_norm": norm, "color_norm": norm, "norm_variant": variant, "num_samples": 16, "num_importance": 16}
    config = NeuSModelConfig(sdf_field=SDFFieldConfig(**(SMALL | (sdf_field or {}))), **(defaults | options))
    torch.manual_seed(0)
    return config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1)


def make_camera() -> Cameras:
    pose = look_at_origin(0.7, 0.4)
    pose[:3, 3] *= 2.5 / np.linalg.norm(pose[:3, 3])
    return Cameras(
        camera_to_worlds=torch.from_numpy(pose[None, :3]).float(),
        fx=FOCAL,
        fy=FOCAL,
        cx=WIDTH / 2,
        cy=HEIGHT / 2,
        width=WIDTH,
        height=HEIGHT,
    )


def image_rays() -> RayBundle:
    return make_camera().generate_rays(0).flatten()


def random_rays(count: int, seed: int = 0) -> RayBundle:
    """From a sphere of radius 2.5 towards the object and past it."""
    generator = torch.Generator().manual_seed(seed)
    origins = 2.5 * functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    aims = 0.35 * torch.randn(count, 3, generator=generator)
    directions = functional.normalize(aims - origins, dim=-1)
    return RayBundle(
        origins=origins,
        directions=directions,
        pixel_area=torch.ones(count, 1),
        metadata={"directions_norm": torch.ones(count, 1)},
    )


def hits_of(rays: RayBundle, radius: float = RADIUS) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether rays hit a sphere, and where."""
    middle = -(rays.origins * rays.directions).sum(-1, keepdim=True)
    nearest = (rays.origins + middle * rays.directions).norm(dim=-1, keepdim=True)
    t = middle - (radius**2 - nearest.square()).clamp_min(0).sqrt()
    return nearest < radius, t


def batch_of(rays: RayBundle) -> dict[str, torch.Tensor]:
    """A sphere whose colour is its normal, before grey."""
    hit, t = hits_of(rays)
    normals = functional.normalize(rays.origins + t * rays.directions, dim=-1)
    return {"image": torch.where(hit, (normals + 1) / 2, torch.tensor(0.5)), "mask": hit.float()}


def train_some_steps(model: NeuSModel, steps: int = 3, rays: int = 64, rate: float = 2e-3) -> None:
    optimizer = torch.optim.Adam(model.get_param_groups()["fields"], lr=rate)
    model.train()
    torch.manual_seed(1)
    for step in range(steps):
        bundle = random_rays(rays, seed=step)
        optimizer.zero_grad()
        loss = sum(model.get_loss_dict(model(bundle), batch_of(bundle)).values())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
    model.eval()


def buffers(model: NeuSModel) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def changed(model: NeuSModel, before: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]


class Sphere(nn.Module):
    """Stands in for the field: a true distance, one colour, no norms."""

    def __init__(self, sharpness: float = 400.0, rgb: tuple[float, float, float] = (0.2, 0.5, 0.9)) -> None:
        super().__init__()
        self.register_buffer("norms_initialized", torch.tensor(True))
        self._sharpness, self.rgb = torch.tensor(sharpness), torch.tensor(rgb)

    def signed_distance(self, points):
        return points.norm(dim=-1, keepdim=True) - RADIUS

    def geometry(self, points):
        return self.signed_distance(points), functional.normalize(points, dim=-1), torch.zeros_like(points)

    def colors(self, points, directions, gradients, features):
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(points.shape[:-1]))
        return self.rgb.expand_as(points)

    def sharpness(self):
        return self._sharpness


def sphere_model(**options) -> NeuSModel:
    model = make_model(**({"num_samples": 64, "num_importance": 64} | options))
    model.field = Sphere()
    return model


# --- Rendering


def test_a_sphere_is_rendered_where_it_is():
    model, rays = sphere_model().eval(), image_rays()
    outputs = model(rays)
    hit, t = hits_of(rays)
    clear = (hits_of(rays, RADIUS + 0.03)[0] == hits_of(rays, RADIUS - 0.03)[0])[:, 0]
    hit, t = hit[clear, 0], t[clear]
    assert 20 < hit.sum() < len(hit) - 20
    torch.testing.assert_close(outputs["accumulation"][clear, 0], hit.float(), rtol=0, atol=0.01)
    torch.testing.assert_close(outputs["depth"][clear][hit], t[hit], rtol=0, atol=0.01)
    truth = functional.normalize(rays.origins[clear] + t * rays.directions[clear], dim=-1)
    torch.testing.assert_close(outputs["normals"][clear][hit], truth[hit], rtol=0, atol=0.03)
    torch.testing.assert_close(outputs["normals_vis"][clear][hit], (truth[hit] + 1) / 2, rtol=0, atol=0.02)
    torch.testing.assert_close(outputs["rgb"][clear], hit[:, None] * model.field.rgb, rtol=0, atol=0.01)


@pytest.mark.parametrize(("background", "level"), [("none", 0.0), ("black", 0.0), ("white", 1.0)])
def test_background_shows_where_nothing_is(background: str, level: float):
    model, rays = sphere_model(background=background).eval(), image_rays()
    outputs = model(rays)
    plain = sphere_model().eval()(rays)
    expected = plain["rgb"] + level * (1 - plain["accumulation"])
    torch.testing.assert_close(outputs["rgb"], expected)
    rgba = model.get_rgba_image(outputs)
    hit = outputs["accumulation"][:, 0] > 0.5
    torch.testing.assert_close(rgba[hit, :3], model.field.rgb.expand(int(hit.sum()), 3), rtol=0, atol=1e-3)
    torch.testing.assert_close(rgba[:, 3:], outputs["accumulation"], rtol=0, atol=1e-5)


def test_renders_a_network_as_the_published_renderer_does():
    """NeuS's `render_core` for single rays, as loops over numbers, with the model's own samples and network."""
    model, rays = make_model(num_samples=8, num_importance=8).eval(), random_rays(5)
    nn.init.constant_(model.field.variance, 0.5)
    taken: list[torch.Tensor] = []
    upsample = neus.upsample

    def record(*arguments):
        taken.append(upsample(*arguments))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neus, "upsample", record)
        outputs = model(rays)
    sharpness = math.exp(5)
    for ray in range(5):
        origin, direction = rays.origins[ray], rays.directions[ray]
        t = taken[0][ray]
        lengths = torch.cat([t.diff(), torch.tensor([2 / 8])])
        through, color, total, error, count = 1.0, np.zeros(3), 0.0, 0.0, 0
        for start, length in zip(t, lengths, strict=True):
            point = (origin + direction * (start + length / 2))[None]
            distance, gradient, features = model.field.geometry(point)
            rgb = model.field.colors(point, direction[None], gradient, features)[0].detach().double().numpy()
            half = min(float(gradient[0] @ direction), 0.0) * float(length) / 2
            before, behind = expit(sharpness * (float(distance) - half)), expit(sharpness * (float(distance) + half))
            alpha = np.clip((before - behind + 1e-5) / (before + 1e-5), 0, 1)
            color, total = color + through * alpha * rgb, total + through * alpha
            through *= 1 - alpha + 1e-7
            if point.norm() < 1.2:
                error, count = error + (float(gradient.norm()) - 1) ** 2, count + 1
        np.testing.assert_allclose(outputs["rgb"][ray].detach(), color, atol=1e-4)
        assert outputs["accumulation"][ray].item() == pytest.approx(total, abs=1e-4)
        assert outputs["eikonal_error"][ray].item() == pytest.approx(error, rel=1e-3, abs=1e-5)
        assert outputs["eikonal_points"][ray].item() == count


def test_samples_begin_and_end_around_the_unit_sphere_and_follow_the_settings():
    model, rays, asked = sphere_model(num_samples=12, num_importance=8, up_sample_steps=2).eval(), random_rays(6), []
    signed_distance = model.field.signed_distance
    model.field.signed_distance = lambda points: (asked.append(points), signed_distance(points))[1]
    model(rays)
    assert [points.shape[1] for points in asked] == [12, 4, 20]
    middle = -(rays.origins * rays.directions).sum(-1, keepdim=True)
    for i, t in ((0, middle - 1), (-1, middle + 1)):
        torch.testing.assert_close(asked[0][:, i], rays.origins + t * rays.directions)


def test_bounds_of_a_bundle_narrow_those_of_the_sphere():
    """As those of the short rays with which nerfstudio textures a mesh, and of a crop box."""
    model, rays = sphere_model().eval(), image_rays()
    hit, t = hits_of(rays, 0.8 * RADIUS)
    for start, end, seen in ((-0.05, 0.05, 1.0), (-0.3, -0.2, 0.0), (-9.0, 9.0, 1.0), (5.0, 5.1, 0.0)):
        surface = hits_of(rays)[1]
        rays.nears, rays.fars = surface + start, surface + end
        accumulation = model(rays)["accumulation"]
        torch.testing.assert_close(accumulation[hit], torch.full_like(accumulation[hit], seen), rtol=0, atol=0.02)


@pytest.mark.parametrize(("norm", "variant"), NORMS)
@pytest.mark.parametrize("calibrated", [False, True], ids=["moving average", "calibrated"])
def test_rendering_does_not_depend_on_chunk_size(norm: str, variant: str, calibrated: bool):
    model = make_model(norm, variant)
    train_some_steps(model)
    if calibrated:
        calibrate(model, [(random_rays(64, seed),) for seed in (10, 11)])
    pictures = []
    for chunk in (WIDTH * HEIGHT, 64, 11):
        model.config.eval_num_rays_per_chunk = chunk
        pictures.append(model.get_outputs_for_camera(make_camera()))
    assert pictures[0]["rgb"].std() > 1e-4
    for picture in pictures[1:]:
        for name, values in pictures[0].items():
            torch.testing.assert_close(picture[name], values, rtol=1e-4, atol=2e-5, msg=name)


def test_evaluation_keeps_no_graph_and_equals_a_pass_with_gradients():
    model, rays = make_model("cn"), image_rays()
    train_some_steps(model)
    with torch.no_grad():
        outputs = model(rays)
    assert not any(values.requires_grad for values in outputs.values())
    for name, values in model(rays).items():
        torch.testing.assert_close(values, outputs[name], msg=name)


def test_training_draws_new_samples_each_time_and_rendering_never_does():
    model, rays = make_model(num_samples_outside=4), image_rays()
    model.train()
    assert not torch.equal(model(rays)["rgb"], model(rays)["rgb"])
    model.eval()
    before = torch.get_rng_state()
    assert torch.equal(model(rays)["rgb"], model(rays)["rgb"])
    assert torch.equal(torch.get_rng_state(), before)


# --- Background as in NeRF++


class Fog(nn.Module):
    """Stands in for the background's field: one colour, dense from a distance on."""

    def __init__(self, begin: float = 0.0, density: float = 1e4) -> None:
        super().__init__()
        self.begin, self.density, self.rgb = begin, density, torch.tensor([0.9, 0.1, 0.3])

    def forward(self, points, directions):
        density = self.density * (points.norm(dim=-1, keepdim=True) > self.begin)
        return density.float(), self.rgb.expand_as(points)


def test_background_network_shows_behind_the_object_and_outside_of_the_sphere_alone():
    model, rays = sphere_model(num_samples_outside=32, mask_loss_mult=0.0).eval(), image_rays()
    model.background_field = Fog(begin=2.0)
    outputs, fog = model(rays), model.background_field.rgb
    hit, missed = hits_of(rays, 0.9 * RADIUS)[0][:, 0], ~hits_of(rays, 1.1 * RADIUS)[0][:, 0]
    torch.testing.assert_close(outputs["rgb"][hit], model.field.rgb.expand(int(hit.sum()), 3), rtol=0, atol=0.01)
    torch.testing.assert_close(outputs["rgb"][missed], fog.expand(int(missed.sum()), 3), rtol=0, atol=0.01)
    torch.testing.assert_close(outputs["accumulation"], torch.ones_like(outputs["accumulation"]), rtol=0, atol=0.01)
    assert outputs["normals"][missed].norm(dim=-1).max() < 0.02


def test_background_network_takes_the_samples_outside_of_the_unit_sphere():
    """Also those before it: a fog that is everywhere hides the object from rays that begin outside."""
    model, rays = sphere_model(num_samples_outside=32, mask_loss_mult=0.0).eval(), image_rays()
    model.background_field = Fog()
    near, _ = neus.sphere_bounds(rays.origins, rays.directions)
    first = near + 1 / 64  # the middle of the first section
    outside = (rays.origins + first * rays.directions).norm(dim=-1) > 1
    hit = hits_of(rays, 0.9 * RADIUS)[0][:, 0]
    assert (hit & outside).any() and (hit & ~outside).any()
    rgb = model(rays)["rgb"]
    for where, expected in ((hit & outside, model.background_field.rgb), (hit & ~outside, model.field.rgb)):
        torch.testing.assert_close(rgb[where], expected.expand(int(where.sum()), 3), rtol=0, atol=0.01)


def test_background_network_is_asked_with_the_published_number_of_samples_and_trained():
    model, rays, asked = make_model(num_samples_outside=32, mask_loss_mult=0.0).train(), random_rays(8), []
    model.background_field.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    loss = sum(model.get_loss_dict(model(rays), {"image": torch.rand(8, 3)}).values())
    loss.backward()
    assert [points.shape for points in asked] == [(8, 16 + 16 + 32, 3)]
    parameters = {id(p) for p in model.get_param_groups()["fields"]}
    for part in (model.field, model.background_field):
        assert all(id(p) in parameters for p in part.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_there_is_no_background_network_unless_asked_for():
    model = make_model()
    assert model.background_field is None
    assert {name.split(".")[0] for name in model.state_dict()} == {"field", "device_indicator_param"}


# --- Losses


def outputs_of(rays: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "rgb": torch.rand(rays, 3, generator=generator),
        "accumulation": 1.2 * torch.rand(rays, 1, generator=generator) - 0.1,
        "eikonal_error": torch.rand(rays, 1, generator=generator),
        "eikonal_points": torch.randint(1, 9, (rays, 1), generator=generator).float(),
    }


def test_losses_are_the_published_ones():
    model, outputs = make_model(), outputs_of(40)
    batch = {"image": torch.rand(40, 3), "mask": torch.rand(40, 1)}
    losses = model.get_loss_dict(outputs, batch)

    rgb, target, mask = outputs["rgb"].numpy(), batch["image"].numpy(), (batch["mask"].numpy() > 0.5)
    color = (np.abs(rgb - target) * mask).sum() / (mask.sum() + 1e-5)
    eikonal = outputs["eikonal_error"].sum() / outputs["eikonal_points"].sum()
    opacity = np.clip(outputs["accumulation"].numpy(), 1e-3, 1 - 1e-3)
    entropy = -np.where(mask, np.log(opacity), np.log(1 - opacity)).mean()
    assert losses["rgb_loss"].item() == pytest.approx(color, rel=1e-5)
    assert losses["eikonal_loss"].item() == pytest.approx(0.1 * float(eikonal), rel=1e-5)
    assert losses["mask_loss"].item() == pytest.approx(0.1 * entropy, rel=1e-5)


def test_without_masks_all_pixels_count():
    model, outputs, target = make_model(mask_loss_mult=0.0), outputs_of(40), torch.rand(40, 3)
    expected = (outputs["rgb"] - target).abs().sum() / 40
    for batch in ({"image": target}, {"image": target, "mask": torch.zeros(40, 1)}):
        losses = model.get_loss_dict(outputs, batch)
        assert set(losses) == {"rgb_loss", "eikonal_loss"}
        assert losses["rgb_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_data_without_masks_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="no masks: .*--pipeline.model.mask-loss-mult 0"):
        make_model().get_loss_dict(outputs_of(4), {"image": torch.rand(4, 3)})


def test_eikonal_loss_of_a_true_distance_is_zero():
    rays = random_rays(30)
    assert sphere_model().train().get_loss_dict(sphere_model()(rays), batch_of(rays))["eikonal_loss"] < 1e-12


@pytest.mark.parametrize(
    ("options", "ratios"),
    [({}, (1, 1, 1)), ({"mask_loss_mult": 0.0}, (0, 0.5, 1)), ({"anneal_end": 100_000}, (0, 0.25, 0.5))],
    ids=["masks", "no masks", "set"],
)
def test_slopes_are_annealed_as_published(options: dict[str, Any], ratios: tuple[float, ...]):
    model = make_model(**options)
    attributes = TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=None)
    (callback,) = model.get_training_callbacks(attributes)
    for step, ratio in zip((0, 25_000, 50_000), ratios, strict=True):
        callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        assert model.anneal_ratio == ratio
    model.update_to_step(0)  # what loading a checkpoint calls
    assert model.anneal_ratio == ratios[0]


# --- Norms


@pytest.mark.parametrize(("norm", "variant"), NORMS[1:])
def test_first_training_pass_initializes_the_norms_on_its_render_points(norm: str, variant: str):
    model, plain, rays, given = make_model(norm, variant), make_model(), random_rays(64), []
    initialize = model.field.initialize_norms
    model.field.initialize_norms = lambda points: (given.append(points), initialize(points))
    model.field.sdf_network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = {name: p.clone() for name, p in model.named_parameters()}
    seen: list[torch.Tensor] = []
    model.train()
    model(rays)
    assert len(given) == 1
    assert given[0].shape == (64, 32, 3)
    radii = seen[-1][..., :3].norm(dim=-1)
    torch.testing.assert_close(given[0].norm(dim=-1), radii)  # what is rendered, turned around the centre
    # The samples are those that the plain network, which has the same weights, would have drawn.
    torch.manual_seed(3)
    model.field.norms_initialized.fill_(False)
    model(rays)
    torch.manual_seed(3)
    points: list[torch.Tensor] = []
    plain.field.sdf_network.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0][..., :3]))
    plain.train()(rays)
    torch.testing.assert_close(given[1].norm(dim=-1), points[-1].norm(dim=-1))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"field.sdf_network.layers.{i}.norm.{part}" for i in range(3) for part in ("weight", "bias")}
    model(rays)
    assert len(given) == 2


@pytest.mark.parametrize(("norm", "tolerance"), [("bn", 1e-4), ("gn", 1e-4), ("cn", 0.05)])
def test_training_starts_with_the_plain_networks_surface(norm: str, tolerance: float):
    """But for what the first batch moves the averages, which is held still here."""
    model, plain, rays = make_model(norm, norm_momentum=1e-9), make_model(), random_rays(256)
    model.train()(rays)
    points = 0.8 * (2 * torch.rand(2000, 3) - 1)
    expected, _, _ = plain.field.geometry(points)
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(model.field.signed_distance(points), expected, rtol=0, atol=tolerance)


def test_norms_start_with_the_statistics_of_all_sides_although_a_batch_is_one_picture():
    model, rays = make_model("cn"), random_rays(256)
    rays.origins = torch.tensor([[0.0, 0.0, -3.0]]).expand(256, 3).contiguous()
    targets = torch.randn(256, 3) * torch.tensor([0.3, 0.3, 0.0])
    rays.directions = functional.normalize(targets - rays.origins, dim=-1)
    norm, features = norms_of(model.field.sdf_network)[0], []
    norm.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach().reshape(-1, 32)))
    model.train()(rays)
    stored, one_view = norm.domains["render"], features[-1]
    off_center = (one_view.mean(0) / one_view.std(0)).square().mean().sqrt()
    assert off_center > 0.3, "the surface is met on one side"
    assert (stored.running_mean.square() / stored.running_var).mean().sqrt() < off_center / 2


def test_norms_can_start_with_scale_1_and_shift_0():
    model = make_model("cn", norm_initialization="default").train()
    model(random_rays(16))
    for part in norms_of(model):
        assert (part.weight == 1).all()
        assert not part.bias.any()


def test_initialization_survives_saving_and_loading():
    model = make_model("cn")
    train_some_steps(model)
    resumed = make_model("cn")
    assert not resumed.field.norms_initialized
    resumed.load_state_dict(model.state_dict())
    before = {name: p.clone() for name, p in resumed.named_parameters()}
    resumed.train()(random_rays(64))
    assert all(torch.equal(p, before[name]) for name, p in resumed.named_parameters())


def test_passes_without_gradients_and_evaluation_do_not_initialize_norms():
    model = make_model("cn").train()
    with torch.no_grad(), pytest.raises(RuntimeError, match="train, or call crossnorm_ns.calibrate"):
        model(random_rays(8))
    assert not model.field.norms_initialized


@pytest.mark.parametrize(("norm", "variant"), WITH_COLUMNS)
def test_render_pass_alone_updates_the_moving_averages(norm: str, variant: str):
    """With momentum 1 they are the statistics of the last points that updated them."""
    model = make_model(norm, variant, norm_momentum=1.0)
    train_some_steps(model)
    layer, features = model.field.sdf_network.layers[0], []
    layer.norm.register_forward_pre_hook(lambda _, inputs: features.append((inputs[0], torch.is_grad_enabled())))
    model.train()(random_rays(64, seed=5))
    assert [enabled for _, enabled in features] == [False] * 4 + [True], "four of up-sampling, then the render pass"
    rendered = features[-1][0].detach().reshape(-1, 32)
    torch.testing.assert_close(layer.norm.domains["render"].running_mean, rendered.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.norm.domains["render"].running_var, rendered.var(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "variant"), WITH_COLUMNS)
def test_sampling_and_rendering_leave_the_buffers_alone(norm: str, variant: str):
    model, rays = make_model(norm, variant), random_rays(32, seed=4)
    train_some_steps(model)
    before = buffers(model)
    model(rays)
    model.get_outputs_for_camera(make_camera())
    model.train()
    with torch.no_grad():
        model(rays)
    assert changed(model, before) == []


def distances_in_training_and_evaluation(model: NeuSModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a training pass with gradients and of evaluation, where the surface is less than 0.05 away."""
    points = 2 * torch.rand(60_000, 3, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        points = points[model.eval().field.signed_distance(points)[:, 0].abs() < 0.05]
        evaluated = model.field.signed_distance(points)
    for part in norms_of(model):
        part.momentum = 1e-12  # so that these points, which are no batch of rays, do not move the average
    return model.train().field.signed_distance(points).detach(), evaluated


@pytest.mark.parametrize(("norm", "variant"), WITH_COLUMNS)
def test_surface_that_is_evaluated_is_the_surface_that_was_trained(norm: str, variant: str):
    model = make_model(norm, variant)
    train_some_steps(model, steps=20)
    calibrate(model, [(random_rays(64, seed),) for seed in range(20)])
    trained, evaluated = distances_in_training_and_evaluation(model)
    assert len(trained) > 1000
    assert (trained - evaluated).abs().mean() < 1e-5


def test_with_the_statistics_of_the_batch_the_trained_surface_is_another():
    model = make_model("cn", norm_statistics="batch")
    train_some_steps(model, steps=20)
    trained, evaluated = distances_in_training_and_evaluation(model)
    assert (trained - evaluated).abs().mean() > 1e-2


@pytest.mark.parametrize(("norm", "variant"), NORMS)
def test_training_learns_a_sphere(norm: str, variant: str):
    model, rays = make_model(norm, variant), image_rays()
    batch = batch_of(rays)
    model.train()(rays)
    model.eval()
    first = sum(model.get_loss_dict(model(rays), batch).values())
    train_some_steps(model, steps=40, rays=128, rate=5e-3)
    last = sum(model.get_loss_dict(model(rays), batch).values())
    assert last < 0.7 * first


# --- Metrics and pictures


def image_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.reshape(HEIGHT, WIDTH, -1) for name, values in batch.items()}


def test_metrics_tell_psnr_inside_the_mask_and_of_the_whole():
    model, outputs = make_model(), outputs_of(40)
    batch = {"image": torch.rand(40, 3), "mask": torch.rand(40, 1)}
    metrics = model.get_metrics_dict(outputs, batch)
    errors, inside = (outputs["rgb"] - batch["image"]).square().double().numpy(), batch["mask"][:, 0].numpy() > 0.5
    assert metrics["psnr"].item() == pytest.approx(-10 * math.log10(errors.mean()), rel=1e-6)
    assert metrics["psnr_mask"].item() == pytest.approx(-10 * math.log10(errors[inside].mean()), rel=1e-6)
    assert metrics["inv_s"].item() == pytest.approx(math.exp(-3), rel=1e-5)


def test_a_batch_outside_of_the_mask_has_no_psnr_inside():
    batch = {"image": torch.rand(40, 3), "mask": torch.zeros(40, 1)}
    assert "psnr_mask" not in make_model().get_metrics_dict(outputs_of(40), batch)


@pytest.mark.parametrize(("background", "level"), [("none", None), ("white", 1.0), ("black", 0.0)])
def test_whole_pictures_are_compared_over_the_chosen_background(background: str, level: float | None):
    model, outputs = make_model(background=background), outputs_of(40)
    batch = {"image": torch.rand(40, 3), "mask": (torch.rand(40, 1) > 0.5).float()}
    target = batch["image"] if level is None else torch.where(batch["mask"] > 0, batch["image"], torch.tensor(level))
    expected = -10 * math.log10((outputs["rgb"] - target).square().double().mean())
    assert model.get_metrics_dict(outputs, batch)["psnr"].item() == pytest.approx(expected, rel=1e-6)
    assert model.get_loss_dict(outputs, batch)["rgb_loss"] == make_model().get_loss_dict(outputs, batch)["rgb_loss"]


def test_image_metrics_and_pictures():
    model = sphere_model().eval()
    outputs = model.get_outputs_for_camera(make_camera())
    batch = image_batch(batch_of(image_rays()))
    metrics, pictures = model.get_image_metrics_and_images(outputs, batch)
    assert set(metrics) == {"psnr", "psnr_mask", "ssim", "inv_s", "mask_iou"}
    assert all(type(value) is float for value in metrics.values())
    assert 0.8 < metrics["mask_iou"] <= 1
    shown, wanted = outputs["accumulation"].numpy() > 0.5, batch["mask"].numpy() > 0.5
    assert metrics["mask_iou"] == pytest.approx((shown & wanted).sum() / (shown | wanted).sum())
    assert set(pictures) == {"img", "accumulation", "depth", "normals"}
    torch.testing.assert_close(pictures["img"], torch.cat([batch["image"], outputs["rgb"]], dim=1))
    for name in ("accumulation", "depth", "normals"):
        assert pictures[name].shape == (HEIGHT, WIDTH, 3)
    middle = pictures["normals"][HEIGHT // 2, WIDTH // 2]
    towards_camera = functional.normalize(make_camera().camera_to_worlds[0, :, 3], dim=0)
    torch.testing.assert_close(middle, (towards_camera + 1) / 2, rtol=0, atol=0.1)


# --- Configuration


def test_defaults_are_those_of_wmask_conf():
    config = NeuSModelConfig()
    expected = {
        "num_samples": 64,
        "num_importance": 64,
        "up_sample_steps": 4,
        "num_samples_outside": 0,
        "eikonal_loss_mult": 0.1,
        "mask_loss_mult": 0.1,
        "background": "none",
    }
    assert {name: getattr(config, name) for name in expected} == expected
    field = {
        "sdf_depth": 8,
        "sdf_width": 256,
        "sdf_skip": 4,
        "num_features": 256,
        "point_degrees": 6,
        "color_depth": 4,
        "color_width": 256,
        "view_degrees": 4,
        "initial_radius": 0.5,
        "initial_variance": 0.3,
        "weight_norm": True,
    }
    assert {name: getattr(config.sdf_field, name) for name in field} == field


def test_norms_follow_their_switches():
    model = make_model("none", sdf_norm="bn", color_norm="cn", norm_variant="released", norm_statistics="batch")
    sdf, color = norms_of(model.field.sdf_network), norms_of(model.field.color_network)
    assert {(type(part).__name__, part.statistics) for part in sdf} == {("BatchNorm", "batch")}
    assert {(type(part).__name__, part.formula.variant) for part in color} == {("CrossNorm", "released")}
    default = norms_of(make_model("cn"))
    assert {(part.formula.variant, part.statistics, part.momentum) for part in default} == {("paper", "renorm", 0.05)}
    assert not any(part.coupled_gradients for part in default)
    assert all(part.coupled_gradients for part in norms_of(make_model("cn", norm_coupled_gradients=True)))


def test_samples_that_the_steps_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_importance is 16, but must be a multiple of up_sample_steps, 3"):
        make_model(up_sample_steps=3)


def test_model_can_be_copied():
    model = make_model("cn")
    train_some_steps(model)
    rays = image_rays()
    torch.testing.assert_close(copy.deepcopy(model)(rays)["rgb"], model(rays)["rgb"])
