"""Trainings of the tiny NeuS, one process and one thread each: seconds are processor seconds inside training steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import report_progress, run_program


@dataclass(frozen=True)
class Training:
    """One training: the tiny preset with these changes."""

    name: str
    """Of the run: names its folder and its files."""
    data: str
    """Scene folder."""
    norm: str
    """In both networks, or in those that are given no other."""
    learning_rate: float
    steps: int
    seed: int = 0
    sdf_norm: str | None = None
    color_norm: str | None = None
    variant: str = "paper"
    statistics: str = "renorm"
    initialization: str = "identity"
    coupled_gradients: bool = False
    single_image: bool = False
    """Whether all rays of a batch are from one picture."""
    downscale_factor: int = 1


def train(training: Training, folder: Path) -> dict[str, Any]:
    """Trains and saves a run below `folder`; returns where its config.yml lies, and the seconds."""
    import torch
    from nerfstudio.scripts.train import _set_random_seed

    from method_configs.neus import tiny_config

    torch.set_num_threads(1)
    config = tiny_config(training.name, training.norm, learning_rate=training.learning_rate, steps=training.steps)
    model, datamanager = config.pipeline.model, config.pipeline.datamanager
    model.sdf_norm, model.color_norm = training.sdf_norm or training.norm, training.color_norm or training.norm
    model.norm_variant, model.norm_statistics = training.variant, training.statistics
    model.norm_initialization, model.norm_coupled_gradients = training.initialization, training.coupled_gradients
    datamanager.pixel_sampler.single_image = training.single_image
    datamanager.dataparser.downscale_factor = training.downscale_factor
    config.output_dir, config.timestamp = folder, training.name
    config.machine.seed, config.machine.device_type = training.seed, "cpu"
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = training.steps + 1
    datamanager.data, datamanager.dataparser.eval_mode = Path(training.data), "interval"
    config.save_config()
    _set_random_seed(training.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="test")
    step_once, seconds = trainer.train_iteration, 0.0

    def timed(step: int) -> Any:
        nonlocal seconds
        start = time.process_time()
        result = step_once(step)
        seconds += time.process_time() - start
        report_progress(step + 1)
        return result

    trainer.train_iteration = timed
    trainer.train()
    return {"config": str(config.get_base_dir() / "config.yml"), "seconds": seconds}


if __name__ == "__main__":
    run_program(Training, train)
