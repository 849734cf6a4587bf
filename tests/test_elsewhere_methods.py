"""nerfstudio's own models with norms, as a user meets them: without network, from training to evaluation."""

import copy
import json
from dataclasses import fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import all_descriptions, all_methods, method_configs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.models.vanilla_nerf import NeRFModel
from nerfstudio.scripts import eval as ns_eval
from states import differences
from trainings import checkpoint_of, configured, make_trainer, train

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.models.optional_lpips import _without_lpips
from crossnorm_ns.norms import calibrate, norms_of
from method_configs.elsewhere import nerfacto_cn, vanilla_nerf_cn

METHODS = {"vanilla-nerf-cn": vanilla_nerf_cn, "nerfacto-cn": nerfacto_cn}
SMALL: dict[str, dict[str, Any]] = {
    "vanilla-nerf-cn": {"num_coarse_samples": 6, "num_importance_samples": 6},
    "nerfacto-cn": {
        "num_proposal_samples_per_ray": (8, 6),
        "num_nerf_samples_per_ray": 5,
        "num_levels": 3,
        "log2_hashmap_size": 8,
        "max_res": 32,
        "proposal_net_args_list": [
            {"hidden_dim": 8, "log2_hashmap_size": 8, "num_levels": 2, "max_res": 32, "use_linear": False}
        ],
    },
}
PLAIN = {"vanilla-nerf-cn": ("vanilla-nerf", NeRFModel), "nerfacto-cn": ("nerfacto", NerfactoModel)}
pytestmark = pytest.mark.usefixtures("own_writers")


def make_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = replace(METHODS[name].config.pipeline.model, **SMALL[name], **options)
    return config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=4)


def make_rays(count: int, seed: int = 0) -> RayBundle:
    generator = torch.Generator().manual_seed(seed)
    origins = 4 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(0.3 * torch.randn(count, 3, generator=generator) - origins, dim=-1)
    return RayBundle(
        origins=origins,
        directions=directions,
        pixel_area=torch.ones(count, 1),
        camera_indices=torch.arange(count)[:, None] % 4,
        metadata={"directions_norm": torch.ones(count, 1)},
    )


def trained(model: Any, steps: int = 3) -> Any:
    """A model after some steps of Adam towards grey, calibrated and in evaluation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        model.train()
        outputs = model(make_rays(48, seed=step))
        optimizer.zero_grad()
        (outputs.get("rgb", outputs.get("rgb_fine")) - 0.5).square().mean().backward()
        optimizer.step()
    calibrate(model, [(make_rays(48, seed=9),)])
    return model.eval()


# --- Configurations


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_registered_under_their_names(name: str):
    (entry,) = entry_points(group="nerfstudio.method_configs", name=name)
    assert entry.load() is METHODS[name]
    assert METHODS[name].config.method_name == name
    assert all_methods[name] is METHODS[name].config
    assert all_descriptions[name] == METHODS[name].description


@pytest.mark.parametrize("name", METHODS)
def test_configuration_survives_its_yaml_file(name: str):
    config = METHODS[name].config
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_the_model_and_the_optimizers_are_nerfstudios(name: str):
    config, theirs = METHODS[name].config, method_configs[PLAIN[name][0]]
    for setting in fields(theirs.pipeline.model):
        if setting.name not in ("_target", "implementation"):
            ours = getattr(config.pipeline.model, setting.name)
            assert ours == getattr(theirs.pipeline.model, setting.name), setting.name
    assert config.optimizers == theirs.optimizers
    assert (config.max_num_iterations, config.mixed_precision) == (theirs.max_num_iterations, theirs.mixed_precision)
    rays = theirs.pipeline.datamanager.train_num_rays_per_batch
    assert config.pipeline.datamanager.train_num_rays_per_batch == rays


# --- Models


@pytest.mark.parametrize("name", METHODS)
def test_without_a_norm_the_model_is_nerfstudios_to_the_bit(name: str):
    ours = make_model(name, norm="none")
    torch.manual_seed(0)
    with _without_lpips():
        theirs = PLAIN[name][1](copy.deepcopy(ours.config), scene_box=ours.scene_box, num_train_data=4)
    rays = make_rays(20)
    assert not norms_of(ours)
    for model in (ours, theirs):
        model.train()
    torch.manual_seed(1)
    expected = theirs(copy.deepcopy(rays))
    torch.manual_seed(1)
    outputs = ours(rays)
    assert outputs.keys() == expected.keys()
    for key, values in expected.items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(outputs[key], values), key


def test_vanilla_nerf_has_a_norm_before_each_hidden_relu():
    widths = [norm.num_channels for norm in norms_of(make_model("vanilla-nerf-cn"))]
    assert widths == 2 * ([256] * 8 + [128] * 2)


def test_nerfacto_has_norms_behind_all_hash_grids():
    model = make_model("nerfacto-cn", predict_normals=True)
    assert [norm.num_channels for norm in norms_of(model.field)] == [64] + 2 * [64] + 2 * [64]
    assert [norm.num_channels for norm in norms_of(model.proposal_networks)] == [8, 8]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("norm", ["bn", "cn"])
def test_picture_does_not_depend_on_the_size_of_the_chunks(name: str, norm: str):
    model, rays = trained(make_model(name, norm=norm)), make_rays(40, seed=3)
    with torch.no_grad():
        whole = model(copy.deepcopy(rays))
        chunks = [model(rays[i : i + 7]) for i in range(0, 40, 7)]
    for key, values in whole.items():
        torch.testing.assert_close(torch.cat([chunk[key] for chunk in chunks]), values, rtol=1e-4, atol=1e-5)


def test_rounds_of_proposals_have_statistics_of_their_own_where_they_share_a_network():
    model = make_model("nerfacto-cn", use_same_proposal_network=True)
    copied = copy.deepcopy(model)
    assert copied.density_fns[0].args[0] is copied.proposal_networks[0]
    trained(model)
    (norm,) = norms_of(model.proposal_networks)
    assert set(norm.domains) == {"proposal_0", "proposal_1"}
    assert not torch.equal(norm.domains["proposal_0"].mean, norm.domains["proposal_1"].mean)


@pytest.mark.parametrize("norm", ["bn", "cn"])
def test_normals_of_nerfacto_in_training_are_those_of_the_function_that_evaluation_renders(norm: str):
    """Renormalised norms have the same values in both; coupled gradients would differ by terms of other points."""
    model = make_model("nerfacto-cn", norm=norm, predict_normals=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hash_table" in name:
                parameter.uniform_(-1, 1)
    model.train()
    samples = model.proposal_sampler(model.collider(make_rays(8)), density_fns=model.density_fns)[0]
    outputs = {}
    for training in (True, False):
        model.train(training)
        outputs[training] = {key.value: values for key, values in model.field(samples, compute_normals=True).items()}
    torch.testing.assert_close(outputs[True]["density"], outputs[False]["density"])
    torch.testing.assert_close(outputs[True]["normals"], outputs[False]["normals"], rtol=1e-3, atol=1e-3)


def test_lpips_is_measured_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    class Quarter(torch.nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            return torch.tensor(0.25)

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", Quarter)
    for asked in (False, True):
        model = make_model("vanilla-nerf-cn", norm="none", eval_lpips=asked).eval()
        rays = make_rays(16 * 16)
        with torch.no_grad():
            outputs = {key: values.view(16, 16, -1) for key, values in model(rays).items()}
        metrics, _ = model.get_image_metrics_and_images(outputs, {"image": torch.rand(16, 16, 3)})
        assert metrics.get("fine_lpips") == (0.25 if asked else None)
        assert {"psnr", "fine_ssim"} <= metrics.keys()


# --- Training


def make_config(name: str, scene: Path, output: Path, **changes: Any) -> CrossNormTrainerConfig:
    """Two steps of 32 rays on a Blender scene."""
    config = configured(copy.deepcopy(METHODS[name].config), scene, output, **({"max_num_iterations": 2} | changes))
    datamanager = config.pipeline.datamanager
    datamanager.dataparser = BlenderCNDataParserConfig()
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 32
    config.pipeline.model = replace(config.pipeline.model, **SMALL[name])
    return config


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_train_and_evaluate(name: str, tiny_scene: Path, tmp_path: Path):
    run = train(make_config(name, tiny_scene, tmp_path))
    ns_eval.ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "out.json").main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert 5 < results["psnr"] < 40
    assert not any("lpips" in key for key in results)
    names = checkpoint_of(run)["pipeline"]
    assert any(".domains." in name for name in names)
    assert not any("lpips" in name for name in names)


@pytest.mark.parametrize("name", METHODS)
def test_norms_are_calibrated_before_a_save_without_an_effect_on_training(name: str, tiny_scene: Path, tmp_path: Path):
    quiet = checkpoint_of(train(make_config(name, tiny_scene, tmp_path / "quiet")))
    busy = checkpoint_of(train(make_config(name, tiny_scene, tmp_path / "busy", steps_per_save=1)))
    assert differences(quiet, busy) == []


@pytest.mark.parametrize(("name", "steps"), [("vanilla-nerf-cn", 4), ("nerfacto-cn", 16)])
def test_stopping_and_evaluating_leave_no_trace(name: str, steps: int, tiny_scene: Path, tmp_path: Path):
    """Also behind step 10, from which on nerfacto's proposal networks rest in some steps."""

    def trained_in(folder: str, **changes: Any) -> Path:
        return train(make_config(name, tiny_scene, tmp_path / folder, **({"max_num_iterations": steps} | changes)))

    one_go = checkpoint_of(trained_in("one go"))
    first = trained_in("first", max_num_iterations=steps - 3)
    assert differences(one_go, checkpoint_of(first))
    assert differences(one_go, checkpoint_of(trained_in("second", load_dir=first / "nerfstudio_models"))) == []
    assert differences(one_go, checkpoint_of(trained_in("busy", steps_per_save=5, steps_per_eval_batch=1))) == []


def test_proposal_networks_of_nerfacto_are_trained_in_the_steps_of_nerfstudio():
    def steps_trained(model: Any) -> list[int]:
        found = []
        nothing: Any = None
        callbacks = model.get_training_callbacks(TrainingCallbackAttributes(nothing, nothing, nothing, nothing))
        model.train()
        for step in range(40):
            for callback in callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            weights = model(make_rays(4, seed=step))["weights_list"]
            if weights[0].requires_grad:
                found.append(step)
            for callback in callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        return found

    options = {"norm": "none", "proposal_warmup": 30, "proposal_update_every": 4}
    ours = make_model("nerfacto-cn", **options)
    with _without_lpips():
        theirs = NerfactoModel(copy.deepcopy(ours.config), scene_box=ours.scene_box, num_train_data=4)
    expected = steps_trained(theirs)
    assert steps_trained(ours) == expected
    assert len(expected) < 30, "they rest in some steps"


def test_calibration_stores_population_statistics_of_both_levels(tiny_scene: Path, tmp_path: Path):
    trainer = make_trainer(make_config("vanilla-nerf-cn", tiny_scene, tmp_path))
    trainer.train()
    model: Any = trainer.pipeline.model
    for nerf in (model.field_coarse, model.field_fine):
        for norm in norms_of(nerf):
            (domain,) = norm.domains.values()
            assert not torch.equal(domain.mean, domain.running_mean)
