"""How a network is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from crossnorm_ns.representation.errors import RepresentationError

Schedule = Literal["constant", "exponential", "cosine"]


@dataclass(frozen=True)
class FitOptions:
    """Optimisation of one network."""

    steps: int
    """Steps of Adam."""
    learning_rate: float
    """Of the first step."""
    schedule: Schedule = "constant"
    """How the learning rate goes from its first to its last value."""
    final_factor: float = 1.0
    """Last learning rate over the first."""
    seed: int = 0
    """Of the initial weights and of the points drawn."""
    evaluate_every: int = 100
    """Steps between evaluations."""
    save_every: int = 250
    """Steps between checkpoints."""
    max_seconds: float | None = None
    """Stops after this many seconds of training (evaluations not counted), with all files written."""
    tensorboard: bool = False
    """Writes the history as TensorBoard events too."""

    def __post_init__(self) -> None:
        for name in ("steps", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise RepresentationError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise RepresentationError(f"the learning rate is {self.learning_rate}, but must be a positive number")
        if self.schedule not in get_args(Schedule):
            raise RepresentationError(
                f"unknown schedule {self.schedule!r}: choose one of {', '.join(get_args(Schedule))}"
            )
        if not 0 < self.final_factor <= 1:
            raise RepresentationError(f"the final factor is {self.final_factor}, but must lie in (0, 1]")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise RepresentationError(f"max_seconds is {self.max_seconds}, but must be positive")

    def learning_rate_at(self, step: int) -> float:
        """Of the step with this number, counted from 0."""
        progress = step / self.steps
        if self.schedule == "exponential":
            return self.learning_rate * self.final_factor**progress
        if self.schedule == "cosine":
            fall = (1 + math.cos(math.pi * progress)) / 2
            return self.learning_rate * (self.final_factor + (1 - self.final_factor) * fall)
        return self.learning_rate
