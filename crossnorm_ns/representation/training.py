"""The state of one training: network, optimiser, random numbers, clock, and the best network so far."""

from __future__ import annotations

import math
import reprlib
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from crossnorm_ns.finite import NonFiniteError, first_non_finite, numbers_of_step, tensors_in
from crossnorm_ns.limits import Fault, NotNegative, between, faults
from crossnorm_ns.networks import make_network
from crossnorm_ns.networks.encoding import EncodedMLP
from crossnorm_ns.reading import first_line
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.evaluation import calibrate_on, outputs_of
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.run_folder import Entry, RunFolder, first_difference, load_tensors, save_tensors
from crossnorm_ns.representation.tasks.base import Task
from crossnorm_ns.trial_step import check_states

_FORMAT = 1
_CALIBRATION_SEED = 1_000_003
_FREE_OPTIONS = ("max_seconds", "save_every", "tensorboard")  # may differ when a run is resumed


@dataclass
class State:
    """What changes from step to step, beside network, optimiser and random numbers."""

    step: Annotated[int, between(0, 10**9)] = 0
    seconds: NotNegative = 0.0
    best_step: Annotated[int, between(0, 10**9)] = 0
    best_loss: float = math.inf
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def faults(self) -> Iterator[Fault]:
        """What does not go together: of the best network there is all, or nothing."""
        best = (self.best_metrics.get("loss", math.inf), bool(self.best_metrics), self.best_step <= self.step)
        if best != (self.best_loss, bool(self.best_weights), True):
            yield "best_loss", "is not that of a network before"


class Training:
    """A network in training on a task.

    Args:
        task: on the device to train on.
        architecture: arguments of `make_network`.
        options: of the optimisation.

    Raises:
        RepresentationError: there is no such network.
    """

    def __init__(self, task: Task, architecture: dict[str, Any], options: FitOptions) -> None:
        self.task, self.architecture, self.options = task, architecture, options
        self.network = _initial_network(architecture, options.seed).to(task.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate, fused=True)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.state = State()
        self._started: float | None = None
        self._module, self._fixed = self.network, None
        if task.full_batch:
            self._fixed = task.batch(self.generator)
            if isinstance(self.network, EncodedMLP):
                points = self.network.encoding(self._fixed.points)
                self._module, self._fixed = self.network.mlp, self._fixed._replace(points=points)

    @property
    def seconds(self) -> float:
        """Of training until now."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self.state.seconds + running

    def start_clock(self) -> None:
        """From here on time counts as training."""
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        """From here on it does not."""
        self.finish_queue()
        self.state.seconds, self._started = self.seconds, None

    def finish_queue(self) -> None:
        """Waits for the device, so that clocks are right."""
        if self.task.device.type == "cuda":
            torch.cuda.synchronize(self.task.device)

    def step(self) -> None:
        """One step of Adam.

        Raises:
            NonFiniteError: a number that it has computed or changed is not finite.
        """
        batch = self._fixed or self.task.batch(self.generator)
        learning_rate = self.options.learning_rate_at(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self._module(batch.points), batch.target)
        loss.backward()
        self.optimizer.step()
        self.state.step += 1
        culprit = first_non_finite(numbers_of_step(self.network, {"": loss}))
        if culprit is not None:
            raise NonFiniteError(f"step {self.state.step}: {culprit} is not finite")

    def evaluate(self) -> Entry:
        """Calibrates and evaluates the network, and keeps it if it is the best; returns a line of the history."""
        calibrate_on(self.network, self.task, _CALIBRATION_SEED + self.options.seed)
        metrics, state = self.task.metrics(outputs_of(self.network, self.task)), self.state
        if metrics["loss"] < state.best_loss:
            state.best_step, state.best_loss, state.best_metrics = state.step, metrics["loss"], metrics
            state.best_weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        learning_rate = self.options.learning_rate_at(state.step - 1)
        return {"step": state.step, "seconds": state.seconds, "learning_rate": learning_rate, **metrics}

    def best_weights(self) -> dict[str, Tensor]:
        """State of the best network, or of the present one if none had a finite loss."""
        return self.state.best_weights or self.network.state_dict()

    def save(self, files: RunFolder) -> None:
        """Writes the checkpoint.

        Raises:
            NonFiniteError: a number of it is not finite; nothing is written.
        """
        content = {
            "format": _FORMAT,
            "identity": self._identity(),
            "state": {name: getattr(self.state, name) for name in State.__dataclass_fields__},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        if (culprit := first_non_finite(tensors_in(content))) is not None:
            raise NonFiniteError(f"step {self.state.step}: {culprit} of the checkpoint to save is not finite")
        save_tensors(content, files.checkpoint)

    def restore(self, files: RunFolder) -> None:
        """Goes back to the checkpoint.

        Raises:
            RepresentationError: it cannot be read, or is that of another run.
        """
        content, path = load_tensors(files.checkpoint), files.checkpoint
        found = content.get("format")
        if found != _FORMAT:
            raise RepresentationError(f"{path} has format {reprlib.repr(found)}, but {_FORMAT} is known")
        try:
            if not isinstance(content["identity"], dict):
                raise ValueError("it does not say of which")
            difference = first_difference(content["identity"], self._identity())
            if difference is None:
                self._take(content)
        except Exception as error:  # of whatever the file holds
            raise RepresentationError(f"{path} holds no checkpoint of a fit ({first_line(error)})") from error
        if difference is not None:
            raise RepresentationError(f"{path} holds another run ({difference}): give its options, or another folder")

    def _take(self, content: Mapping[str, Any]) -> None:
        state = State(**content["state"])
        if (fault := next(faults(state, types_too=True), None)) is not None:
            raise ValueError(" ".join(fault))
        if state.best_metrics and self.task.metric not in state.best_metrics:
            raise ValueError(f"its best network has no {self.task.metric}")
        for weights in (state.best_weights or content["network"], content["network"]):  # the best ones only have to fit
            self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(content["optimizer"])
        for parameter in self.network.parameters():
            for name, moment in self.optimizer.state[parameter].items():
                expected = torch.tensor(0.0) if name == "step" else parameter
                if (moment.shape, moment.stride()) != (expected.shape, expected.stride()):  # torch does not look
                    raise ValueError(f"{name} of the optimiser has another shape than its parameter")
        weights = {"network": content["network"], "best": state.best_weights, "optimizer": self.optimizer.state_dict()}
        if (culprit := first_non_finite(tensors_in(weights))) is not None:
            raise ValueError(f"{culprit} is not finite")
        check_states(self.optimizer)
        self.generator.set_state(content["generator"])
        self.state = state

    def _identity(self) -> dict[str, Any]:
        """What has to be equal for a run to be continued."""
        task, options = self.task, asdict(self.options)
        fixed = {name: value for name, value in options.items() if name not in _FREE_OPTIONS}
        if self.options.schedule == "constant":
            del fixed["steps"]
        described: dict[str, Any] = {"task": task.name, "size": task.size, "batch_size": task.batch_size}
        described["checksum of the signal"] = _checksum(task.signal)
        if task.full_batch:  # angles of a scan, frequencies that were drawn
            described["checksum of the measurements"] = _checksum(task.batch(torch.Generator()).target)
        return {**described, **self.architecture, **fixed}


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.cpu().contiguous().numpy().tobytes())


def _initial_network(architecture: dict[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return make_network(**architecture)
        except ValueError as error:
            raise RepresentationError(str(error)) from error
