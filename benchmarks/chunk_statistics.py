"""One network, rendered with stored statistics and with those of each chunk: what evaluation in eval mode is for.

`python -m benchmarks.chunk_statistics` fits PE+CN to scikit-image's astronaut at 128x128, writes
docs/images/chunk-statistics.png and docs/results/chunk-statistics.json, and takes a minute of one core.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import skimage
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.tables import conditions
from crossnorm_ns.provenance import provenance
from crossnorm_ns.representation.evaluation import outputs_with
from crossnorm_ns.representation.fit import fit
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.progress import progress_bar
from crossnorm_ns.representation.tasks import ImageTask

DOWNSCALE = 4
HIDDEN = (28,) * 10


@dataclass
class Options:
    """Renders one network with stored statistics and with those of chunks."""

    steps: int = 1500
    """Of Adam, all pixels in each."""
    learning_rate: float = 1e-2
    """Of the first step; falls to a hundredth along a cosine."""
    chunk_sizes: tuple[int, ...] = (4096, 1024)
    """Pixels of a chunk; neighbouring rows of the picture."""
    seed: int = 0
    """Of the initial weights."""
    docs: Path = Path("docs")
    """Where images/chunk-statistics.png and results/chunk-statistics.json go."""


def astronaut() -> torch.Tensor:
    """(128, 128, 3), RGB in [0, 1]."""
    pixels = skimage.transform.downscale_local_mean(skimage.data.astronaut(), (DOWNSCALE, DOWNSCALE, 1))
    return torch.from_numpy(pixels / 255).float()


def main(options: Options) -> None:
    """Fits the network, renders it, prints its quality and writes figure and numbers."""
    torch.set_num_threads(1)
    task = ImageTask(astronaut())
    schedule = FitOptions(
        steps=options.steps,
        learning_rate=options.learning_rate,
        schedule="cosine",
        final_factor=0.01,
        seed=options.seed,
    )
    run = fit(task, "pe+cn", HIDDEN, schedule, progress=progress_bar("image pe+cn"))
    renders = {"stored statistics": outputs_with(run.network, task, "stored")}
    for size in options.chunk_sizes:
        renders[f"statistics of chunks of {size}"] = outputs_with(run.network, task, "chunks", size)
    quality = {name: task.metrics(outputs) for name, outputs in renders.items()}
    for name, metrics in quality.items():
        Console().print(f"{name}: {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.4f}", highlight=False)

    pictures = {"truth": task.signal, **renders}
    figure = Figure(figsize=(3 * len(pictures), 3.5), dpi=100, layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(values.reshape(*task.size, 3).clamp(0, 1).numpy(), interpolation="nearest")
        axes.set_title(name if name == "truth" else f"{name}\n{quality[name]['psnr']:.2f} dB", fontsize=10)
        axes.set(xticks=[], yticks=[])
    figure.savefig(options.docs / "images" / "chunk-statistics.png", bbox_inches="tight", pad_inches=0.1)
    asked = {name: value for name, value in asdict(options).items() if name != "docs"}
    content = {"conditions": conditions(), "size": task.size, "hidden": HIDDEN, **asked, **provenance()}
    content["quality"] = quality
    (options.docs / "results" / "chunk-statistics.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
