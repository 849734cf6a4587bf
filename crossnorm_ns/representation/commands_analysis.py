"""The commands of the kernel analysis: ntk, spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossnorm_ns.representation.initialization import Initialization

_NORMS = ("", "+bn", "+ln", "+gn", "+cn")
_METHODS = (*(f"relu{norm}" for norm in _NORMS), *(f"pe{norm}" for norm in _NORMS))


@dataclass(kw_only=True)
class _AnalysisOptions:
    """What both analyses share."""

    methods: tuple[str, ...] = _METHODS
    """See the command image."""
    samples: int = 256
    """Points of the 1-D signal over [-1, 1]."""
    network: str = "2x128"
    """Hidden layers x width."""
    num_frequencies: int = 5
    """Of the positional encoding of the methods that have one."""
    learning_rate: float = 1e-3
    """Of Adam, for all methods alike."""
    seed: int = 0
    """Of the first initial weights and of the signal."""

    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers.

        Raises:
            RepresentationError: there are none, or a number is too small.
        """
        from crossnorm_ns.networks import METHODS
        from crossnorm_ns.representation.errors import RepresentationError
        from crossnorm_ns.representation.presets import parse_network

        for method in self.methods:
            if method not in METHODS:
                raise RepresentationError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
        if self.samples < 4 or self.num_frequencies < 1 or not self.learning_rate > 0:
            raise RepresentationError(
                f"{self.samples} samples, {self.num_frequencies} frequencies and a learning rate of "
                f"{self.learning_rate:g} were asked for, but at least 4, at least 1 and more than 0 are needed"
            )
        return parse_network(self.network)

    def network_options(self, method: str) -> dict[str, Any]:
        """Options of `make_network`."""
        return {"num_frequencies": self.num_frequencies} if method.startswith("pe") else {}

    def described(self) -> dict[str, Any]:
        """The options, for JSON."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}


@dataclass(kw_only=True)
class NTKCommand(_AnalysisOptions):
    """Eigenvalues of the neural tangent kernel on a 1-D signal: at initialisation, in training, and how they grow."""

    steps: tuple[int, ...] = (0,)
    """Steps of training on a sum of sines at which the kernel is computed; 0 is the initialisation."""
    initialization: Initialization = "torch"
    """torch: the one that methods are trained with in all tasks. gaussian: linear layers of relu and pe methods start
    normally distributed, as in the paper's analysis, with variance 2 / fan-in (weights) and 0.1 (biases)."""
    num_seeds: int = 3
    """Draws of the initial weights over which statistics are averaged (at step 0 and for growth)."""
    growth_samples: tuple[int, ...] = (64, 128, 256, 512)
    """Numbers of samples for the fit of how eigenvalues grow; none skips it."""
    growth_widths: tuple[int, ...] = (32, 64, 128, 256)
    """Widths of the hidden layers for the fit of how eigenvalues grow; none skips it."""
    output: Path = Path("outputs/representation/ntk")
    """Folder of the results: ntk.json, eigenvalues.png, growth.png."""

    def run(self) -> None:
        """Computes the kernels, writes and prints the results."""
        from rich.console import Console

        from crossnorm_ns.provenance import provenance
        from crossnorm_ns.representation import kernel_analysis as analysis
        from crossnorm_ns.representation.analysis_files import write_figure, write_json
        from crossnorm_ns.representation.errors import RepresentationError

        hidden = self.hidden()
        if self.num_seeds < 1 or any(step < 0 for step in self.steps) or not self.steps:
            raise RepresentationError("--num-seeds must be at least 1, and --steps at least one number from 0 on")
        if min(self.growth_samples, default=2) < 2 or min(self.growth_widths, default=1) < 1:
            raise RepresentationError("--growth-samples must be numbers from 2 on, and --growth-widths from 1 on")
        console = Console()
        seeds = tuple(range(self.seed, self.seed + self.num_seeds))
        snapshots = []
        for method in self.methods:
            options = self.network_options(method)
            with console.status(f"kernels of {method}"):
                snapshots += analysis.kernels_in_training(
                    method, self.samples, hidden, self.steps, self.learning_rate, seeds, self.initialization, **options
                )
        write_figure(analysis.eigenvalue_figure(snapshots), self.output / "eigenvalues.png")
        console.print(analysis.statistics_table(snapshots))
        growths = []
        for method in self.methods:
            options = {"initialization": self.initialization, **self.network_options(method)}
            with console.status(f"growth of the eigenvalues of {method}"):
                growths += analysis.growths(
                    method, self.samples, hidden, self.growth_samples, self.growth_widths, seeds, **options
                )
        if growths:
            write_figure(analysis.growth_figure(growths), self.output / "growth.png")
            console.print(analysis.growth_table(growths))
        results = {"options": self.described(), **provenance(), **analysis.as_json(snapshots, growths)}
        write_json(results, self.output / "ntk.json")
        console.print(f"wrote {self.output}", soft_wrap=True, highlight=False, markup=False)


@dataclass(kw_only=True)
class SpectrumCommand(_AnalysisOptions):
    """Training error of each frequency of a 1-D signal against steps."""

    frequencies: tuple[int, ...] = (1, 3, 7, 15, 31, 63)
    """Of the sines in the signal, in cycles over it; each is a band."""
    steps: int = 2000
    """Of training."""
    threshold: float = 0.1
    """Relative error at which a frequency counts as learned in the printed table."""
    output: Path = Path("outputs/representation/spectrum")
    """Folder of the results: spectrum.json, errors.png."""

    def run(self) -> None:
        """Trains each method, writes and prints the results."""
        from rich.console import Console
        from rich.table import Table

        from crossnorm_ns.provenance import provenance
        from crossnorm_ns.representation.analysis_files import write_figure, write_json
        from crossnorm_ns.representation.errors import RepresentationError
        from crossnorm_ns.representation.spectrum import learn_frequencies, spectrum_figure, sum_of_sines

        hidden = self.hidden()
        if self.steps < 1:
            raise RepresentationError(f"{self.steps} steps of training were asked for, but at least 1 is needed")
        signal, console, histories = sum_of_sines(self.samples, self.frequencies, self.seed), Console(), []
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
        results = {"options": self.described(), **provenance(), "methods": curves}
        write_json(results, self.output / "spectrum.json")
        write_figure(spectrum_figure(histories), self.output / "errors.png")
        console.print(f"wrote {self.output}", soft_wrap=True, highlight=False, markup=False)
