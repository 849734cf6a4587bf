"""The NeuS methods as a user meets them, and trainings that resume exactly."""

import json
import os
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_descriptions, all_methods
from nerfstudio.scripts import eval as ns_eval
from nerfstudio.utils.eval_utils import eval_setup
from states import differences
from trainings import checkpoint_of, configured, make_trainer, train

from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig
from crossnorm_ns.data.dtu_dataset import DTUDataset
from crossnorm_ns.data.uniform_sampler import UniformPixelSamplerConfig
from crossnorm_ns.engine.schedulers import WarmupCosineSchedulerConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from method_configs.neus import neus_cn, neus_cn_tiny, neus_ref, tiny_config

METHODS = {"neus-cn": neus_cn, "neus-ref": neus_ref, "neus-cn-tiny": neus_cn_tiny}
pytestmark = pytest.mark.usefixtures("own_writers")


def make_config(scan: Path, output: Path, norm: str = "cn", **changes: Any) -> CrossNormTrainerConfig:
    """Eight steps of a very small network, without evaluations or saves on the way unless `changes` say so."""
    config = tiny_config("neus-cn-tiny", norm, 5e-3, steps=8)
    datamanager, model = config.pipeline.datamanager, config.pipeline.model
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 32
    datamanager.dataparser.eval_mode, datamanager.dataparser.eval_interval = "interval", 3
    config.optimizers["fields"]["scheduler"].warmup_steps = 3
    model.num_samples = model.num_importance = 8
    field = model.sdf_field
    field.sdf_width, field.num_features, field.color_width, field.point_degrees = 16, 8, 8, 3
    return configured(config, scan, output, **changes)


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


@pytest.mark.parametrize("method", METHODS.values())
def test_batches_are_of_one_picture_as_published_and_of_all_with_the_tiny_preset(method):
    datamanager = method.config.pipeline.datamanager
    assert isinstance(datamanager.dataparser, DTUCNDataParserConfig)
    assert isinstance(datamanager.pixel_sampler, UniformPixelSamplerConfig)
    assert datamanager.pixel_sampler.single_image == (method is not neus_cn_tiny)
    assert datamanager._target.__args__ == (DTUDataset,)
    assert method.config.vis == "tensorboard"
    assert not method.config.mixed_precision


@pytest.mark.parametrize("method", [neus_cn, neus_ref])
def test_training_is_that_of_wmask_conf(method):
    config = method.config
    fields = config.optimizers["fields"]
    assert set(config.optimizers) == {"fields"}
    assert (config.max_num_iterations, config.pipeline.datamanager.train_num_rays_per_batch) == (300_000, 512)
    assert (fields["optimizer"].lr, fields["optimizer"].eps, fields["optimizer"].weight_decay) == (5e-4, 1e-8, 0)
    assert fields["scheduler"] == WarmupCosineSchedulerConfig(
        final_multiplier=0.05, warmup_steps=5000, max_steps=None
    )
    assert (config.steps_per_save, config.steps_per_eval_image) == (10_000, 2_500)


@pytest.mark.parametrize(("statistics", "batches"), [("batch", 20), ("renorm", 1)])
def test_batch_statistics_are_calibrated_over_twenty_batches_and_moving_averages_need_none(
    scan: Path, tmp_path: Path, statistics: str, batches: int
):
    assert {method.config.calibration_batches for method in METHODS.values()} == {20}
    config = make_config(scan, tmp_path, calibration_batches=20)
    config.pipeline.model.norm_statistics = statistics
    trainer = make_trainer(config)
    drawn, next_train = [], trainer.pipeline.datamanager.next_train
    trainer.pipeline.datamanager.next_train = lambda step: (drawn.append(step), next_train(step))[1]
    trainer.calibrate_norms()
    assert len(drawn) == batches, "the first sets up the statistics of the norms"
    trainer.calibrate_norms()
    assert len(drawn) == (40 if statistics == "batch" else 1)


def test_reference_differs_from_the_method_in_the_norms_alone():
    plain, cross = neus_ref.config, neus_cn.config
    norms = {"sdf_norm": "cn", "color_norm": "cn"}
    assert {plain.pipeline.model.sdf_norm, plain.pipeline.model.color_norm} == {"none"}
    model = replace(plain.pipeline.model, **norms)
    assert model == cross.pipeline.model
    assert replace(plain, method_name="neus-cn", pipeline=replace(plain.pipeline, model=model)) == cross


@pytest.mark.parametrize(
    ("arguments", "norms"),
    [({"norm": "none"}, ("none", "none")), ({"norm": "bn"}, ("bn", "bn"))]
    + [({"norm": "none", "color_norm": "cn"}, ("none", "cn"))],
)
def test_tiny_presets_differ_in_their_norms_alone(arguments: dict, norms: tuple[str, str]):
    model, expected = tiny_config("some", **arguments).pipeline.model, neus_cn_tiny.config.pipeline.model
    assert model == replace(expected, sdf_norm=norms[0], color_norm=norms[1])


# --- The schedule


def published_rate(step: int, warmup: int, end: int, final: float) -> float:
    if step < warmup:
        return step / warmup
    return final + (1 - final) * (torch.cos(torch.tensor((step - warmup) / (end - warmup) * torch.pi)).item() + 1) / 2


@pytest.mark.parametrize("step", [0, 1, 2_500, 4_999, 5_000, 5_001, 100_000, 152_500, 299_999])
def test_schedule_is_the_published_one(step: int):
    scheduler = WarmupCosineSchedulerConfig(max_steps=300_000).setup()
    assert scheduler.multiplier(step) == pytest.approx(published_rate(step, 5_000, 300_000, 0.05), abs=1e-6)


def test_schedule_rises_falls_and_stays():
    multiplier = WarmupCosineSchedulerConfig(max_steps=300_000).setup().multiplier
    assert (multiplier(0), multiplier(2_500), multiplier(5_000)) == (0, 0.5, 1)
    assert multiplier(152_500) == pytest.approx((1 + 0.05) / 2)
    assert multiplier(300_000) == multiplier(400_000) == pytest.approx(0.05)
    assert WarmupCosineSchedulerConfig(max_steps=10, warmup_steps=0).setup().multiplier(0) == 1


def test_schedule_without_an_end_says_what_to_do():
    with pytest.raises(ValueError, match="max_steps"):
        WarmupCosineSchedulerConfig().setup().multiplier(3)


# --- Training


@pytest.mark.parametrize("norm", ["none", "cn"])
def test_stopping_saving_and_evaluating_leave_no_trace(scan: Path, tmp_path: Path, norm: str):
    """Eight steps in one go, with saves and evaluations on the way, and as four and four more: the same bits."""
    one_go = checkpoint_of(train(make_config(scan, tmp_path / "one go", norm)))
    often = {"steps_per_save": 3, "steps_per_eval_batch": 2, "steps_per_eval_image": 3, "steps_per_eval_all_images": 5}
    busy = checkpoint_of(train(make_config(scan, tmp_path / "busy", norm, **often)))

    def with_end_at_8(config: CrossNormTrainerConfig) -> CrossNormTrainerConfig:
        config.optimizers["fields"]["scheduler"].max_steps = 8
        return config

    first = train(with_end_at_8(make_config(scan, tmp_path / "first", norm, max_num_iterations=4)))
    folder = first / "nerfstudio_models"
    resumed = checkpoint_of(train(make_config(scan, tmp_path / "second", norm, load_dir=folder)))
    assert one_go["optimizers"]["fields"]["state"][0]["step"] == 8
    assert differences(one_go, checkpoint_of(first)), "four steps must differ from eight"
    assert differences(one_go, busy) == []
    assert differences(one_go, resumed) == []


def test_norms_are_initialized_on_the_first_batch_before_anything_else(scan: Path, tmp_path: Path, monkeypatch):
    """Step 0 takes that batch as well; a resumed training does not begin again."""
    config = make_config(scan, tmp_path, max_num_iterations=2)
    trainer = make_trainer(config)
    model: Any = trainer.pipeline.model
    drawn, initialized = [], []
    next_train, initialize = trainer.pipeline.datamanager.next_train, model.field.initialize_norms

    def record_batch(step: int) -> Any:
        drawn.append(next_train(step))
        return drawn[-1]

    def record_initialization(points: torch.Tensor) -> None:
        initialized.append(len(drawn))
        initialize(points)

    monkeypatch.setattr(trainer.pipeline.datamanager, "next_train", record_batch)
    monkeypatch.setattr(model.field, "initialize_norms", record_initialization)
    trainer.train()
    assert initialized == [1], "on the first batch that is drawn, and never again"
    assert len(drawn) == 1 + 2, "initialization, and two steps"
    assert torch.equal(drawn[0][0].origins, drawn[1][0].origins)
    assert torch.equal(drawn[0][0].directions, drawn[1][0].directions), "step 0 takes the batch of the initialization"
    assert checkpoint_of(trainer.base_dir)["pipeline"]["_model.field.norms_initialized"]

    resumed = make_trainer(make_config(scan, tmp_path / "more", load_dir=trainer.checkpoint_dir))
    assert resumed.pipeline.model.field.norms_initialized


def test_finished_run_renders_what_the_trained_model_renders(scan: Path, tmp_path: Path):
    trainer = make_trainer(make_config(scan, tmp_path, max_num_iterations=3))
    trainer.config.save_config()
    trainer.train()
    model: Any = trainer.pipeline.model.eval()
    _, pipeline, _, step = eval_setup(trainer.base_dir / "config.yml")
    assert step == 2
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    for name, values in model.get_outputs_for_camera(camera).items():
        assert torch.equal(pipeline.model.get_outputs_for_camera(camera)[name], values), name
    points = torch.rand(50, 3)
    assert torch.equal(pipeline.model.field.forward_geonetwork(points), model.field.forward_geonetwork(points))


def test_evaluation_writes_metrics_of_held_out_views(scan: Path, tmp_path: Path):
    run = train(make_config(scan, tmp_path, max_num_iterations=2))
    ns_eval.ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "out.json").main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    for name in ("psnr", "psnr_mask", "ssim", "mask_iou", "inv_s"):
        assert isinstance(results[name], float), name
    assert os.listdir(run / "nerfstudio_models") == ["step-000000001.ckpt"]


def test_training_without_masks_has_a_background_network(scan: Path, tmp_path: Path):
    config = make_config(scan, tmp_path, max_num_iterations=2)
    config.pipeline.model.mask_loss_mult, config.pipeline.model.num_samples_outside = 0.0, 4
    names = checkpoint_of(train(config))["pipeline"]
    assert any(name.startswith("_model.background_field.") for name in names)


def test_metrics_are_logged_while_training(scan: Path, tmp_path: Path):
    trainer = make_trainer(make_config(scan, tmp_path))
    _, losses, metrics = trainer.train_iteration(0)
    assert {"rgb_loss", "eikonal_loss", "mask_loss"} <= losses.keys()
    assert {"psnr", "psnr_mask", "inv_s"} <= metrics.keys()
