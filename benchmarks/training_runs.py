"""Trainings of the tiny mip-NeRF, measured: PSNR against steps and against seconds, one process and one thread each."""

from __future__ import annotations

import contextlib
import math
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.processes import report_progress, run_program
from crossnorm_ns.provenance import processor


@dataclass(frozen=True)
class Run:
    """One training: the tiny preset with these changes."""

    name: str
    """Names the result file."""
    data: str
    """Scene folder."""
    norm: str
    learning_rate: float
    steps: int
    seed: int = 0
    variant: str = "released"
    statistics: Literal["batch", "renorm"] = "batch"
    rays: int = 256
    depth: int = 8
    delay_steps: int = 50
    final_multiplier: float = 0.05
    model: str = "MipNeRFModel"
    """MipNeRFModel, or a class of benchmarks.variants."""
    late_statistics: Literal["batch", "renorm", "frozen"] = "batch"
    """Training statistics in the last part of the run."""
    late_from: float = 0.5
    """Where that part begins, as a fraction of the steps."""
    initialization: Literal["plain", "identity"] = "plain"
    """Norms start with scale 1 and shift 0; or with data-dependent ones that make them the identity."""
    gamma_decay: float = 0.0
    """Decoupled weight decay of the norms' scales."""
    norm_rate: float = 1.0
    """Learning rate of the norms' scales and shifts, relative to that of the weights."""
    weight_scale: float = 0.5
    """Factor on the initial weights of the layers that a norm follows."""
    num_curve_points: int = 8
    """How often the test views are rendered during training."""
    curve_views: int = 3
    """Test views, evenly spaced, that are rendered for the curve."""
    final_views: int = 20
    """Test views, evenly spaced, that are rendered at the end."""
    keep: str = ""
    """Folder that keeps the finished run for ns-eval and its like; empty keeps the result alone."""
    statistics_at_evaluation: bool = False
    """Also evaluates with the moving average and with the batch statistics of rendering chunks."""


def train(run: Run, _: Path) -> dict[str, Any]:
    """Trains and evaluates; seconds are processor seconds of this process inside training steps alone."""
    import torch

    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = Path(run.keep) if run.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trainer = _trainer(run, folder)
        seconds, curve = _train_steps(run, trainer)
        result = {"seconds": seconds, "curve": curve, **evaluate(trainer, run.final_views)}
        if run.keep:
            trainer.save_checkpoint(run.steps - 1)
        if run.statistics_at_evaluation:
            result["moving_average"] = evaluate(trainer, run.final_views, "moving average")
            result["chunks"] = evaluate(trainer, run.final_views, "chunks")
    result["machine"] = f"{platform.machine()}, {processor()}, 1 thread, torch {torch.__version__}"
    return result


def _trainer(run: Run, folder: Path) -> Any:
    from nerfstudio.scripts.train import _set_random_seed

    from benchmarks import variants
    from crossnorm_ns.norms import initialize_identity
    from method_configs.mipnerf import tiny_config

    config = tiny_config(f"mipnerf-{'ref' if run.norm == 'none' else run.norm}-tiny", run.norm, run.learning_rate)
    config.max_num_iterations, config.timestamp = run.steps, run.name
    config.output_dir, config.machine.seed, config.machine.device_type = folder, run.seed, "cpu"
    datamanager, model_config = config.pipeline.datamanager, config.pipeline.model
    datamanager.data, datamanager.train_num_rays_per_batch = Path(run.data), run.rays
    model_config._target = getattr(variants, run.model)
    model_config.norm_variant, model_config.norm_statistics = run.variant, run.statistics
    model_config.depth, model_config.normed_weight_scale = run.depth, run.weight_scale
    scheduler = config.optimizers["fields"]["scheduler"]
    scheduler.delay_steps, scheduler.final_multiplier = run.delay_steps, run.final_multiplier
    if run.keep:
        config.save_config()
    _set_random_seed(run.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="test")
    model = trainer.pipeline.model
    if run.initialization == "identity":
        rays, _ = trainer.pipeline.datamanager.next_train(0)
        initialize_identity(model, rays)
    return trainer


def _train_steps(run: Run, trainer: Any) -> tuple[float, list[dict[str, float]]]:
    from crossnorm_ns.norms import norms_of

    norms = norms_of(trainer.pipeline.model)
    optimizer = trainer.optimizers.optimizers["fields"]
    marks = {round(run.steps * (i + 1) / run.num_curve_points) for i in range(run.num_curve_points)}
    seconds, curve = 0.0, []
    for step in range(run.steps):
        trainer.step = step
        start = time.process_time()
        trainer.pipeline.train()
        if step >= run.late_from * run.steps:
            for norm in norms:
                norm.statistics = "renorm" if run.late_statistics == "renorm" else norm.statistics
                norm.train(run.late_statistics != "frozen")
        affine = [t for norm in norms for t in (norm.weight, norm.bias)] if run.norm_rate != 1 else []
        before = [t.detach().clone() for t in affine]
        trainer.train_iteration(step)
        for now, old in zip(affine, before, strict=True):
            now.data.add_(now.data - old, alpha=run.norm_rate - 1)
        if run.gamma_decay:
            for norm in norms:
                norm.weight.data.mul_(1 - optimizer.param_groups[0]["lr"] * run.gamma_decay)
        seconds += time.process_time() - start
        if step + 1 in marks:
            trainer.calibrate_norms()
            curve.append({"step": step + 1, "seconds": seconds, **evaluate(trainer, run.curve_views)})
        if (step + 1) % 20 == 0 or step + 1 == run.steps:
            psnr = f", test view PSNR {curve[-1]['psnr']:.2f} dB" if curve else ""
            report_progress(step + 1, f"{seconds:.1f} s{psnr}")
    return seconds, curve


def evaluate(trainer: Any, num_views: int, statistics: str = "calibrated") -> dict[str, float]:
    """Mean PSNR and SSIM of at most `num_views` evenly spaced test views, with stored statistics or worse ones."""
    import torch

    from crossnorm_ns.functional.metrics import psnr, ssim
    from crossnorm_ns.norms import norms_of

    model, dataset = trainer.pipeline.model, trainer.pipeline.datamanager.eval_dataset
    model.eval()
    for norm in norms_of(model):
        if statistics == "moving average":
            for domain in norm.domains.values():
                domain.store(domain.running())
        elif statistics == "chunks":
            norm.domains.clear()
            norm.train()
    psnrs, ssims = [], []
    with torch.no_grad():
        for i in range(0, len(dataset), math.ceil(len(dataset) / num_views)):
            render = model.get_outputs_for_camera(dataset.cameras[i : i + 1])["rgb"]
            truth = dataset[i]["image"]
            psnrs.append(float(psnr(render, truth)))
            ssims.append(float(ssim(render, truth)))
    model.train()
    return {"psnr": sum(psnrs) / len(psnrs), "ssim": sum(ssims) / len(ssims), "views": len(psnrs)}


if __name__ == "__main__":
    run_program(Run, train)
