"""One run of a task, from its input to its files."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from crossnorm_ns.functional.marching_cubes import EmptySurfaceError
from crossnorm_ns.networks import METHODS
from crossnorm_ns.provenance import provenance
from crossnorm_ns.representation.analysis_files import write_figure
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.evaluation import CHUNK_SIZE, Statistics, check_statistics, outputs_of, outputs_with
from crossnorm_ns.representation.fit import Run, fit
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.pictures import comparison, to_8_bits, write_picture
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

    def configuration(self) -> dict[str, Any]:
        """All that the names of preset and input stand for: two runs are the same only if these are equal."""
        preset = PRESETS[self.preset][self.task]
        return {
            "steps": preset.steps if self.steps is None else self.steps,
            "epochs": preset.epochs if self.steps is None else None,
            "schedule": preset.schedule,
            "final_factor": preset.final_factor,
            "evaluate_every": preset.evaluate_every,
            "task_options": {**preset.task, **self.changes},
            "network_options": self.network_options(),
            "checksum of the input": _file_checksum(self.input),
        }

    def network_options(self) -> dict[str, Any]:
        """The preset's options of `make_network`."""
        return PRESETS[self.preset][self.task].options_of(self.method)

    def fit_options(self, task: Task, **others: Any) -> FitOptions:
        """How the network is fitted to this task, after `completed`; `others` go to `FitOptions` as they are."""
        preset = PRESETS[self.preset][self.task]
        assert self.learning_rate is not None
        options = {
            "steps": preset.num_steps(task) if self.steps is None else self.steps,
            "learning_rate": self.learning_rate,
            "schedule": preset.schedule,
            "final_factor": preset.final_factor,
            "seed": self.seed,
            "evaluate_every": preset.evaluate_every,
        }
        return FitOptions(**{**options, **others})


def _file_checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


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
    reconstruction, truth and error, and each of the first two alone: `preview.png` and `preview-truth.png`.

    Raises:
        RepresentationError: the input, an option or the folder cannot be used.
        InterruptedTraining: by a signal.
    """
    spec = spec.completed()
    device = choose_device(control.device)
    preset = PRESETS[spec.preset][spec.task]
    task = open_task(spec.task, spec.input, preset, **spec.changes).to(device)
    for mode in control.statistics:
        check_statistics(task, mode, control.chunk_size)
    assert spec.network is not None
    options = spec.fit_options(task, max_seconds=control.max_seconds, tensorboard=control.tensorboard)
    run = fit(
        task,
        spec.method,
        parse_network(spec.network),
        options,
        network_options=spec.network_options(),
        folder=folder,
        resume=control.resume,
        progress=progress,
    )
    result = {
        "spec": spec.as_json(),
        "configuration": spec.configuration(),
        "size": task.size,
        "options": asdict(options),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "ending": run.ending,
        "trouble": run.trouble,
        "steps": run.steps,
        "best_step": run.best_step,
        "seconds": run.seconds,
        "metrics": run.metrics,
        "highest": run.highest(task.metric),
        "last_metrics": run.last_metrics,
        "statistics": {
            mode: task.metrics(outputs_with(run.network, task, mode, control.chunk_size)) for mode in control.statistics
        },
        **task.costs(run.network),
        "reconstruction": _write_pictures(run, task, folder),
        **provenance(),
    }
    RunFolder(folder).write_result(result)
    return result


def _write_pictures(run: Run, task: Task, folder: Path) -> str | None:
    """Returns the name of the reconstruction's file; None where there is nothing to show."""
    if not run.metrics:
        return None
    outputs = outputs_of(run.network, task)
    views = task.views(outputs)
    write_figure(comparison(views), folder / "picture.png")
    write_picture(to_8_bits(views[0].reconstruction), folder / "preview.png")
    write_picture(to_8_bits(views[0].truth), folder / "preview-truth.png")
    try:
        return task.save(outputs, folder).name
    except EmptySurfaceError:
        return None
