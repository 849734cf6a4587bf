"""The commands of the kernel analysis: ntk, spectrum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from crossnorm_ns.limits import (
    NOT_EMPTY,
    Count,
    Device,
    Fault,
    OutputFolder,
    Positive,
    Seed,
    Width,
    between,
    weights_fault,
)
from crossnorm_ns.networks import METHODS, MethodName
from crossnorm_ns.representation.initialization import Initialization
from crossnorm_ns.representation.presets import NetworkName, parse_network

if TYPE_CHECKING:
    import torch

_METHODS: tuple[MethodName, ...] = tuple(
    name for name in METHODS if name.startswith(("relu", "pe")) and not name.endswith("-paper")
)
_MOST_SAMPLES = 2**14
"""Whose kernel takes 2 GiB."""


@dataclass(kw_only=True)
class _AnalysisOptions:
    """What both analyses share."""

    methods: Annotated[tuple[MethodName, ...], NOT_EMPTY] = _METHODS
    """See the command image."""
    samples: Annotated[int, between(4, _MOST_SAMPLES)] = 256
    """Points of the 1-D signal over [-1, 1]."""
    network: NetworkName = "2x128"
    """Hidden layers x width."""
    num_frequencies: Annotated[int, between(1, 64)] = 5
    """Of the positional encoding of the methods that have one."""
    learning_rate: Positive = 1e-3
    """Of Adam, for all methods alike."""
    seed: Seed = 0
    """Of the first initial weights and of the signal."""
    device: Device | None = None
    """cpu, cuda, cuda:1, ... By default the GPU if there is one."""

    def network_options(self, method: str) -> dict[str, Any]:
        """Options of `make_network`."""
        return {"num_frequencies": self.num_frequencies} if method.startswith("pe") else {}

    def described(self, device: torch.device) -> dict[str, Any]:
        """The options and the device that was taken, for JSON."""
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {**options, "device": device.type}


@dataclass(kw_only=True)
class NTKCommand(_AnalysisOptions):
    """Eigenvalues of the neural tangent kernel on a 1-D signal: at initialisation, in training, and how they grow."""

    steps: Annotated[tuple[Annotated[int, between(0, 10**9)], ...], NOT_EMPTY] = (0,)
    """Steps of training on a sum of sines at which the kernel is computed; 0 is the initialisation."""
    initialization: Initialization = "torch"
    """torch: the one that methods are trained with in all tasks. gaussian: linear layers of relu and pe methods start
    normally distributed, as in the paper's analysis, with variance 2 / fan-in (weights) and 0.1 (biases)."""
    num_seeds: Annotated[int, between(1, 10**6)] = 3
    """Draws of the initial weights over which statistics are averaged (at step 0 and for growth)."""
    growth_samples: tuple[Annotated[int, between(2, _MOST_SAMPLES)], ...] = (64, 128, 256, 512)
    """Numbers of samples for the fit of how eigenvalues grow; none skips it."""
    growth_widths: tuple[Width, ...] = (32, 64, 128, 256)
    """Widths of the hidden layers for the fit of how eigenvalues grow; none skips it."""
    output: OutputFolder = Path("outputs/representation/ntk")
    """Folder of the results: ntk.json, eigenvalues.png, growth.png."""

    def faults(self) -> Iterator[Fault]:
        """Widths of which the network would be too large."""
        num_layers = len(parse_network(self.network))
        for width in self.growth_widths:
            yield from weights_fault("growth_widths", width, 1, *[width] * num_layers, 1)

    def run(self) -> None:
        """Computes the kernels, writes and prints the results."""
        from rich.console import Console

        from crossnorm_ns.provenance import provenance
        from crossnorm_ns.representation import kernel_analysis as analysis
        from crossnorm_ns.representation.analysis_files import write_figure, write_json
        from crossnorm_ns.representation.runs import choose_device

        hidden, console, device = parse_network(self.network), Console(), choose_device(self.device)
        seeds = tuple(range(self.seed, self.seed + self.num_seeds))
        snapshots = []
        for method in self.methods:
            options = self.network_options(method)
            with console.status(f"kernels of {method}"):
                snapshots += analysis.kernels_in_training(
                    method,
                    self.samples,
                    hidden,
                    self.steps,
                    self.learning_rate,
                    seeds,
                    self.initialization,
                    device,
                    **options,
                )
        write_figure(analysis.eigenvalue_figure(snapshots), self.output / "eigenvalues.png")
        console.print(analysis.statistics_table(snapshots))
        growths = []
        for method in self.methods:
            options = {"initialization": self.initialization, "device": device, **self.network_options(method)}
            with console.status(f"growth of the eigenvalues of {method}"):
                growths += analysis.growths(
                    method, self.samples, hidden, self.growth_samples, self.growth_widths, seeds, **options
                )
        if growths:
            write_figure(analysis.growth_figure(growths), self.output / "growth.png")
            console.print(analysis.growth_table(growths))
        results = {"options": self.described(device), **provenance(), **analysis.as_json(snapshots, growths)}
        write_json(results, self.output / "ntk.json")
        console.print(f"wrote {self.output}", soft_wrap=True, highlight=False, markup=False)


@dataclass(kw_only=True)
class SpectrumCommand(_AnalysisOptions):
    """Training error of each frequency of a 1-D signal against steps."""

    frequencies: Annotated[tuple[Annotated[int, between(1, _MOST_SAMPLES)], ...], NOT_EMPTY] = (1, 3, 7, 15, 31, 63)
    """Of the sines in the signal, in cycles over it; each is a band."""
    steps: Count = 2000
    """Of training."""
    threshold: Positive = 0.1
    """Relative error at which a frequency counts as learned in the printed table."""
    output: OutputFolder = Path("outputs/representation/spectrum")
    """Folder of the results: spectrum.json, errors.png."""

    def run(self) -> None:
        """Trains each method, writes and prints the results."""
        from rich.console import Console
        from rich.table import Table

        from crossnorm_ns.provenance import provenance
        from crossnorm_ns.representation.analysis_files import write_figure, write_json
        from crossnorm_ns.representation.runs import choose_device
        from crossnorm_ns.representation.spectrum import learn_frequencies, spectrum_figure, sum_of_sines

        hidden, console, device = parse_network(self.network), Console(), choose_device(self.device)
        signal, histories = sum_of_sines(self.samples, self.frequencies, self.seed).to(device), []
        for method in self.methods:
            with console.status(f"training {method}"):
                histories.append(
                    learn_frequencies(
                        method,
                        signal,
                        hidden,
                        steps=self.steps,
                        learning_rate=self.learning_rate,
                        seed=self.seed,
                        **self.network_options(method),
                    )
                )
        table = Table(title=f"steps until an error stays within {self.threshold:g} (error after {self.steps})")
        table.add_column("method")
        for frequency in self.frequencies:
            table.add_column(f"{frequency} cycles", justify="right")
        for history in histories:
            cells = zip(history.steps_to(self.threshold), history.errors[-1], strict=True)
            table.add_row(history.method, *(f"{'-' if step is None else step} ({error:.3f})" for step, error in cells))
        console.print(table)
        curves = {h.method: {"steps": h.steps, "errors": h.errors.tolist()} for h in histories}
        results = {"options": self.described(device), **provenance(), "methods": curves}
        write_json(results, self.output / "spectrum.json")
        write_figure(spectrum_figure(histories), self.output / "errors.png")
        console.print(f"wrote {self.output}", soft_wrap=True, highlight=False, markup=False)
