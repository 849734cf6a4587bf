"""Which frequencies of a 1-D signal a network learns first (paper, section 4.4.2 and figure 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.networks import make_network
from crossnorm_ns.representation.errors import RepresentationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FREQUENCIES = (1, 3, 7, 15, 31, 63)
"""Cycles over the signal; between the powers of two that positional encoding holds itself."""


@dataclass(frozen=True)
class Signal:
    """A sum of sines of equal amplitude, sampled over whole periods."""

    points: Float[Tensor, "samples 1"]
    """Coordinates in [-1, 1), at equal distances."""
    values: Float[Tensor, "samples 1"]
    bands: tuple[tuple[int, int], ...]
    """First and last frequency of each band, in cycles over the signal."""

    def to(self, device: torch.device | str) -> Signal:
        """The same signal on a device."""
        return replace(self, points=self.points.to(device), values=self.values.to(device))


def sum_of_sines(samples: int, frequencies: Sequence[int] = FREQUENCIES, seed: int = 0) -> Signal:
    """A signal with one band for each frequency; phases are drawn.

    Raises:
        RepresentationError: a frequency is not below half the number of samples, or they do not increase from 1 on.
    """
    increasing = all(low < high for low, high in zip(frequencies[:-1], frequencies[1:], strict=True))
    if not frequencies or frequencies[0] < 1 or not increasing or 2 * frequencies[-1] >= samples:
        raise RepresentationError(
            f"the frequencies are {', '.join(map(str, frequencies)) or 'none'}, but must increase from 1 or more to "
            f"less than half of the {samples} samples"
        )
    generator = torch.Generator().manual_seed(seed)
    phases = 2 * math.pi * torch.rand(len(frequencies), generator=generator)
    points = 2 * torch.arange(samples)[:, None] / samples - 1
    values = torch.sin(math.pi * points * torch.tensor(frequencies) + phases).sum(1, keepdim=True)
    return Signal(points, values / len(frequencies), tuple((f, f) for f in frequencies))


def band_errors(
    prediction: Float[Tensor, "samples 1"], target: Float[Tensor, "samples 1"], bands: Sequence[tuple[int, int]]
) -> Float[Tensor, " bands"]:
    """Relative error in each band: the norm of the difference's Fourier coefficients over that of the target's."""
    spectrum = torch.fft.rfft(target.double()[:, 0])
    difference = torch.fft.rfft(prediction.double()[:, 0]) - spectrum
    errors = [difference[low : high + 1].norm() / spectrum[low : high + 1].norm() for low, high in bands]
    return torch.stack(errors)


def train(network: nn.Module, signal: Signal, steps: int, learning_rate: float) -> Iterator[Float[Tensor, "samples 1"]]:
    """Full-batch training by Adam on the mean squared error; gives the outputs before each step, and after the last."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    network.train()
    for _ in range(steps):
        outputs = network(signal.points)
        yield outputs.detach()
        optimizer.zero_grad()
        (outputs - signal.values).square().mean().backward()
        optimizer.step()
    yield network(signal.points).detach()


@dataclass(frozen=True)
class FrequencyHistory:
    """Error of each band in the course of training."""

    method: str
    bands: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    errors: Float[np.ndarray, "steps bands"]

    def steps_to(self, error: float) -> list[int | None]:
        """For each band the first recorded step from which on its error stays at or below `error`; None if never."""
        found: list[int | None] = []
        for column in self.errors.T:
            above = np.flatnonzero(~(column <= error))
            first = 0 if above.size == 0 else int(above[-1]) + 1
            found.append(self.steps[first] if first < len(self.steps) else None)
        return found


def learn_frequencies(
    method: str,
    signal: Signal,
    hidden: Sequence[int],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    records: int = 100,
    seed: int = 0,
    **options: Any,
) -> FrequencyHistory:
    """Trains a network on a signal and records the error of each band.

    Args:
        method: see `make_network`.
        signal: what is fitted, on the device to train on.
        hidden: width of each hidden layer.
        steps: of Adam.
        learning_rate: constant.
        records: at most so many, at equal ratios between steps.
        seed: of the initial weights.
        options: of the method.
    """
    torch.manual_seed(seed)
    network = make_network(method, 1, 1, hidden, **options).to(signal.points.device)
    recorded = sorted({0, *(round((steps + 1) ** (i / (records - 1))) - 1 for i in range(1, records))})
    wanted = set(recorded)
    errors = [
        band_errors(outputs, signal.values, signal.bands).cpu().numpy()
        for step, outputs in enumerate(train(network, signal, steps, learning_rate))
        if step in wanted
    ]
    return FrequencyHistory(method, signal.bands, tuple(recorded), np.stack(errors))


def spectrum_figure(histories: Sequence[FrequencyHistory]) -> Figure:
    """For each method the error of each band (rows) against steps, as colours; black is 1 and more."""
    from matplotlib.figure import Figure

    columns = min(5, len(histories))
    rows = -(-len(histories) // columns)
    figure = Figure(figsize=(2.6 * columns + 1, 2.2 * rows + 0.6), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    shown = None
    for axes, history in zip(grid.flat, histories, strict=False):
        edges = np.append(np.asarray(history.steps, dtype=float), history.steps[-1] * 1.1) + 1
        errors = np.clip(np.nan_to_num(history.errors.T, nan=1.0), 1e-3, 1)
        shown = axes.pcolormesh(
            edges, np.arange(len(history.bands) + 1) - 0.5, errors, norm="log", cmap="magma_r", vmin=1e-3, vmax=1
        )
        axes.set_xscale("log")
        axes.set_title(history.method, fontsize=9)
        axes.set_yticks(range(len(history.bands)), [str(low) for low, _ in history.bands])
    for axes in list(grid.flat)[len(histories) :]:
        axes.set_visible(False)
    figure.supxlabel("step + 1", fontsize=9)
    figure.supylabel("cycles", fontsize=9)
    if shown is not None:
        figure.colorbar(shown, ax=grid, label="relative error")
    return figure
