"""Configurations of the tasks: the paper's, and quick ones that show the same on two CPU cores.

Where the paper (section 5) is silent, or its number is not known to us, the choice is ours and follows what it cites:
learning rates of images are those of the released code (Norm-INR), of shapes and CT those of WIRE's examples with their
exponential decay, of MRI that of Fourier Features. They are the same for all methods wherever the paper names one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from crossnorm_ns.limits import MOST_LAYERS, MOST_WEIGHTS, Need, num_weights
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.options import Schedule
from crossnorm_ns.representation.tasks import CTTask, ImageTask, MRITask, ShapeTask, Task

TaskName = Literal["image", "shape", "ct", "mri"]
PresetName = Literal["quick", "paper"]

_TASKS: dict[TaskName, Any] = {"image": ImageTask, "shape": ShapeTask, "ct": CTTask, "mri": MRITask}
_FAMILIES = ("bn-cn", "ln-gn", "relu", "pe", "siren", "mfn", "wire", "finer", "gaussian")


@dataclass(frozen=True)
class Preset:
    """One configuration of a task.

    Attributes:
        networks: hidden layers x width, as tables have them.
        network: of a single run.
        steps: of training; None: see epochs.
        epochs: passes over the grid, in batches of the task's size.
        schedule: of the learning rate.
        final_factor: last learning rate over the first.
        evaluate_every: steps between evaluations.
        learning_rates: of each family of methods (see `family`).
        tuning: learning rates that tuning tries for each family.
        task: options of the task's `open`.
        network_options: options of `make_network` for some methods, by their name without a norm.
    """

    networks: tuple[str, ...]
    network: str
    steps: int | None
    schedule: Schedule
    final_factor: float
    evaluate_every: int
    learning_rates: Mapping[str, float]
    tuning: Mapping[str, tuple[float, ...]]
    epochs: int | None = None
    task: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    network_options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))

    def options_of(self, method: str) -> dict[str, Any]:
        """Options of `make_network` for a method."""
        return dict(self.network_options.get(method.partition("+")[0], {}))

    def num_steps(self, task: Task) -> int:
        """Steps of training on this task."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "a preset has steps or epochs"
        batch_size = task.batch_size or task.num_points
        return self.epochs * -(-task.num_points // batch_size)


def family(method: str) -> str:
    """Methods that share learning rates: those with BN or CN, those with LN or GN, and the others each by itself."""
    if "+" in method:
        return "ln-gn" if method.endswith(("+ln", "+gn")) else "bn-cn"
    return method.removesuffix("-fourier")


_LARGEST_CODE = 256
"""Values that an encoding makes of a point, or that a network gives, at most."""


def parse_network(name: str) -> tuple[int, ...]:
    """Widths of the hidden layers from "layers x width": 10x28 is ten layers of 28.

    Raises:
        RepresentationError: it is not of this form, or too large.
    """
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", name)
    layers, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (layers > 0 and width > 0):
        raise RepresentationError(f"{name!r} is no network: write layers x width, such as 10x28")
    hidden = (width,) * min(layers, MOST_LAYERS)
    if layers > MOST_LAYERS or num_weights(_LARGEST_CODE, *hidden) > MOST_WEIGHTS:
        raise RepresentationError(f"{name!r} is larger than {MOST_LAYERS:,} layers or {MOST_WEIGHTS:,} weights")
    return hidden


def _is_network(name: str) -> bool:
    try:
        return bool(parse_network(name))
    except RepresentationError:
        return False


NetworkName = Annotated[
    str,
    Need(f"layers x width, such as 10x28, of at most {MOST_LAYERS:,} layers and {MOST_WEIGHTS:,} weights", _is_network),
]


def open_task(name: TaskName, path: Path, preset: Preset, **changes: Any) -> Task:
    """Opens the input of a task with the options of a preset, some of them changed.

    Raises:
        RepresentationError: it cannot be used; the message names the file.
    """
    try:
        return _TASKS[name].open(path, **{**preset.task, **changes})
    except RepresentationError as error:
        raise RepresentationError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _same(rate: float) -> dict[str, float]:
    return dict.fromkeys(_FAMILIES, rate)


_TUNING = {
    "bn-cn": (3e-3, 1e-2, 3e-2),
    "ln-gn": (3e-3, 1e-2, 3e-2),
    "relu": (3e-3, 1e-2, 3e-2),
    "pe": (3e-3, 1e-2, 3e-2),
    "siren": (3e-4, 1e-3, 3e-3),
    "mfn": (3e-3, 1e-2, 3e-2),
    "wire": (3e-3, 1e-2, 3e-2),
    "finer": (3e-4, 1e-3, 3e-3),
    "gaussian": (3e-4, 1e-3, 3e-3),
}
_MIDDLE = {name: rates[1] for name, rates in _TUNING.items()}

PRESETS: dict[PresetName, dict[TaskName, Preset]] = {
    "paper": {
        "image": Preset(
            networks=("5x20", "5x30", "10x28", "10x40", "13x49"),
            network="10x28",
            steps=100_000,
            schedule="constant",
            final_factor=1.0,
            evaluate_every=500,
            learning_rates={**_same(2e-4), "bn-cn": 1e-2, "ln-gn": 1e-2},
            tuning=_TUNING,
        ),
        "shape": Preset(
            networks=("2x256",),
            network="2x256",
            steps=None,
            epochs=200,
            schedule="exponential",
            final_factor=0.2,
            evaluate_every=20_000,
            learning_rates=_same(5e-3),
            tuning=_TUNING,
            task={"resolution": None, "batch_size": 100_000},
            network_options={"wire": {"sigma_0": 40.0}},
        ),
        "ct": Preset(
            networks=("2x128", "2x256", "4x128", "4x256"),
            network="2x256",
            steps=20_000,
            schedule="exponential",
            final_factor=0.1,
            evaluate_every=200,
            learning_rates=_same(5e-3),
            tuning=_TUNING,
            task={"num_angles": 100},
        ),
        "mri": Preset(
            networks=("2x256", "4x256"),
            network="2x256",
            steps=1000,
            schedule="constant",
            final_factor=1.0,
            evaluate_every=50,
            learning_rates=_same(2e-3),
            tuning=_TUNING,
        ),
    },
    "quick": {
        "image": Preset(
            networks=("10x28",),
            network="10x28",
            steps=600,
            schedule="cosine",
            final_factor=0.01,
            evaluate_every=25,
            learning_rates={**_MIDDLE, "ln-gn": 3e-3, "relu": 1e-2, "mfn": 1e-1},
            tuning={**_TUNING, "ln-gn": (1e-3, 3e-3, 1e-2), "relu": (3e-3, 1e-2, 3e-2), "mfn": (3e-2, 1e-1, 3e-1)},
            task={"side": 128},
            network_options={"wire": {"omega_0": 4.0, "sigma_0": 4.0}},  # its code's for small images; 10, 10 is worse
        ),
        "shape": Preset(
            networks=("2x256",),
            network="2x256",
            steps=500,
            schedule="cosine",
            final_factor=0.01,
            evaluate_every=50,
            learning_rates={**_MIDDLE, "relu": 3e-2, "pe": 3e-2, "siren": 3e-3},
            tuning={
                **_TUNING,
                "relu": (1e-2, 3e-2, 1e-1),
                "pe": (1e-2, 3e-2, 1e-1),
                "siren": (1e-3, 3e-3, 1e-2),
            },
            task={"resolution": 64, "batch_size": 10_000},
            network_options={"wire": {"sigma_0": 40.0}},
        ),
        "ct": Preset(
            networks=("2x128",),
            network="2x128",
            steps=400,
            schedule="cosine",
            final_factor=0.01,
            evaluate_every=25,
            learning_rates={
                **_MIDDLE,
                "bn-cn": 1e-3,
                "ln-gn": 1e-3,
                "relu": 3e-3,
                "pe": 3e-3,
                "siren": 3e-3,
                "mfn": 3e-2,
            },
            tuning={
                **_TUNING,
                "bn-cn": (3e-4, 1e-3, 3e-3),
                "ln-gn": (3e-4, 1e-3, 3e-3),
                "relu": (1e-3, 3e-3, 1e-2),
                "pe": (1e-3, 3e-3, 1e-2),
                "siren": (1e-3, 3e-3, 1e-2),
                "mfn": (1e-2, 3e-2, 1e-1),
            },
            task={"downscale": 2, "num_angles": 100},
            network_options={"pe": {"num_frequencies": 4}},  # WIRE's rule by Nyquist, for 100 measurements
        ),
        "mri": Preset(
            networks=("2x128",),
            network="2x128",
            steps=300,
            schedule="cosine",
            final_factor=0.01,
            evaluate_every=20,
            learning_rates={**_MIDDLE, "relu": 3e-2, "pe": 3e-2, "siren": 1e-2},
            tuning={
                **_TUNING,
                "relu": (1e-2, 3e-2, 1e-1),
                "pe": (1e-2, 3e-2, 1e-1),
                "siren": (3e-3, 1e-2, 3e-2),
            },
            task={"size": 48},
        ),
    },
}
"""By preset and task."""
