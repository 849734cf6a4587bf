"""The surface job on a scan that this program makes: NeuS with and without Cross Normalization, side by side.

    python -m examples.demo_neus

Writes everything under outputs/demo-neus; finished parts are not repeated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console

from benchmarks.neus_scores import EXAMPLE_SCAN, Scores, evaluate
from benchmarks.neus_training import Training
from benchmarks.processes import train_all
from crossnorm_ns.limits import Count, GridSide, OutputFolder, PictureSide, between
from eval.command import run_command
from examples.report import table, write_page

LEARNING_RATES = {"none": 2e-3, "cn": 2e-3}
"""Of each side: the tiny preset's."""
TITLES = {"none": "neus-ref", "cn": "neus-cn"}


@dataclass
class Demo:
    """Trains NeuS with and without Cross Normalization on a procedural scan and compares their surfaces."""

    output: OutputFolder = Path("outputs/demo-neus")
    """Folder of the scan, the runs and the report."""
    steps: Count = 1500
    """Training steps, the same for both."""
    resolution: PictureSide = 128
    """Width and height of the scan's pictures."""
    views: Annotated[int, between(2, 100_000)] = 40
    """Pictures of the scan. Every eighth is kept from training, for the PSNR."""
    mesh_resolution: GridSide = 160
    """Grid points along each axis for the meshes."""
    jobs: Annotated[int, between(1, 1024)] = min(2, os.cpu_count() or 1)
    """Trainings at a time, one thread each."""


@dataclass
class Side:
    """One method's training and evaluation."""

    title: str
    seconds: float
    config: Path
    scores: Scores


def main(demo: Demo) -> None:
    """Makes the scan, trains, extracts and measures surfaces, prints the table, writes report.html and report.png."""
    from examples.demo_neus_picture import draw

    console = Console()
    scan = demo.output / f"scan-{demo.resolution}-{demo.views}"
    if not scan.exists():
        from crossnorm_ns.data.make_scene import dtu

        dtu(scan, resolution=demo.resolution, views=demo.views, scan=EXAMPLE_SCAN)
    console.print(f"Training both for {demo.steps} steps of the tiny preset: some minutes.")
    trainings = [
        Training(TITLES[norm], str(scan.resolve()), norm, rate, demo.steps) for norm, rate in LEARNING_RATES.items()
    ]
    trained = train_all(trainings, demo.output, demo.jobs, "benchmarks.neus_training")
    console.print("Extracting and measuring the surfaces.")
    sides = []
    for result in trained:
        config = Path(result["config"])
        scores = evaluate(config, demo.mesh_resolution, scan)
        sides.append(Side(result["run"]["name"], result["seconds"], config, scores))
    draw(sides, demo.output / "report.png")
    rows, text = [_cells(side) for side in sides], caption(demo)
    write_page(
        demo.output / "report.html",
        "NeuS with Cross Normalization",
        text,
        _HEADS,
        rows,
        demo.output / "report.png",
        "Renders, normals, and surfaces from three sides, coloured by their distance to the true one",
    )
    console.print(table("NeuS on the example scan", _HEADS, rows))
    console.print(text)
    for side in sides:
        console.print(
            f"python -m eval.extract_mesh --load-config {side.config} --output mesh.ply",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"Report: {demo.output / 'report.html'}, {demo.output / 'report.png'}")


_HEADS = ("method", "seconds", "accuracy", "completeness", "chamfer", "PSNR", "mask IoU")


def _cells(side: Side) -> tuple[str, ...]:
    return (
        side.title,
        f"{side.seconds:.0f}",
        f"{side.scores.comparison.accuracy:.3f}",
        f"{side.scores.comparison.completeness:.3f}",
        f"{side.scores.comparison.overall:.3f}",
        f"{side.scores.psnr:.2f}",
        f"{side.scores.mask_iou:.4f}",
    )


def caption(demo: Demo) -> str:
    """What the numbers are."""
    rates = " and ".join(f"{rate:g} ({TITLES[norm]})" for norm, rate in LEARNING_RATES.items())
    return (
        f"{demo.steps} steps of the tiny preset, seed 0, at learning rates {rates}, on {demo.views} pictures of "
        f"{demo.resolution}x{demo.resolution}. Accuracy, completeness and chamfer distance in mm, by DTU's rules, from "
        f"the known surface of an object about 180 mm large; meshes on a grid of {demo.mesh_resolution}^3. PSNR in dB "
        "inside the masks, and mask IoU, of every eighth view, which was kept from training. Seconds are processor "
        "seconds inside training steps."
    )


def run() -> None:
    """The command."""
    run_command(Demo, main, "python -m examples.demo_neus")


if __name__ == "__main__":
    run()
