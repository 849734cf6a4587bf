"""The commands that store images as network weights: compress, decompress, rate-distortion."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from crossnorm_ns.limits import (
    NOT_EMPTY,
    Count,
    Device,
    InputFile,
    OutputFile,
    OutputFolder,
    Positive,
    Seed,
)
from crossnorm_ns.networks import MethodName
from crossnorm_ns.representation.presets import NetworkName, PresetName, parse_network
from crossnorm_ns.representation.quantization import Quantization

if TYPE_CHECKING:
    from crossnorm_ns.representation.rate_distortion import Gain, RatePoint

_QUICK_BATCH = 2**14
_EVALUATIONS = 10


@dataclass(kw_only=True)
class _FitOptions:
    """How the network of an image is trained."""

    preset: PresetName = "quick"
    """quick: 600 steps on 16,384 pixels each. paper: 100,000 steps on all pixels."""
    learning_rate: Positive | None = None
    """Of the first step. By default the preset's for this family of methods."""
    steps: Count | None = None
    """Of training. By default the preset's."""
    max_seconds: Positive | None = None
    """Stops each training after this many seconds."""
    seed: Seed = 0
    """Of the initial weights and of the pixels drawn."""
    device: Device | None = None
    """cpu, cuda, cuda:1, ... By default the GPU if there is one."""
    resume: bool = False
    """Goes on from where the same command was interrupted."""

    def points(
        self, image: Path, method: str, network: str, folder: Path
    ) -> dict[Quantization, tuple[RatePoint, bytes]]:
        """Trains a network on an image, and stores it in each quantisation that holds it.

        Args:
            image: any image file.
            method: see `make_network`.
            network: layers x width.
            folder: for the training's checkpoint.
        """
        from crossnorm_ns.representation.codec import ImageSpec
        from crossnorm_ns.representation.errors import RepresentationError
        from crossnorm_ns.representation.fit import fit
        from crossnorm_ns.representation.progress import progress_bar
        from crossnorm_ns.representation.rate_distortion import network_points
        from crossnorm_ns.representation.runs import RunSpec, choose_device
        from crossnorm_ns.representation.tasks import ImageTask

        if folder.exists() and not self.resume:
            raise RepresentationError(f"{folder} is there already: --resume goes on from it, or remove it")
        spec = RunSpec("image", image, method, self.preset, network, self.learning_rate, self.steps, self.seed)
        spec, hidden, device = spec.completed(), parse_network(network), choose_device(self.device)
        task = ImageTask.open(image)
        if self.preset == "quick" and task.num_points > _QUICK_BATCH:
            task.batch_size = _QUICK_BATCH
        task.to(device)
        options = spec.fit_options(task, max_seconds=self.max_seconds)
        options = replace(options, evaluate_every=max(options.evaluate_every, options.steps // _EVALUATIONS))
        settings, progress = spec.network_options(), progress_bar(f"{method} {network}")
        files = {"folder": folder, "resume": self.resume}
        run = fit(task, method, hidden, options, network_options=settings, progress=progress, **files)
        if not run.metrics:
            raise RepresentationError(
                f"training diverged ({run.trouble}): choose a smaller --learning-rate, and remove {folder}"
            )
        height, width = task.size
        stored_as = ImageSpec(method, hidden, height, width, settings)
        return network_points(run.network.cpu(), stored_as, task.signal.cpu().reshape(height, width, 3))


@dataclass(kw_only=True)
class CompressCommand(_FitOptions):
    """Stores an image as the weights of a network: trains it, quantises it, writes a .cninr file."""

    image: tyro.conf.Positional[InputFile]
    """Any image file that Pillow reads."""
    output: tyro.conf.Positional[OutputFile]
    """The .cninr file to write. Until it is there, a folder beside it (.training) holds the training's checkpoint."""
    method: MethodName = "pe+cn"
    """See the command image."""
    network: NetworkName = "10x28"
    """Hidden layers x width."""
    quantization: Quantization = "int8"
    """Of the weights. All are measured and shown; this one is written."""

    def run(self) -> None:
        """Trains, writes the file, prints size and quality."""
        from rich.console import Console

        from crossnorm_ns.files import atomic_file
        from crossnorm_ns.representation.errors import RepresentationError

        training = self.output.with_name(f"{self.output.name}.training")
        points = self.points(self.image, self.method, self.network, training)
        if self.quantization not in points:
            raise RepresentationError(
                f"{self.quantization} cannot hold the values of this network: use --quantization {', '.join(points)} "
                "and --resume"
            )
        chosen = points[self.quantization][1]
        with atomic_file(self.output) as file:
            file.write(chosen)
        shutil.rmtree(training)
        show_points([point for point, _ in points.values()], f"{self.method} {self.network} on {self.image.name}")
        Console().print(
            f"wrote {self.output} ({self.quantization}, {len(chosen):,} bytes)",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


@dataclass(kw_only=True)
class DecompressCommand:
    """Renders the image of a .cninr file."""

    file: tyro.conf.Positional[InputFile]
    """What compress has written."""
    output: tyro.conf.Positional[OutputFile]
    """The image file to write, in the format of its suffix."""
    allow_large: bool = False
    """Renders an image that takes as long as more than 68,719,476,736 multiplications, too: some 6 s on one core."""

    def run(self) -> None:
        """Reads the file, writes the image, prints what it was."""
        from PIL import Image
        from rich.console import Console

        from crossnorm_ns.files import atomic_file
        from crossnorm_ns.representation.codec import (
            MAX_WORK,
            CodecError,
            bits_per_pixel,
            decode,
            read_file,
            render_8_bits,
            render_work,
        )
        from crossnorm_ns.representation.errors import RepresentationError

        kind = Image.registered_extensions().get(self.output.suffix.lower())
        if kind is None or kind not in Image.SAVE:
            raise RepresentationError(f"{self.output}: Pillow writes no images with the suffix {self.output.suffix!r}")
        data = read_file(self.file)
        try:
            network, header = decode(data)
        except CodecError as error:
            raise CodecError(f"{self.file}: {error}") from error
        height, width = header["height"], header["width"]
        work = render_work(network, height, width)
        if work > MAX_WORK and not self.allow_large:
            raise RepresentationError(
                f"{self.file}: its {width}x{height} pixels take as long as {work:,} multiplications, more than "
                f"{MAX_WORK:,}: --allow-large renders them, if you trust the file"
            )
        with atomic_file(self.output) as file:
            Image.fromarray(render_8_bits(network, height, width)).save(file, format=kind)
        hidden = ", ".join(map(str, header["hidden"]))
        Console().print(
            f"{header['method']} with hidden layers {hidden} in {header['quantization']}, {len(data):,} bytes, "
            f"{bits_per_pixel(data, height, width):.3f} bits per pixel\n"
            f"wrote {self.output} ({width}x{height})",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


@dataclass(kw_only=True)
class RateDistortionCommand(_FitOptions):
    """Rate-distortion curves of an image: networks of several sizes as .cninr files, and JPEG."""

    image: Annotated[InputFile, tyro.conf.arg(aliases=["--input"])]
    """Any image file that Pillow reads."""
    methods: Annotated[tuple[MethodName, ...], NOT_EMPTY] = ("pe+cn",)
    """See the command image."""
    networks: Annotated[tuple[NetworkName, ...], NOT_EMPTY] = ("5x20", "5x30", "10x28", "10x40", "13x49")
    """Hidden layers x width of each network; by default the paper's."""
    output: OutputFolder = Path("outputs/representation/rate-distortion")
    """Folder of the results: points.json, curves.png, and the trainings."""

    def run(self) -> None:
        """Trains all networks, writes and prints the curves."""
        from rich.console import Console

        from crossnorm_ns.provenance import provenance
        from crossnorm_ns.representation.analysis_files import write_figure, write_json
        from crossnorm_ns.representation.inputs import read_image
        from crossnorm_ns.representation.rate_distortion import gains, jpeg_points, rate_distortion_figure

        found = jpeg_points(read_image(self.image))
        for method in self.methods:
            for network in self.networks:
                training = self.output / "trainings" / f"{method}-{network}"
                found += [point for point, _ in self.points(self.image, method, network, training).values()]
        compared = gains(found)
        content = {
            "image": str(self.image),
            "seed": self.seed,
            **provenance(),
            "points": [asdict(point) for point in found],
            "gains": [asdict(gain) for gain in compared],
        }
        write_json(content, self.output / "points.json")
        write_figure(rate_distortion_figure(found), self.output / "curves.png")
        show_points(found, f"rate and distortion of {self.image.name}")
        show_gains(compared)
        Console().print(f"wrote {self.output}", soft_wrap=True, highlight=False, markup=False)


def show_gains(gains: Sequence[Gain]) -> None:
    """Prints how far codecs are above each other at equal rates."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="PSNR at equal bits per pixel, interpolated over their logarithm")
    for head in ("codec", "over"):
        table.add_column(head)
    for head in ("least", "mean", "largest", "bits/pixel"):
        table.add_column(head, justify="right")
    for gain in gains:
        decibels = (f"{value:+.2f} dB" for value in (gain.least, gain.mean, gain.largest))
        table.add_row(gain.codec, gain.other, *decibels, f"{gain.lowest_rate:.3f} to {gain.highest_rate:.3f}")
    Console().print(table)


def show_points(points: Sequence[RatePoint], title: str) -> None:
    """Prints a table of files; losses are those against the same network in float32."""
    from rich.console import Console
    from rich.table import Table

    exact = {(p.codec.split()[0], p.setting): p.psnr for p in points if p.codec.endswith("float32")}
    table = Table(title=title)
    for head in ("codec", "setting", "bytes", "bits/pixel", "PSNR", "loss", "SSIM"):
        table.add_column(head, justify="left" if head in ("codec", "setting") else "right")
    for p in points:
        reference = exact.get((p.codec.split()[0], p.setting))
        loss = "" if reference is None else f"{round(reference - p.psnr, 2) + 0.0:.2f} dB"
        row = (p.codec, p.setting, f"{p.bytes:,}", f"{p.bits_per_pixel:.3f}", f"{p.psnr:.2f} dB", loss, f"{p.ssim:.4f}")
        table.add_row(*row)
    Console().print(table)
