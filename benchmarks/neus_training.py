"""Trainings of the tiny NeuS, one process and one thread each: seconds are processor seconds inside training steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import run_program
from benchmarks.timed_training import train_timed


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
    datamanager.data, datamanager.dataparser.eval_mode = Path(training.data), "interval"
    return {"config": str(config.get_base_dir() / "config.yml"), "seconds": train_timed(config).seconds}


if __name__ == "__main__":
    run_program(Training, train)
