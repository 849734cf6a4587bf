"""What the runs of a table come to: the best learning rates, rows beside the paper's, its ordering, times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from crossnorm_ns.paper_tables import paper_row, paper_table
from crossnorm_ns.representation.cells import Cell
from crossnorm_ns.representation.page import Cells
from crossnorm_ns.representation.presets import PRESETS, TaskName
from crossnorm_ns.representation.run_folder import Entry, RunFolder

METRICS: dict[TaskName, tuple[str, ...]] = {
    "image": ("psnr", "ssim"),
    "shape": ("iou",),
    "ct": ("psnr", "ssim"),
    "mri": ("psnr", "ssim"),
}
"""Of each task, the one that learning rates are chosen by first."""
_DIGITS = {"psnr": 2, "ssim": 3, "iou": 3}
_NAMES = {"psnr": "PSNR", "ssim": "SSIM", "iou": "IoU"}
Row = dict[str, float]
"""A value for each method."""
_Key = tuple[str, str | None, str, float | None]


def label(method: str) -> str:
    """A method as the paper writes it: relu+cn becomes ReLU+CN."""
    return method.upper().replace("RELU", "ReLU")


def named(metric: str) -> str:
    """A metric with its unit."""
    return f"{_NAMES[metric]} (dB)" if metric == "psnr" else _NAMES[metric]


def shown(value: float, metric: str) -> str:
    """A metric's value with the digits of the paper; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{_DIGITS[metric]}f}"


@dataclass
class TableResults:
    """Finished runs of a table.

    Attributes:
        task: its name.
        inputs: names of the inputs.
        networks: rows.
        methods: columns.
        runs: cells and results.
    """

    task: TaskName
    inputs: Sequence[str]
    networks: Sequence[str]
    methods: Sequence[str]
    runs: Sequence[tuple[Cell, dict[str, Any]]]
    rates: dict[tuple[str, str], float] = field(init=False)
    """Learning rate of each network and method: the best in the mean over all inputs."""

    def __post_init__(self) -> None:
        self._by_key: dict[_Key, tuple[Cell, dict[str, Any]]] = {
            _key(cell): (cell, result) for cell, result in self.runs
        }
        self.rates = {}
        for network in self.networks:
            for method in self.methods:
                if tried := self._tried(network, method):
                    self.rates[network, method] = max(tried, key=lambda rate: self._score(network, method, rate))

    def _tried(self, network: str, method: str) -> list[float]:
        return sorted({key[3] for key in self._by_key if key[1:3] == (network, method) and key[3] is not None})

    @property
    def metric(self) -> str:
        """By which learning rates are chosen and times compared."""
        return METRICS[self.task][0]

    def run(self, source: str, network: str, method: str) -> tuple[Cell, dict[str, Any]] | None:
        """The run at the best learning rate; None if it has failed."""
        rate = self.rates.get((network, method))
        return self._by_key.get((source, network, method, rate))

    def row(self, network: str, metric: str, source: str | None = None) -> Row:
        """A metric of each method at its best learning rate, of one input or the mean over all; NaN if missing."""
        sources = self.inputs if source is None else [source]
        return {
            method: self._mean(network, method, self.rates.get((network, method)), metric, sources)
            for method in self.methods
        }

    def highest(self, network: str, source: str | None = None) -> Row:
        """The metric's highest value of all evaluations, as `row`: iterates chosen by the truth."""
        row = {}
        for method in self.methods:
            runs = [self.run(name, network, method) for name in (self.inputs if source is None else [source])]
            found = [None if run is None else run[1]["highest"] for run in runs]
            row[method] = fmean(math.nan if one is None else one[self.metric] for one in found)
        return row

    def history(self, source: str, network: str, method: str) -> list[Entry]:
        """Evaluations of the run at the best learning rate."""
        run = self.run(source, network, method)
        return [] if run is None else RunFolder(run[0].folder).read_history()

    def tables(self) -> list[Cells]:
        """The results in the paper's shape, the paper's numbers in the same columns below, and learning rates.

        The paper's have a table of their own: they are of its inputs, sizes and steps. Where it has none of these
        networks, its own stand there.
        """
        heads = ["", *(label(method) for method in self.methods)]
        rows = []
        for network in self.networks:
            for metric in METRICS[self.task]:
                for name, source in self._sources():
                    title = f"{_NAMES[metric]} {network} {name}"
                    rows.append(self._text(title, self.row(network, metric, source), metric))
                    if self.task == "ct" and metric == self.metric:
                        rows.append(self._text(f"{title}, highest", self.highest(network, source), metric))
        published = self._published(self.networks) or self._published(PRESETS["paper"][self.task].networks)
        rates = [
            [network, *(f"{self.rates[network, m]:g}" if (network, m) in self.rates else "-" for m in self.methods)]
            for network in self.networks
        ]
        tables = [Cells("Results", heads, rows)]
        if published:
            number = paper_table(self.task).number
            tables.append(Cells(f"The paper's (table {number}), of its inputs, sizes and steps", heads, published))
        several = any(len(self._tried(network, method)) > 1 for network, method in self.rates)
        title = "Learning rates, each the best of those tried" if several else "Learning rates"
        return [*tables, Cells(title, heads, rates)]

    def disagreements(self) -> list[str]:
        """Where the paper's ordering does not hold or a value is missing, one line each.

        CN at least as good as BN, LN and GN, each of them better than no norm, with PE and without; PE+CN best of all.
        """
        lines = []
        for network in self.networks:
            for metric in METRICS[self.task]:
                for name, source in self._sources():
                    violations = ordering_violations(self.row(network, metric, source))
                    lines += [f"{_NAMES[metric]} {network} {name}: {line}" for line in violations]
        return lines

    def time_ratios(self, fast: str = "pe+cn", slow: str = "pe") -> list[tuple[str, str, float | None]]:
        """For each input and network: seconds that `fast` takes to reach the final quality of `slow`, over `slow`'s.

        Both at their best learning rates; None where it is not reached.
        """
        ratios = []
        for network in self.networks:
            for source in self.inputs:
                first, second = self.run(source, network, fast), self.run(source, network, slow)
                if first is None or second is None:
                    continue
                target = second[1]["metrics"].get(self.metric, math.inf)
                reached = [e["seconds"] for e in self.history(source, network, fast) if e[self.metric] >= target]
                ratios.append((source, network, min(reached) / second[1]["seconds"] if reached else None))
        return ratios

    def _sources(self) -> list[tuple[str, str | None]]:
        """Names of the rows and their inputs; the mean has None."""
        several = len(self.inputs) > 1
        return [*((name, name) for name in self.inputs), ("mean", None)] if several else [(self.inputs[0], None)]

    def _published(self, networks: Sequence[str]) -> list[list[str]]:
        """The paper's rows of these networks, as far as it has them."""
        rows = []
        for network in networks:
            for metric in METRICS[self.task]:
                for name, source in self._sources():
                    paper = self._paper_row(metric, network, name, source)
                    if paper is not None:
                        rows.append(self._text(f"{_NAMES[metric]} {network} paper{paper[0]}", paper[1], metric))
        return rows

    def _paper_row(self, metric: str, network: str, name: str, source: str | None) -> tuple[str, Row] | None:
        scene = None
        if self.task == "shape":
            scene = paper_shape(name)
            if scene is None:
                return None
        elif source is not None:
            return None
        row = paper_row(self.task, metric, network, scene)
        return None if row is None else ("" if scene is None else f" {scene}", dict(row))

    def _text(self, name: str, row: Row, metric: str) -> list[str]:
        values = [row.get(method, math.nan) for method in self.methods]
        return [name, *(shown(value, metric) for value in values)]

    def _score(self, network: str, method: str, rate: float) -> float:
        """The mean that learning rates are chosen by; runs that are missing or diverged are the worst there are."""
        mean = self._mean(network, method, rate, self.metric, self.inputs)
        return -math.inf if math.isnan(mean) else mean

    def _mean(self, network: str, method: str, rate: float | None, metric: str, sources: Sequence[str]) -> float:
        """Over inputs; NaN where a run is missing or diverged."""
        values = []
        for source in sources:
            _, result = self._by_key.get((source, network, method, rate), (None, {}))
            value = result.get("metrics", {}).get(metric)
            values.append(math.nan if value is None else value)
        return fmean(values)


def paper_shape(name: str) -> str | None:
    """The shape of the paper that an input is by its name: lucy_512 is lucy."""
    shapes = sorted(paper_table("shape").items, key=len, reverse=True)
    return next((shape for shape in shapes if name.startswith(shape)), None)


def _key(cell: Cell) -> _Key:
    return Path(cell.spec.input).stem, cell.spec.network, cell.spec.method, cell.spec.learning_rate


def ordering_violations(row: Row) -> list[str]:
    """Where one row of values does not have the paper's ordering, or cannot show it for want of a value (NaN)."""
    pairs = []
    for base in ("relu", "pe"):
        pairs += [(f"{base}+cn", f"{base}+{other}", True) for other in ("bn", "ln", "gn")]
        pairs += [(f"{base}+{norm}", base, False) for norm in ("bn", "ln", "gn", "cn")]
    pairs += [("pe+cn", method, False) for method in row if method not in ("pe", "pe+cn", "pe+bn", "pe+ln", "pe+gn")]
    lines = [f"{label(method)} has no value: it diverged or failed" for method in row if math.isnan(row[method])]
    for better, worse, ties in pairs:
        first, second = row.get(better, math.nan), row.get(worse, math.nan)
        if first < second or (first == second and not ties):
            lines.append(f"{label(better)} {first:.4g} is not ahead of {label(worse)} {second:.4g}")
    return lines
