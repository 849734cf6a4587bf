"""VolSDF on nerfstudio: density, rendering, norms, and the methods as a user meets them."""

import copy
import json
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import all_descriptions, all_methods
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.scripts import eval as ns_eval
from states import differences
from test_neus_model import SMALL, batch_of, buffers, changed, hits_of, image_rays, random_rays, train_some_steps
from torch import nn
from trainings import checkpoint_of, configured, train

from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.fields.sdf_field import SDFFieldConfig
from crossnorm_ns.models.volsdf import VolSDFModel, VolSDFModelConfig
from crossnorm_ns.norms import norms_of
from eval.extract_mesh import extract_run_mesh
from method_configs.volsdf import tiny_config, volsdf_cn, volsdf_cn_tiny, volsdf_ref

METHODS = {"volsdf-cn": volsdf_cn, "volsdf-ref": volsdf_ref, "volsdf-cn-tiny": volsdf_cn_tiny}
pytestmark = pytest.mark.usefixtures("own_writers")


def make_model(norm: Any = "none", **options: Any) -> VolSDFModel:
    defaults: dict[str, Any] = {"sdf_norm": norm, "color_norm": norm, "mask_loss_mult": 0.1}
    sizes = {"num_samples": 12, "num_samples_even": 16, "num_samples_extra": 4}
    config = VolSDFModelConfig(sdf_field=SDFFieldConfig(**SMALL), **(defaults | sizes | options))
    torch.manual_seed(0)
    return config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1)


class Sphere(nn.Module):
    """Stands in for the field: a true distance from a sphere of radius 0.4, its normal as its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norms_initialized", torch.tensor(True))

    def signed_distance(self, points: torch.Tensor) -> torch.Tensor:
        return points.norm(dim=-1, keepdim=True) - 0.4

    def geometry(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.signed_distance(points), nn.functional.normalize(points, dim=-1), points[..., :0]

    def colors(self, points, directions, gradients, features) -> torch.Tensor:
        return (gradients + 1) / 2


def hits(rays: RayBundle) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rays hit the sphere and which miss it; those that graze it do neither."""
    middle = -(rays.origins * rays.directions).sum(-1, keepdim=True)
    below = 0.16 - (rays.origins + middle * rays.directions).square().sum(-1)
    hit, missed = below > 0.02, below < -0.05
    assert hit.sum() > 20 and missed.sum() > 20
    return hit, missed


# --- Model


def test_thin_density_shows_the_sphere_with_its_colours_depth_and_mask():
    model = make_model(initial_beta=0.003, num_samples=64, num_samples_even=64).eval()
    model.field = Sphere()
    rays = random_rays(200)
    with torch.no_grad():
        outputs = model(rays)
    hit, missed = hits(rays)
    assert (outputs["accumulation"][hit] > 0.99).all() and (outputs["accumulation"][missed] < 0.02).all()
    assert (outputs["depth"] - hits_of(rays)[1])[hit].abs().max() < 0.03
    assert (outputs["rgb"] - batch_of(rays)["image"])[hit].abs().max() < 0.05


def test_without_masks_every_ray_ends_at_the_bounding_sphere_at_the_latest():
    model = make_model(mask_loss_mult=0.0, initial_beta=0.01, num_samples=32, num_samples_even=32).eval()
    model.field = Sphere()
    rays = random_rays(100)
    with torch.no_grad():
        outputs = model(rays)
    assert (outputs["accumulation"] > 0.99).all()
    ends = (rays.origins + outputs["depth"] * rays.directions).norm(dim=-1)
    hit, missed = hits(rays)
    assert (ends[hit] - 0.4).abs().max() < 0.1
    assert (ends[missed] - 3).abs().max() < 0.2


@pytest.mark.parametrize("masks", [0.0, 0.1])
@pytest.mark.parametrize("norm", ["none", "bn", "cn"])
def test_picture_does_not_depend_on_the_size_of_the_chunks(norm: str, masks: float):
    model, rays = make_model(norm, mask_loss_mult=masks), image_rays()
    train_some_steps(model)
    with torch.no_grad():
        whole = model(rays)
        chunks = [model(rays[i : i + 37]) for i in range(0, len(rays), 37)]
    for key, values in whole.items():
        torch.testing.assert_close(torch.cat([chunk[key] for chunk in chunks]), values, rtol=1e-3, atol=1e-3)


def test_sampling_reads_statistics_and_the_render_pass_alone_updates_them():
    model = make_model("cn")
    train_some_steps(model)
    model.train()
    rays = random_rays(16)
    before = buffers(model)
    model._samples(rays.origins, rays.directions, torch.linspace(1.5, 3.5, 16).expand(16, -1))
    assert changed(model, before) == []
    model(rays)
    assert changed(model, before)
    assert {domain for norm in norms_of(model) for domain in norm.domains} == {"render"}


def test_norms_begin_as_the_identity_on_the_sphere_of_the_start():
    model, plain = make_model("bn"), make_model()
    model.train()
    model(random_rays(64))
    assert model.field.norms_initialized
    points = 0.8 * torch.rand(200, 3) - 0.4
    model.eval()
    with torch.no_grad():
        difference = model.field.signed_distance(points) - plain.field.signed_distance(points)
    assert difference.abs().mean() < 0.1


def test_gradient_of_beta_agrees_with_finite_differences():
    model = make_model().double().eval()
    rays = random_rays(30)
    rays.origins, rays.directions = rays.origins.double(), rays.directions.double()
    t = model._samples(rays.origins, rays.directions, torch.linspace(1.5, 3.5, 16).double().expand(30, -1))
    model._samples = lambda *_: t  # which depend on beta as well, but are no part of the gradient

    def loss() -> torch.Tensor:
        return model(rays)["rgb"].square().sum() + model(rays)["accumulation"].sum()

    (gradient,) = torch.autograd.grad(loss(), model.learned_beta)
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            model.learned_beta += sign * step
            values.append(loss())
            model.learned_beta -= sign * step
    assert abs(gradient.item()) > 1e-3
    assert gradient.item() == pytest.approx(((values[0] - values[1]) / (2 * step)).item(), rel=1e-4)


def test_beta_is_learned_and_reported():
    model = make_model()
    assert model.beta.item() == pytest.approx(0.1 + 1e-4)
    train_some_steps(model)
    assert model.learned_beta.item() != pytest.approx(0.1, abs=1e-6)
    outputs = model(random_rays(5))
    assert model.get_metrics_dict(outputs, batch_of(random_rays(5)))["beta"] == model.beta
    assert not any("variance" in name for name in model.state_dict())


# --- Methods


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_registered_under_their_names_and_survive_their_yaml_file(name: str):
    (entry,) = entry_points(group="nerfstudio.method_configs", name=name)
    assert entry.load() is METHODS[name]
    config = METHODS[name].config
    assert config.method_name == name
    assert all_methods[name] is config
    assert all_descriptions[name] == METHODS[name].description
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


@pytest.mark.parametrize("method", [volsdf_cn, volsdf_ref])
def test_training_is_that_of_dtu_conf(method: Any):
    config, model = method.config, method.config.pipeline.model
    fields = config.optimizers["fields"]
    assert config.pipeline.datamanager.train_num_rays_per_batch == 1024
    assert (fields["optimizer"].lr, fields["optimizer"].weight_decay) == (5e-4, 0)
    scheduler = replace(fields["scheduler"], max_steps=1000).setup()
    assert [scheduler.multiplier(step) for step in (0, 500, 1000)] == pytest.approx([1, 0.1**0.5, 0.1])
    assert (model.eikonal_loss_mult, model.mask_loss_mult, model.bounding_radius) == (0.1, 0, 3)
    assert (model.initial_beta, model.beta_min, model.sdf_field.initial_radius) == (0.1, 1e-4, 0.6)
    assert (model.num_samples, model.num_samples_even, model.num_samples_extra) == (64, 128, 32)
    assert (model.sampler_tolerance, model.sampler_iterations) == (0.1, 5)


def test_reference_differs_from_the_method_in_the_norms_alone():
    plain, cross = volsdf_ref.config, volsdf_cn.config
    model = replace(plain.pipeline.model, sdf_norm="cn", color_norm="cn")
    assert replace(plain, method_name="volsdf-cn", pipeline=replace(plain.pipeline, model=model)) == cross


def make_config(scan: Path, output: Path, **changes: Any) -> CrossNormTrainerConfig:
    """Two steps of a very small network."""
    config = copy.deepcopy(tiny_config("volsdf-cn-tiny", "cn", steps=2))
    datamanager, model = config.pipeline.datamanager, config.pipeline.model
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 32
    datamanager.dataparser.eval_mode, datamanager.dataparser.eval_interval = "interval", 3
    model.num_samples = model.num_samples_even = 8
    field = model.sdf_field
    field.sdf_width, field.num_features, field.color_width, field.point_degrees = 16, 8, 8, 3
    return configured(config, scan, output, **changes)


def test_two_steps_train_evaluate_and_give_a_mesh(scan: Path, tmp_path: Path):
    run = train(make_config(scan, tmp_path))
    ns_eval.ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "out.json").main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    for name in ("psnr", "psnr_mask", "ssim", "mask_iou", "beta"):
        assert isinstance(results[name], float), name
    mesh = extract_run_mesh(run / "config.yml", resolution=24, space="unit", device="cpu")
    assert len(mesh.faces) > 100


def test_stopping_and_saving_leave_no_trace(scan: Path, tmp_path: Path):
    def steps(folder: str, **changes: Any) -> Path:
        config = make_config(scan, tmp_path / folder, **({"max_num_iterations": 4} | changes))
        config.optimizers["fields"]["scheduler"].max_steps = 4
        return train(config)

    one_go = checkpoint_of(steps("one go"))
    first = steps("first", max_num_iterations=2)
    assert differences(one_go, checkpoint_of(first)), "two steps must differ from four"
    assert differences(one_go, checkpoint_of(steps("busy", steps_per_save=1))) == []
    assert differences(one_go, checkpoint_of(steps("second", load_dir=first / "nerfstudio_models"))) == []
