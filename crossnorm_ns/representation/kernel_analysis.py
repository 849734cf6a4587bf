"""Kernels of several methods beside each other: tables, figures and JSON of the command ntk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crossnorm_ns.representation.eigenvalues import (
    EigenvalueStatistics,
    Growth,
    describe,
    growth_with_samples,
    growth_with_width,
    log_edges,
    log_histogram,
    mean_field_order,
    mean_statistics,
)
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.initialization import Initialization, initial_network
from crossnorm_ns.representation.ntk import kernel_eigenvalues, neural_tangent_kernel
from crossnorm_ns.representation.spectrum import FREQUENCIES, sum_of_sines, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_COMPARED = ("mean", "variance", "maximum", "median", "maximum_over_mean", "effective_rank")
_FITTED = ("mean", "variance", "maximum")


@dataclass(frozen=True)
class KernelSnapshot:
    """The kernel of a method at one step of its training."""

    method: str
    step: int
    statistics: EigenvalueStatistics
    """Mean over the seeds."""
    eigenvalues: Float[Tensor, " outputs"]
    """Of the first seed."""


def kernels_in_training(
    method: str,
    samples: int,
    hidden: Sequence[int],
    steps: Sequence[int],
    learning_rate: float,
    seeds: Sequence[int],
    initialization: Initialization = "torch",
    device: torch.device | str = "cpu",
    **options: Any,
) -> list[KernelSnapshot]:
    """Kernels of a network on the points of a sum of sines, at some steps of its training by Adam on it."""
    found: dict[int, list[Tensor]] = {step: [] for step in sorted(set(steps))}
    signal = sum_of_sines(samples, [f for f in FREQUENCIES if 2 * f < samples]).to(device)
    for seed in seeds:
        network = initial_network(method, hidden, seed, initialization, **options).to(device)
        for step, _ in enumerate(train(network, signal, max(found), learning_rate)):
            if step not in found:
                continue
            try:
                found[step].append(kernel_eigenvalues(neural_tangent_kernel(network, signal.points)))
            except RepresentationError as error:
                raise RepresentationError(
                    f"{method}, step {step}, learning rate {learning_rate:g}: {error}; choose a smaller rate"
                ) from error
    return [
        KernelSnapshot(method, step, mean_statistics([describe(some) for some in several]), several[0])
        for step, several in found.items()
    ]


def growths(
    method: str,
    samples: int,
    hidden: Sequence[int],
    all_samples: Sequence[int],
    widths: Sequence[int],
    seeds: Sequence[int],
    **options: Any,
) -> list[Growth]:
    """Growth of a method's eigenvalues with samples and with width; an axis with fewer than two sizes is left out."""
    found = []
    if len(set(all_samples)) > 1:
        found.append(growth_with_samples(method, sorted(set(all_samples)), hidden, seeds, **options))
    if len(set(widths)) > 1:
        found.append(growth_with_width(method, samples, sorted(set(widths)), len(hidden), seeds, **options))
    return found


def ratios(snapshot: KernelSnapshot, snapshots: Sequence[KernelSnapshot]) -> dict[str, float]:
    """Each statistic over that of the same network without a norm at the same step; empty where that is missing."""
    plain = snapshot.method.partition("+")[0]
    for other in snapshots:
        if other.method == plain and other.step == snapshot.step:
            own, reference = snapshot.statistics.as_dict(), other.statistics.as_dict()
            return {name: own[name] / reference[name] for name in _COMPARED if reference[name] > 0}
    return {}


def statistics_table(snapshots: Sequence[KernelSnapshot]) -> Table:
    """Statistics of each kernel, and in brackets their ratio to the network without a norm."""
    from rich.table import Table

    table = Table(title="eigenvalues of the neural tangent kernel (ratio to the same network without a norm)")
    for head in ("method", "step", *(name.replace("_", " ") for name in _COMPARED)):
        table.add_column(head, justify="left" if head == "method" else "right")
    for snapshot in snapshots:
        values, relative = snapshot.statistics.as_dict(), ratios(snapshot, snapshots)
        cells = [
            f"{values[name]:.3g}" + (f" ({relative[name]:.2g})" if "+" in snapshot.method and name in relative else "")
            for name in _COMPARED
        ]
        table.add_row(snapshot.method, str(snapshot.step), *cells)
    return table


def growth_table(found: Sequence[Growth]) -> Table:
    """Fitted exponents, and in brackets those of the mean-field model."""
    from rich.table import Table

    table = Table(title="exponents of growth, fitted on logarithmic axes (paper's mean-field model)")
    for head in ("method", "with", *_FITTED):
        table.add_column(head, justify="left" if head in ("method", "with") else "right")
    for growth in found:
        orders, cells = growth.orders(), []
        for name in _FITTED:
            derived = mean_field_order(growth.method, growth.axis, name)
            fitted = f"{orders[name]:.2f}" if name in orders else "-"
            cells.append(fitted + ("" if derived is None else f" ({derived:g})"))
        table.add_row(growth.method, growth.axis, *cells)
    return table


def eigenvalue_figure(snapshots: Sequence[KernelSnapshot], bins: int = 40) -> Figure:
    """Histograms on one logarithmic axis, a panel for each method, a colour for each step."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(snapshot.method for snapshot in snapshots))
    columns = min(5, len(methods))
    rows = -(-len(methods) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.5, 2.1 * rows + 0.5), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    edges = log_edges([snapshot.eigenvalues for snapshot in snapshots], bins)
    for axes, method in zip(grid.flat, methods, strict=False):
        for snapshot in snapshots:
            if snapshot.method == method:
                counts = log_histogram(snapshot.eigenvalues, edges)
                axes.stairs(counts, np.power(10.0, edges), label=f"step {snapshot.step}")
        axes.set(xscale="log", yscale="log")
        axes.set_title(method, fontsize=9)
    for axes in list(grid.flat)[len(methods) :]:
        axes.set_visible(False)
    if len({snapshot.step for snapshot in snapshots}) > 1:
        grid[0, 0].legend(fontsize=7)
    figure.supxlabel("eigenvalue", fontsize=9)
    figure.supylabel("number", fontsize=9)
    return figure


def growth_figure(found: Sequence[Growth]) -> Figure:
    """Mean, variance and maximum against samples and width, a line for each method."""
    from matplotlib.figure import Figure

    axis_names = list(dict.fromkeys(growth.axis for growth in found))
    figure = Figure(figsize=(11, 3.4 * len(axis_names)), dpi=120, layout="constrained")
    grid = figure.subplots(len(axis_names), len(_FITTED), squeeze=False)
    for row, axis in zip(grid, axis_names, strict=True):
        for axes, name in zip(row, _FITTED, strict=True):
            for growth in (one for one in found if one.axis == axis):
                values = [getattr(one, name) for one in growth.statistics]
                axes.plot(growth.sizes, values, marker="o", markersize=3, label=growth.method)
            axes.set(xscale="log", yscale="log", xlabel=axis, title=name)
            axes.grid(alpha=0.3)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def as_json(snapshots: Sequence[KernelSnapshot], found: Sequence[Growth]) -> dict[str, Any]:
    """All of it, for JSON."""
    kernels, growth = [], []
    for snapshot in snapshots:
        edges = log_edges([snapshot.eigenvalues])
        counts = log_histogram(snapshot.eigenvalues, edges)
        kernels.append(
            {
                "method": snapshot.method,
                "step": snapshot.step,
                "statistics": snapshot.statistics.as_dict(),
                "ratios": ratios(snapshot, snapshots),
                "histogram": {"counts": counts, "log10_edges": edges.tolist()},
            }
        )
    for one in found:
        derived = {name: mean_field_order(one.method, one.axis, name) for name in _FITTED}
        statistics = [statistic.as_dict() for statistic in one.statistics]
        growth.append(
            {
                "method": one.method,
                "axis": one.axis,
                "sizes": one.sizes,
                "statistics": statistics,
                "orders": one.orders(),
                "mean_field_orders": derived,
            }
        )
    return {"kernels": kernels, "growth": growth}
