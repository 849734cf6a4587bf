"""Trainings of VolSDF, and of nerfstudio's vanilla NeRF and nerfacto, each with CN or as it is.

As a program it trains and scores one of them, on the GPU if there is one: what `benchmarks.elsewhere` starts.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.processes import run_program
from benchmarks.tables import conditions
from benchmarks.timed_training import train_timed

Method = Literal["vanilla-nerf", "nerfacto", "volsdf"]
Preset = Literal["full", "tiny"]

HELD_OUT_EVERY = 6
"""Of a scan's views: one is held out, in turn for the test and for the choice of the learning rate."""


@dataclass(frozen=True)
class Training:
    """One training."""

    name: str
    """Names the result file."""
    data: str
    """Scene folder: in Blender format, for VolSDF the example scan."""
    method: Method
    norm: Literal["none", "cn"]
    """In all networks."""
    rate: float
    """Factor on the learning rates of all groups of parameters, at the start and at the end of their schedules."""
    steps: int
    rays: int
    preset: Preset
    """full: networks and samples as registered; tiny: for a CPU."""
    seed: int = 0
    moments: int = 8
    """How often views are rendered: evenly spaced over the steps, the last after the last step."""
    mesh_resolution: int = 160
    """Grid points along each axis, for VolSDF's surface at the end."""


def config_of(training: Training) -> Any:
    """The trainer's configuration, complete but for where the run is written."""
    make = {"vanilla-nerf": _vanilla_nerf, "nerfacto": _nerfacto, "volsdf": _volsdf}[training.method]
    config = make(training)
    datamanager = config.pipeline.datamanager
    config.max_num_iterations, config.machine.seed = training.steps, training.seed
    config.steps_per_save = training.steps + 1
    datamanager.data, datamanager.train_num_rays_per_batch = Path(training.data), training.rays
    for group in config.optimizers.values():
        group["optimizer"].lr *= training.rate
        if hasattr(group["scheduler"], "lr_final"):
            group["scheduler"].lr_final *= training.rate
    return config


def _vanilla_nerf(training: Training) -> Any:
    from method_configs.elsewhere import vanilla_nerf_cn

    config: Any = copy.deepcopy(vanilla_nerf_cn.config)
    config.pipeline.model.norm = training.norm
    if training.preset == "tiny":
        config.pipeline.model.num_coarse_samples, config.pipeline.model.num_importance_samples = 16, 16
    return config


def _nerfacto(training: Training) -> Any:
    """With the settings for Blender's scenes of nerfstudio's own benchmark (launch_train_blender.sh)."""
    from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
    from method_configs.elsewhere import nerfacto_cn

    config: Any = copy.deepcopy(nerfacto_cn.config)
    config.pipeline.datamanager.dataparser = BlenderCNDataParserConfig()
    model = config.pipeline.model
    model.camera_optimizer.mode = "off"
    config.pipeline.model = model = replace(
        model,
        norm=training.norm,
        background_color="white",
        proposal_initial_sampler="uniform",
        near_plane=2.0,
        far_plane=6.0,
        use_average_appearance_embedding=False,
        distortion_loss_mult=0.0,
        disable_scene_contraction=True,
        eval_num_rays_per_chunk=4096,
    )
    if training.preset == "tiny":
        model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray = (32, 24), 16
        model.num_levels, model.log2_hashmap_size, model.max_res = 8, 14, 128
    return config


def _volsdf(training: Training) -> Any:
    """With masks and rays of all pictures, as the tiny preset, and views held out."""
    from method_configs import volsdf

    norm = training.norm
    config: Any = volsdf.tiny_config("volsdf", norm)
    if training.preset == "full":
        config = copy.deepcopy(volsdf.volsdf_cn.config)
        model = config.pipeline.model
        model.sdf_norm, model.color_norm, model.mask_loss_mult = norm, norm, 0.1
        config.pipeline.datamanager.pixel_sampler.single_image = False
    config.pipeline.model.background = "white"  # held-out pictures are compared whole
    dataparser = config.pipeline.datamanager.dataparser
    dataparser.eval_mode, dataparser.eval_interval = "interval", HELD_OUT_EVERY
    return config


def train_and_score(training: Training, _: Path) -> dict[str, Any]:
    """Trains and scores.

    Returns:
        `learning_rate` of the fields; `device`, `machine`, and whether in `mixed_precision`; `seconds` inside training
        steps; `curve`, with PSNR and SSIM of the test views and `validation_psnr` at each moment, and the last of them
        beside it; for VolSDF `chamfer` and its two parts, or why there is none as `surface_error`. Where the training
        broke off, `error` instead of all scores.
    """
    import torch

    from crossnorm_ns.finite import NonFiniteError
    from eval.errors import EvaluationError

    torch.set_num_threads(1)
    config = config_of(training)
    marks = [round(training.steps * (i + 1) / training.moments) for i in range(training.moments)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "learning_rate": config.optimizers["fields"]["optimizer"].lr,
        "device": device,
        "machine": conditions(device),
    }
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir, config.timestamp = Path(folder), "run"
        try:
            trained = train_timed(config, marks, partial(_scores, training.method))
        except NonFiniteError as error:
            return result | {"error": str(error).partition(", training stops")[0]}
        result |= {"seconds": trained.seconds, "curve": trained.curve, **trained.curve[-1]}
        result["mixed_precision"] = trained.trainer.mixed_precision
        if training.method == "volsdf":
            try:
                result |= _surface_scores(config.get_base_dir() / "config.yml", training)
            except EvaluationError as error:
                result["surface_error"] = str(error).partition(".ckpt: ")[2] or str(error)  # without its folder
    return result


def _surface_scores(config_path: Path, training: Training) -> dict[str, float]:
    from benchmarks.neus_scores import chamfer_scores, surface_of

    _, comparison = surface_of(config_path, training.mesh_resolution, Path(training.data))
    return chamfer_scores(comparison)


def _scores(method: Method, trainer: Any) -> dict[str, float]:
    model, datamanager = trainer.pipeline.model, trainer.pipeline.datamanager
    model.eval()
    test, validation = held_out_views(method, datamanager)
    scored, choosing = ([_view_scores(model, *view) for view in views] for views in (test, validation))
    means = {name: sum(scores[name] for scores in scored) / len(scored) for name in ("psnr", "ssim")}
    return means | {"validation_psnr": sum(scores["psnr"] for scores in choosing) / len(choosing)}


View = tuple[Any, int]
"""Dataset, and number in it."""


def held_out_views(method: Method, datamanager: Any) -> tuple[Sequence[View], Sequence[View]]:
    """Views of the test, and those that choose the learning rate: the scene's validation views.

    A scan has none, so its held-out views serve the one and the other in turn.
    """
    test = datamanager.eval_dataset
    if method == "volsdf":
        views = [(test, i) for i in range(len(test))]
        return views[::2], views[1::2]
    datamanager.test_split = "val"
    validation = datamanager.create_eval_dataset()
    datamanager.test_split = "test"
    return [(test, i) for i in range(len(test))], [(validation, i) for i in range(len(validation))]


def _view_scores(model: Any, dataset: Any, view: int) -> dict[str, float]:
    """PSNR and SSIM of a whole picture as the model itself measures them."""
    outputs = model.get_outputs_for_camera(dataset.cameras[view : view + 1].to(model.device))
    metrics, _ = model.get_image_metrics_and_images(outputs, dataset[view])
    return {"psnr": metrics["psnr"], "ssim": metrics["fine_ssim" if "fine_ssim" in metrics else "ssim"]}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"(nerfstudio|torch)\.")
    run_program(Training, train_and_score)
