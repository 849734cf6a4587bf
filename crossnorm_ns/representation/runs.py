"""One run of a task, from its input to its files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from crossnorm_ns.files import atomic_file
from crossnorm_ns.functional.marching_cubes import EmptySurfaceError
from crossnorm_ns.networks import METHODS
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.evaluation import CHUNK_SIZE, Statistics, outputs_of, outputs_with
from crossnorm_ns.representation.fit import Run, fit
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.pictures import comparison
from crossnorm_ns.representation.presets import (
    PRESETS,
    PresetName,
    TaskName,
    family,
    open_task,
    parse_network,
)
from crossnorm_ns.representation.progress import Progress, no_progress
from crossnorm_ns.representation.run_folder import RunFolder
from crossnorm_ns.representation.tasks.base import Task


@dataclass(frozen=True)
class RunSpec:
    """What a run is: all that its result depends on.

    Attributes:
        task: its name.
        input: file of the signal.
        method: see `make_network`.
        preset: gives what is left open here.
        network: layers x width; None takes the preset's.
        learning_rate: None takes the preset's for the method's family.
        steps: None takes the preset's.
        seed: of weights and batches.
        changes: options of the task's `open` that differ from the preset's.
    """

    task: TaskName
    input: Path
    method: str
    preset: PresetName = "quick"
    network: str | None = None
    learning_rate: float | None = None
    steps: int | None = None
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)

    def completed(self) -> RunSpec:
        """With the preset's choices filled in, except the steps, which may depend on the input.

        Raises:
            RepresentationError: unknown method, a network that is none, a learning rate that is not positive.
        """
        if self.method not in METHODS:
            raise RepresentationError(f"unknown method {self.method!r}: choose one of {', '.join(METHODS)}")
        preset = PRESETS[self.preset][self.task]
        network = self.network or preset.network
        parse_network(network)
        rate = preset.learning_rates[family(self.method)] if self.learning_rate is None else self.learning_rate
        if not (math.isfinite(rate) and rate > 0):
            raise RepresentationError(f"the learning rate is {rate}, but must be a positive number")
        return replace(self, network=network, learning_rate=rate)

    def as_json(self) -> dict[str, Any]:
        """As values that JSON has."""
        return {**asdict(self), "input": str(self.input), "changes": dict(self.changes)}


@dataclass(frozen=True)
class RunControl:
    """How a run is carried out; the result does not depend on it, up to the clock and the device."""

    device: str | None = None
    max_seconds: float | None = None
    resume: bool = False
    tensorboard: bool = False
    statistics: Sequence[Statistics] = ("stored",)
    chunk_size: int = CHUNK_SIZE


def choose_device(name: str | None) -> torch.device:
    """The device called so; None is the GPU if there is one.

    Raises:
        RepresentationError: torch knows no such device, or it is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RepresentationError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def execute(
    spec: RunSpec,
    folder: Path,
    control: RunControl = RunControl(),  # noqa: B008 (frozen)
    progress: Callable[[int, str], Progress] = no_progress,
) -> dict[str, Any]:
    """Carries out a run, writes its files and returns what `result.json` holds.

    Beside the files of `RunFolder`: the reconstruction in the usual format of its kind, `picture.png` with
    reconstruction, truth and error, and `preview.png`, the reconstruction alone.

    Raises:
        RepresentationError: the input, an option or the folder cannot be used.
    """
    spec = spec.completed()
    for mode in control.statistics:
        if mode not in get_args(Statistics):
            raise RepresentationError(f"unknown statistics {mode!r}: choose one of {', '.join(get_args(Statistics))}")
    device = choose_device(control.device)
    preset = PRESETS[spec.preset][spec.task]
    task = open_task(spec.task, spec.input, preset, **spec.changes).to(device)
    assert spec.network is not None and spec.learning_rate is not None
    options = FitOptions(
        steps=preset.num_steps(task) if spec.steps is None else spec.steps,
        learning_rate=spec.learning_rate,
        schedule=preset.schedule,
        final_factor=preset.final_factor,
        seed=spec.seed,
        evaluate_every=preset.evaluate_every,
        max_seconds=control.max_seconds,
        tensorboard=control.tensorboard,
    )
    run = fit(
        task,
        spec.method,
        parse_network(spec.network),
        options,
        network_options=preset.options_of(spec.method),
        folder=folder,
        resume=control.resume,
        progress=progress,
    )
    result = {
        "spec": spec.as_json(),
        "size": task.size,
        "options": asdict(options),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "ending": run.ending,
        "steps": run.steps,
        "best_step": run.best_step,
        "seconds": run.seconds,
        "metrics": run.metrics,
        "last_metrics": run.last_metrics,
        "statistics": {
            mode: task.metrics(outputs_with(run.network, task, mode, control.chunk_size)) for mode in control.statistics
        },
        **task.costs(run.network),
        "reconstruction": _write_pictures(run, task, folder),
    }
    RunFolder(folder).write_result(result)
    return result


def _write_pictures(run: Run, task: Task, folder: Path) -> str | None:
    """Returns the name of the reconstruction's file; None where there is nothing to show."""
    from PIL import Image

    if not run.metrics:
        return None
    outputs = outputs_of(run.network, task)
    views = task.views(outputs)
    contents = io.BytesIO()
    comparison(views).savefig(contents, format="png")
    preview = io.BytesIO()
    Image.fromarray((np.clip(views[0].reconstruction, 0, 1) * 255).round().astype(np.uint8)).save(preview, "png")
    for name, picture in (("picture.png", contents), ("preview.png", preview)):
        with atomic_file(folder / name) as file:
            file.write(picture.getvalue())
    try:
        return task.save(outputs, folder).name
    except EmptySurfaceError:
        return None
