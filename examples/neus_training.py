"""Trainings of the tiny NeuS, one process and one thread each: seconds are processor seconds inside training steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROGRESS = "@progress"


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
    """Trains and saves a run below `folder`; returns what was trained, where its config.yml lies, and the seconds."""
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
        print(f"{_PROGRESS} {step + 1}", flush=True)
        return result

    trainer.train_iteration = timed
    trainer.train()
    return {"training": asdict(training), "config": str(config.get_base_dir() / "config.yml"), "seconds": seconds}


def train_all(
    trainings: Sequence[Training], folder: Path, jobs: int, program: str = "examples.neus_training"
) -> list[dict[str, Any]]:
    """Trains what has no result yet, `jobs` processes at a time, and returns all results in order.

    Args:
        trainings: with different names.
        folder: keeps runs, results and logs.
        jobs: processes at a time, one thread each.
        program: module that trains one of them and writes its result (see `run_program`).

    Raises:
        RuntimeError: a training failed; its log is named.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda training: _train_in_process(training, folder, progress, program), trainings))


def _train_in_process(training: Training, folder: Path, progress: Any, program: str) -> dict[str, Any]:
    path, log = folder / f"{training.name}.json", folder / f"{training.name}.log"
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["training"] == asdict(training):
            return stored
    task = progress.add_task(training.name, total=training.steps)
    command = [sys.executable, "-m", program, json.dumps(asdict(training)), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_PROGRESS):
                progress.update(task, completed=int(line.split()[1]))
            else:
                output.write(line)
    if process.wait():
        raise RuntimeError(f"the training {training.name} failed: see {log}")
    return json.loads(path.read_text())


def run_program(work: Callable[[Training, Path], dict[str, Any]]) -> None:
    """What a program of `train_all` does: takes a training and a folder from the command line, writes the result."""
    training, folder = Training(**json.loads(sys.argv[1])), Path(sys.argv[2])
    finished = folder / f"{training.name}.json"
    temporary = finished.with_suffix(".tmp")
    temporary.write_text(json.dumps(work(training, folder)))
    temporary.replace(finished)


if __name__ == "__main__":
    run_program(train)
