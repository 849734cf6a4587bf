"""The commands that fit one network: image, shape, ct, mri."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from crossnorm_ns.limits import (
    NOT_EMPTY,
    Batch,
    Count,
    Device,
    GridSide,
    InputFile,
    OutputFolder,
    PictureSide,
    Positive,
    Seed,
    between,
)
from crossnorm_ns.networks import MethodName
from crossnorm_ns.representation.presets import NetworkName, PresetName, TaskName

_Input = Annotated[InputFile, tyro.conf.arg(aliases=["--input"])]


@dataclass(kw_only=True)
class TaskCommand(ABC):
    """Options of all tasks."""

    task: ClassVar[TaskName]

    method: MethodName = "pe+cn"
    """relu or pe (positional encoding), alone or with +bn, +ln, +gn, +cn (released form), +cn-paper; siren, mfn,
    mfn-fourier, wire, finer, gaussian."""
    preset: PresetName = "quick"
    """quick: minutes on two CPU cores. paper: the paper's configuration."""
    network: NetworkName | None = None
    """Hidden layers x width, such as 10x28. By default the preset's."""
    learning_rate: Positive | None = None
    """Of the first step. By default the preset's for this family of methods."""
    steps: Count | None = None
    """Of training. By default the preset's."""
    max_seconds: Positive | None = None
    """Stops after this many seconds of training, with all results written."""
    seed: Seed = 0
    """Of the initial weights and of the points drawn."""
    output: OutputFolder | None = None
    """Folder of the results. By default outputs/representation/TASK/INPUT/METHOD."""
    resume: bool = False
    """Goes on from the checkpoint in the output folder."""
    device: Device | None = None
    """cpu, cuda, cuda:1, ... By default the GPU if there is one."""
    tensorboard: bool = False
    """Writes the history as TensorBoard events too."""
    statistics: Annotated[tuple[Literal["stored", "batch", "chunks"], ...], NOT_EMPTY] = ("stored",)
    """Statistics that the norms use in the final evaluation, one row each: stored (population statistics of the
    training batches), batch (of all points at once), chunks (of each chunk of points by itself)."""
    chunk_size: Annotated[int, between(2, 2**28)] = 4096
    """Points of a chunk, for --statistics chunks."""

    @abstractmethod
    def path(self) -> Path:
        """The file of the signal."""

    @abstractmethod
    def changes(self) -> dict[str, Any]:
        """Options of the task's `open` that were given."""

    def run(self) -> None:
        """Fits, writes the results and prints them; a training that has diverged ends with status 1."""
        from crossnorm_ns.representation.progress import progress_bar
        from crossnorm_ns.representation.runs import RunControl, RunSpec, execute

        spec = RunSpec(
            task=self.task,
            input=self.path(),
            method=self.method,
            preset=self.preset,
            network=self.network,
            learning_rate=self.learning_rate,
            steps=self.steps,
            seed=self.seed,
            changes={name: value for name, value in self.changes().items() if value is not None},
        )
        folder = self.output or Path("outputs/representation") / self.task / self.path().stem / self.method
        control = RunControl(
            self.device, self.max_seconds, self.resume, self.tensorboard, self.statistics, self.chunk_size
        )
        result = execute(spec, folder, control, progress_bar(f"{self.task} {self.method}"))
        _show(result, folder)
        if result["trouble"] is not None:
            print(f"error: {result['trouble']}. Is the learning rate too high?", file=sys.stderr)
            raise SystemExit(1)


def _show(result: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    spec, console = result["spec"], Console()
    table = Table(title=f"{spec['method']} {spec['network']} on {Path(spec['input']).name}, {spec['preset']} preset")
    names = [name for name in next(iter(result["statistics"].values())) if name != "loss"]
    for head in ("statistics", *(name.upper() if name != "iou" else "IoU" for name in names), "loss"):
        table.add_column(head, justify="left" if head == "statistics" else "right")
    for mode, metrics in result["statistics"].items():
        values = [f"{metrics[name]:.2f} dB" if name == "psnr" else f"{metrics[name]:.4f}" for name in names]
        table.add_row(mode, *values, f"{metrics['loss']:.3e}")
    console.print(table)
    sizes = f"{int(result['parameters']):,} parameters"
    if "bits_per_pixel" in result:
        sizes += f", {result['bits_per_pixel']:.3f} bits per pixel (32 a number, statistics included)"
    console.print(sizes, highlight=False)
    ending = {"steps": "", "time": ", stopped by --max-seconds", "diverged": ", diverged"}
    console.print(
        f"{result['steps']} steps at {result['options']['learning_rate']:g} in {result['seconds']:.1f} s of training"
        f"{ending[result['ending']]}; best at step {result['best_step']}",
        highlight=False,
    )
    if (highest := result["highest"]) is not None:
        name, digits = ("PSNR", 2) if "psnr" in highest else ("IoU", 4)
        console.print(
            f"highest {name} of all evaluations, chosen by the truth: {highest[name.lower()]:.{digits}f} at step "
            f"{highest['step']}",
            highlight=False,
        )
    console.print(f"wrote {folder}", soft_wrap=True, highlight=False, markup=False)


@dataclass(kw_only=True)
class ImageCommand(TaskCommand):
    """Fits an image: PSNR, SSIM, bits per pixel."""

    task: ClassVar[TaskName] = "image"

    image: _Input
    """Any image file that Pillow reads."""
    side: PictureSide | None = None
    """Takes the square in the middle and shrinks it to this many pixels a side. By default the preset's: 128, or the
    image as it is."""
    batch_size: Batch | None = None
    """Pixels drawn for each step. By default all."""

    def path(self) -> Path:
        return self.image

    def changes(self) -> dict[str, Any]:
        return {"side": self.side, "batch_size": self.batch_size}


@dataclass(kw_only=True)
class ShapeCommand(TaskCommand):
    """Fits the occupancy of a shape: IoU, mesh by marching cubes at 0.5."""

    task: ClassVar[TaskName] = "shape"

    shape: _Input
    """A closed mesh (.ply, .obj, .stl, .off, .glb), or a voxel grid (.npz, .npy)."""
    resolution: GridSide | None = None
    """Voxels along each axis. By default the preset's: 64, or a grid's own and 512 for a mesh."""
    batch_size: Batch | None = None
    """Voxels drawn for each step. By default the preset's: 10,000, or 100,000."""

    def path(self) -> Path:
        return self.shape

    def changes(self) -> dict[str, Any]:
        return {"resolution": self.resolution, "batch_size": self.batch_size}


@dataclass(kw_only=True)
class CTCommand(TaskCommand):
    """Reconstructs a slice from parallel-beam projections: PSNR, SSIM."""

    task: ClassVar[TaskName] = "ct"

    image: _Input
    """Image file of the slice, 8 or 16 bits."""
    downscale: PictureSide | None = None
    """How many times smaller the slice becomes. By default the preset's: 2, or 1."""
    num_angles: Annotated[int, between(1, 10**6)] | None = None
    """Of the scan, over [0, 180] degrees. By default the preset's: 100."""
    detector: Literal["width", "diagonal"] | None = None
    """width: as wide as the slice, which loses what leaves the frame while it turns (WIRE). diagonal: sees all.
    By default width."""

    def path(self) -> Path:
        return self.image

    def changes(self) -> dict[str, Any]:
        return {"downscale": self.downscale, "num_angles": self.num_angles, "detector": self.detector}


@dataclass(kw_only=True)
class MRICommand(TaskCommand):
    """Reconstructs a volume from samples of its Fourier transform: PSNR, SSIM."""

    task: ClassVar[TaskName] = "mri"

    volume: _Input
    """A volume (.npy, or .npz with one array or one called volume)."""
    size: GridSide | None = None
    """Voxels along each axis to shrink it to. By default the preset's: 48, or the volume's own."""
    num_draws: Batch | None = None
    """Frequencies drawn for the measurement. By default 200,000 for 96^3 and in proportion."""

    def path(self) -> Path:
        return self.volume

    def changes(self) -> dict[str, Any]:
        return {"size": self.size, "num_draws": self.num_draws}
