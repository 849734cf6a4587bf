"""What all representation tasks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.pictures import Panel

SMALLEST_SIDE = 11
"""Pixels along each side that SSIM's window needs."""


class Batch(NamedTuple):
    """What one training step sees."""

    points: Float[Tensor, "points in_dim"]
    target: Tensor
    """Whatever the task's loss compares the outputs with: values of the points, or measurements of all of them."""


class Task(ABC):
    """A signal on a regular grid that a network is fitted to, from its values or from measurements of it.

    Attributes:
        size: of the grid, entries along each axis.
        signal: the true values on the grid.
        batch_size: points drawn for each step; None takes all of them, in order.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    """The metric that tables and the progress bar show; more is better."""
    in_dim: ClassVar[int]
    out_dim: ClassVar[int]

    size: tuple[int, ...]
    signal: Tensor
    batch_size: int | None = None
    device: torch.device = torch.device("cpu")

    @property
    def num_points(self) -> int:
        """Entries of the grid."""
        return int(torch.Size(self.size).numel())

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all points, the same each time."""
        return self.batch_size is None

    def to(self, device: torch.device | str) -> Task:
        """Moves the task's tensors; returns the task."""
        self.device = torch.device(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    @abstractmethod
    def coordinates(self, start: int = 0, end: int | None = None) -> Float[Tensor, "points in_dim"]:
        """Coordinates of the entries from `start` to `end` of the grid, last axis fastest."""

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Batch:
        """Points and target of one step; only tasks that draw points use the generator (one of the CPU)."""

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "points out_dim"], target: Tensor) -> Float[Tensor, ""]:
        """What training minimises, from the network's outputs on a batch."""

    @abstractmethod
    def metrics(self, outputs: Float[Tensor, "points out_dim"]) -> dict[str, float]:
        """Quality of the outputs on all points: `loss`, and the task's metrics."""

    @abstractmethod
    def views(self, outputs: Float[Tensor, "points out_dim"]) -> list[Panel]:
        """Reconstruction and truth as pictures, the most telling first."""

    @abstractmethod
    def save(self, outputs: Float[Tensor, "points out_dim"], folder: Path) -> Path:
        """Writes the reconstruction in the usual format for it; returns the file."""

    def costs(self, network: nn.Module) -> dict[str, float]:
        """Size of a network for this task."""
        return {"parameters": float(sum(parameter.numel() for parameter in network.parameters()))}


def check_sides(size: tuple[int, ...], what: str) -> None:
    """Refuses pictures that are too small for SSIM."""
    if min(size) < SMALLEST_SIDE:
        sides = "x".join(map(str, size))
        raise RepresentationError(f"{what} has size {sides}, but at least {SMALLEST_SIDE} along each side are needed")


def check_batch_size(batch_size: int | None) -> None:
    """Refuses batches without points."""
    if batch_size is not None and batch_size < 1:
        raise RepresentationError(f"the batch size is {batch_size}, but must be at least 1")
