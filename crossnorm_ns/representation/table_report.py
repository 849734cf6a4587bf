"""A table's files: Markdown, JSON, curves, pictures, and one HTML page with all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from crossnorm_ns.files import atomic_file
from crossnorm_ns.representation.analysis_files import write_figure, write_json
from crossnorm_ns.representation.cells import Grid
from crossnorm_ns.representation.page import Cells, write_page
from crossnorm_ns.representation.table_results import TableResults, label, named, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(results: TableResults, grid: Grid, failures: Sequence[str], output: Path) -> list[Cells]:
    """Writes `table.md`, `results.json`, `curves-NETWORK.png`, `pictures-NETWORK.png` and `table.html`.

    Returns:
        The tables, for the terminal.
    """
    tables = [*results.tables(), _times(results)]
    title = f"{results.task} table, {grid.preset} preset"
    notes = [describe(results, grid), *_findings(results), *failures]
    pictures = []
    for network in results.networks:
        for kind, figure in (("curves", _curves(results, network)), ("pictures", pictures_figure(results, network))):
            path = output / f"{kind}-{network}.png"
            write_figure(figure, path)
            pictures.append((f"{kind.capitalize()}, {network}", path))
    text = "\n\n".join([f"# {title}", *notes, *(table.markdown() for table in tables)]) + "\n"
    with atomic_file(output / "table.md") as file:
        file.write(text.encode())
    write_json([{**result, "folder": str(cell.folder)} for cell, result in results.runs], output / "results.json")
    write_page(output / "table.html", title, notes, tables, pictures)
    return tables


def describe(results: TableResults, grid: Grid) -> str:
    """What the numbers are and what they depend on."""
    devices = sorted({f"{result['device']}, {result['threads']} threads" for _, result in results.runs})
    machines = sorted({result["machine"] for _, result in results.runs})
    steps = sorted({result["options"]["steps"] for _, result in results.runs})
    sizes = sorted({"x".join(map(str, result["size"])) for _, result in results.runs})
    return (
        f"Inputs {', '.join(results.inputs)} at {', '.join(sizes)}; {', '.join(map(str, steps))} steps; "
        f"seed {grid.seed}. "
        "Each run counts with the network that had the lowest training loss of all evaluations (rows called highest: "
        "the evaluation nearest to the truth, as WIRE counts its CT), each method with the "
        f"learning rate that has the best {results.metric.upper()} in the mean over inputs. "
        f"{'; '.join([*machines, *devices])}, torch {torch.__version__}."
    )


def _findings(results: TableResults) -> list[str]:
    lines = results.disagreements()
    if not lines:
        return [
            "The paper's ordering of the methods compared holds in every row: CN >= BN, LN, GN > none, with PE and "
            "without; PE+CN is best."
        ]
    return [f"The paper's ordering does not hold, or lacks a value, in {len(lines)} places: {'; '.join(lines)}."]


def _times(results: TableResults) -> Cells:
    rows = [
        [f"{source} {network}", "not reached" if ratio is None else f"{ratio:.2f}"]
        for source, network, ratio in results.time_ratios()
    ]
    title = f"Training time of PE+CN to PE's final {results.metric.upper()}, over PE's training time"
    return Cells(title, ["input, network", "ratio"], rows)


def _curves(results: TableResults, network: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2 * len(results.inputs)), dpi=110, layout="constrained")
    grid = figure.subplots(len(results.inputs), 2, squeeze=False)
    colors = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for source, row in zip(results.inputs, grid, strict=True):
        for axes, key in zip(row, ("step", "seconds"), strict=True):
            for i, method in enumerate(results.methods):
                history = results.history(source, network, method)
                xs, ys = [entry[key] for entry in history], [entry[results.metric] for entry in history]
                axes.plot(xs, ys, color=colors[i % len(colors)], label=label(method), linewidth=1.3, marker=".")
            axes.set(xlabel="seconds of training" if key == "seconds" else key, ylabel=named(results.metric))
            axes.set_title(source, fontsize=10, parse_math=False)
            axes.grid(alpha=0.3)
        row[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def pictures_figure(results: TableResults, network: str) -> Figure:
    """The first input, and its reconstructions by all methods."""
    from matplotlib.figure import Figure
    from PIL import Image

    source = results.inputs[0]
    runs = {method: results.run(source, network, method) for method in results.methods}
    folders = {method: run[0].folder for method, run in runs.items() if run is not None}
    truths = (folder / "preview-truth.png" for folder in folders.values())
    panels: dict[str, Path | None] = {"truth": next(filter(Path.is_file, truths), None)}
    for method, value in results.row(network, results.metric, source).items():
        title = f"{label(method)}  {shown(value, results.metric)}"
        panels[title] = folders[method] / "preview.png" if method in folders else None
    pictures = {title: np.asarray(Image.open(path)) for title, path in panels.items() if path and path.is_file()}
    height, width = next((picture.shape[:2] for picture in pictures.values()), (1, 1))
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, (2.6 * height / width + 0.3) * rows + 0.3), dpi=110, layout="constrained")
    figure.suptitle(f"{source}: {named(results.metric)} of each method", fontsize=10, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, title in zip(grid.flat, panels, strict=False):
        axes.set_title(title, fontsize=9)
        if title in pictures:
            axes.imshow(pictures[title], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return figure
