"""PE+CN on an image beside the released code's layer in eager PyTorch: the same training, and what a step costs.

    python -m benchmarks.released_image lena.png

The released configuration (github.com/Aiolus-X/Norm-INR): ten hidden layers of 28, Adam at a constant 1e-2, all pixels
in each step. The networks start from equal weights and take their steps in turn, so that all see the same machine. A
third training is the control: the released layer again, its pixels in reversed order, which changes rounding alone.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn

from benchmarks.norms import released_cross_norm
from benchmarks.tables import conditions, store, table
from crossnorm_ns.functional.metrics import psnr
from crossnorm_ns.memory import keep_freed_memory
from crossnorm_ns.networks import make_network
from crossnorm_ns.norms import CrossNorm
from crossnorm_ns.provenance import provenance
from crossnorm_ns.representation.tasks import ImageTask


@dataclass
class Options:
    """Trains PE+CN with this package's norms and with the released layer, from equal weights."""

    image: Annotated[Path, tyro.conf.Positional]
    """Any image file."""
    steps: int = 200
    """Of each training."""
    learning_rate: float = 1e-2
    """Constant, of Adam."""
    side: int | None = None
    """Takes the middle square at this size; by default the image as it is."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of networks and image."""
    docs: Path = Path("docs")
    """Where results/released-image-DTYPE.json and .md go."""
    threads: int = os.cpu_count() or 1
    """Of torch and of the kernels."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of networks and image."""


class ReleasedCrossNorm(nn.Module):
    """The released layer: batch statistics always, each operation a pass over memory."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (rows, channels) -> (rows, channels)."""
        return released_cross_norm(x, self.weight, self.bias)


def with_released_norms(network: nn.Module) -> nn.Module:
    """The same network, its cross norms replaced in place by fresh released layers."""
    for name, module in list(network.named_modules()):
        if isinstance(module, CrossNorm):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, ReleasedCrossNorm(module.num_channels))
    return network


def compare(options: Options) -> tuple[list[list[float]], list[list[float]]]:
    """Of this package, the released layer and the control: PSNR of each training step's outputs, and its seconds."""
    dtype = getattr(torch, options.dtype)
    task = ImageTask.open(options.image, options.side).to(torch.device(options.device))
    points, pixels = task.points.to(dtype), task.signal.to(dtype)
    released, reversed_ = with_released_norms, (points.flip(0), pixels.flip(0))
    trainings = []
    for change, data in ((nn.Identity(), (points, pixels)), (released, (points, pixels)), (released, reversed_)):
        torch.manual_seed(0)
        network = change(make_network("pe+cn", in_dim=2, out_dim=3, hidden=(28,) * 10))
        trainings.append(_training(network.to(task.device, dtype).train(), *data, options.learning_rate))
    levels, seconds = [], []
    for step in range(options.steps):
        order = (0, 1, 2) if step % 2 else (1, 0, 2)
        taken = {i: _timed(trainings[i]) for i in order}
        levels.append([taken[i][0] for i in range(3)])
        seconds.append([taken[i][1] for i in range(3)])
    return levels, seconds


def _training(network: nn.Module, points: Tensor, pixels: Tensor, learning_rate: float) -> Callable[[], float]:
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def step() -> float:
        optimizer.zero_grad()
        outputs = network(points)
        (outputs - pixels).square().mean().backward()
        optimizer.step()
        return float(psnr(outputs.detach(), pixels))

    return step


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    level = step()
    return level, time.perf_counter() - start


def main(options: Options) -> None:
    """Trains, stores and prints."""
    torch.set_num_threads(options.threads)
    levels, seconds = compare(options)
    ratio = statistics.median(ours / theirs for ours, theirs, _ in seconds)
    times = [statistics.median(side) for side in zip(*seconds, strict=True)]
    marks = sorted({1, 2, 5, 10, 20, 50, 100, options.steps} & set(range(1, options.steps + 1)))
    rows = []
    for mark in marks:
        differences = [max(abs(one[side] - one[1]) for one in levels[:mark]) for side in (0, 2)]
        rows.append([str(mark), *(f"{level:.4f}" for level in levels[mark - 1]), *(f"{d:.1e}" for d in differences)])
    machine = conditions(options.device).removesuffix(", float32")
    heads = ["step", "PSNR, this package", "released layer", "control", "largest difference so far", "control's"]
    text = (
        f"{options.image.name}, 10x28, learning rate {options.learning_rate:g}, {options.dtype}, seed 0; "
        f"{machine}.\n\n{table(heads, rows)}\n\nA training step takes {times[0]:.3f} s with this package and "
        f"{times[1]:.3f} s with the released layer; ratio {ratio:.3f} (median of pairs)."
    )
    stem = f"released-image-{options.dtype}"
    store(options.docs, stem, text)
    stored = {"conditions": machine, "seed": 0, **provenance(), "psnr": levels, "seconds": seconds, "ratio": ratio}
    (options.docs / "results" / f"{stem}.json").write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Options))
