"""The main job on a scene that this program makes: mip-NeRF with and without Cross Normalization, side by side.

    python -m examples.demo

Writes everything under outputs/demo; finished parts are not repeated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from benchmarks.processes import train_all
from benchmarks.training_runs import Run
from crossnorm_ns.limits import Count, OutputFolder, PictureSide, between
from eval.command import run_command
from examples.report import table, write_page

LEARNING_RATES = {"none": 5e-3, "cn": 5e-3}
"""For each side within 0.3 dB of the best of the grid on real lego in docs/RESULTS.md."""
TITLES = {"none": "mipnerf-ref", "cn": "mipnerf-cn"}
PICTURE_ROWS = 3


@dataclass
class Demo:
    """Trains mip-NeRF with and without Cross Normalization on a procedural scene and compares them."""

    output: OutputFolder = Path("outputs/demo")
    """Folder of the scene, the runs and the report."""
    steps: Count = 2500
    """Training steps, the same for both."""
    resolution: PictureSide = 100
    """Width and height of the scene's pictures."""
    train: Annotated[int, between(1, 100_000)] = 60
    """Training pictures."""
    test: Annotated[int, between(1, 100_000)] = 10
    """Test pictures."""
    jobs: Annotated[int, between(1, 1024)] = min(2, os.cpu_count() or 1)
    """Trainings at a time, one thread each."""


@dataclass
class Side:
    """One method's training and evaluation."""

    title: str
    training: dict[str, Any]
    config: Path
    evaluation: Any
    panels: list[Any]


def main(demo: Demo) -> None:
    """Makes the scene, trains, evaluates, prints the table and writes report.html and report.png."""
    console = Console()
    scene = demo.output / f"scene-{demo.resolution}"
    if not (scene / "transforms_train.json").exists():
        from crossnorm_ns.data.make_scene import blender

        blender(scene, resolution=demo.resolution, train=demo.train, test=demo.test)
    console.print(f"Training both for {demo.steps} steps of the tiny preset: a few minutes.")
    runs = [
        Run(
            name=TITLES[norm],
            data=str(scene.resolve()),
            norm=norm,
            learning_rate=rate,
            steps=demo.steps,
            keep=str((demo.output / "runs").resolve()),
            final_views=demo.test,
        )
        for norm, rate in LEARNING_RATES.items()
    ]
    trained = train_all(runs, demo.output, demo.jobs, "benchmarks.training_runs")
    sides = [evaluate(training, demo.output) for training in trained]
    draw(sides, demo.output / "report.png")
    rows, text = [_cells(side) for side in sides], caption(sides)
    write_page(
        demo.output / "report.html",
        "mip-NeRF with Cross Normalization",
        text,
        _HEADS,
        rows,
        demo.output / "report.png",
        "Renders, error maps and PSNR curves",
    )
    console.print(table("mip-NeRF on the example scene", _HEADS, rows))
    console.print(text)
    for side in sides:
        console.print(f"ns-eval --load-config {side.config}", soft_wrap=True, highlight=False)
    console.print(f"Report: {demo.output / 'report.html'}, {demo.output / 'report.png'}")


def evaluate(training: dict[str, Any], output: Path) -> Side:
    """Renders and scores all test views from the saved run, as `python -m eval.blender --load-config` does."""
    from eval.scoring import evaluate as score
    from eval.sheet import Panel, spread
    from eval.views import views_of_run

    run = training["run"]
    (config,) = (output / "runs").glob(f"*/*/{run['name']}/config.yml")
    views = views_of_run(config)
    rows, panels = spread(views.subject.indices, PICTURE_ROWS), []

    def keep(view: Any, scores: Any) -> None:
        if view.index in rows:
            panels.append(Panel(view.name, view.render, view.truth, scores))

    evaluation = score(views, "mipnerf", keep)
    evaluation.write_json(output / f"{run['name']}-eval.json")
    return Side(run["name"], training, config, evaluation, panels)


_HEADS = ("method", "learning rate", "steps", "seconds", "PSNR (dB)", "SSIM")


def _cells(side: Side) -> tuple[str, ...]:
    run = side.training["run"]
    return (
        side.title,
        f"{run['learning_rate']:g}",
        str(run["steps"]),
        f"{side.training['seconds']:.0f}",
        f"{side.evaluation.psnr:.2f}",
        f"{side.evaluation.ssim:.4f}",
    )


def caption(sides: Sequence[Side]) -> str:
    """What the numbers are."""
    evaluation, machine = sides[0].evaluation, sides[0].training["machine"]
    return (
        f"{evaluation.heading()}. Equal steps, each method at the learning rate that was best for it on lego; seed 0; "
        f"seconds are processor seconds inside training steps ({machine})."
    )


def draw(sides: Sequence[Side], path: Path) -> None:
    """Truth, renders and error maps of a few test views, and PSNR against steps and against seconds."""
    import numpy as np
    from matplotlib.figure import Figure

    rows = len(sides[0].panels)
    figure = Figure(figsize=(11, 2.15 * rows + 3.2), dpi=110, layout="constrained")
    pictures, curves = figure.subfigures(2, 1, height_ratios=[2.15 * rows, 3.2])
    grid = pictures.subplots(rows, 1 + 2 * len(sides), squeeze=False)
    errors = [[np.abs(panel.render - panel.truth).mean(-1) for panel in side.panels] for side in sides]
    largest = float(np.percentile(errors, 99.5))
    for i, axes in enumerate(grid):
        axes[0].imshow(sides[0].panels[i].truth.clip(0, 1))
        axes[0].set_title("truth", fontsize=9)
        axes[0].set_ylabel(sides[0].panels[i].name, fontsize=9)
        for j, side in enumerate(sides):
            axes[1 + j].imshow(side.panels[i].render.clip(0, 1))
            axes[1 + j].set_title(f"{side.title}: {side.panels[i].scores.psnr:.2f} dB", fontsize=9)
            shown = axes[1 + len(sides) + j].imshow(errors[j][i], cmap="magma", vmin=0, vmax=largest)
            axes[1 + len(sides) + j].set_title(f"{side.title}: error", fontsize=9)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    pictures.colorbar(shown, ax=grid[:, -1], extend="max", label="mean |render - truth|")
    for axis, key in zip(curves.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for side, color in zip(sides, ("tab:gray", "tab:blue"), strict=True):
            points = side.training["curve"]
            axis.plot([p[key] for p in points], [p["psnr"] for p in points], ".-", color=color, label=side.title)
        axis.set_xlabel("step" if key == "step" else "processor seconds")
        axis.set_ylabel(f"PSNR of {sides[0].training['curve'][0]['views']} test views (dB)")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.savefig(path)


def run() -> None:
    """The command."""
    run_command(Demo, main, "python -m examples.demo")


if __name__ == "__main__":
    run()
