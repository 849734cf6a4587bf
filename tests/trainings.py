"""Trainings as `ns-train` starts them, made small, and what they leave."""

import copy
from pathlib import Path
from typing import Any

import torch
from nerfstudio.scripts import train as ns_train

from crossnorm_ns.engine.trainer import CrossNormTrainer, CrossNormTrainerConfig

NEVER = 10**9


def configured(
    config: CrossNormTrainerConfig, data: Path, output: Path, **changes: Any
) -> CrossNormTrainerConfig:
    """On the CPU, calibrated over three batches, without evaluations or saves on the way unless `changes` say so."""
    config.calibration_batches = 3
    config.machine.device_type = "cpu"
    config.data, config.output_dir, config.timestamp = data, output, "run"
    config.steps_per_save = config.steps_per_eval_batch = NEVER
    config.steps_per_eval_image = config.steps_per_eval_all_images = NEVER
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config


def run_folder(config: CrossNormTrainerConfig) -> Path:
    """Where a training of data in a folder called tiny goes."""
    return config.output_dir / "tiny" / config.method_name / "run"


def train(config: CrossNormTrainerConfig) -> Path:
    """What ns-train does with a configuration; the run's folder."""
    ns_train.main(copy.deepcopy(config))
    return run_folder(config)


def make_trainer(config: CrossNormTrainerConfig) -> CrossNormTrainer:
    """What ns-train sets up, before its first step."""
    config.pipeline.datamanager.data = config.data
    config.save_config()
    ns_train._set_random_seed(config.machine.seed)
    trainer: Any = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, under torch's safe default."""
    return torch.load(path, map_location="cpu", weights_only=True)


def checkpoint_of(run: Path) -> dict[str, Any]:
    """The newest checkpoint as nerfstudio finds it: any other file name in the folder makes this fail."""
    names = [path.name for path in (run / "nerfstudio_models").iterdir()]
    step = max(int(name[name.find("-") + 1 : name.find(".")]) for name in names)
    return load(run / "nerfstudio_models" / f"step-{step:09d}.ckpt")
