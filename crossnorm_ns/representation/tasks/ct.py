"""Computed tomography (paper, section 5.3): a slice from its projections."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crossnorm_ns.functional.metrics import psnr, ssim
from crossnorm_ns.functional.projections import Detector, beam_grid, project
from crossnorm_ns.limits import MOST_BYTES
from crossnorm_ns.representation.coordinates import grid_coordinates
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.inputs import read_gray_image
from crossnorm_ns.representation.pictures import Panel, write_picture
from crossnorm_ns.representation.tasks.base import Batch, Task, check_sides


class CTTask(Task):
    """Fits the parallel-beam projections of a slice, by their mean squared error.

    The angles are spread over [0, 180] degrees, both ends included, as in WIRE. PSNR is that of the outputs as they
    are, SSIM that of the outputs clipped to [0, 1]; both compare the slice, which training does not see.

    Args:
        density: the slice, in [0, 1].
        num_angles: of the scan.
        detector: see `beam_grid`.

    Raises:
        RepresentationError: the slice is smaller than SSIM's window, or there is no angle, or too many.
    """

    name: ClassVar[str] = "ct"
    metric: ClassVar[str] = "psnr"
    in_dim: ClassVar[int] = 2
    out_dim: ClassVar[int] = 1

    def __init__(
        self, density: Float[Tensor, "height width"], num_angles: int = 100, detector: Detector = "width"
    ) -> None:
        height, width = density.shape
        check_sides((height, width), "the slice")
        if num_angles < 1:
            raise RepresentationError(f"a scan with {num_angles} angles measures nothing: give at least 1")
        if (size := 8 * num_angles * height * width) > MOST_BYTES:
            raise RepresentationError(
                f"num_angles is {num_angles}, but on {width}x{height} pixels their beams take {size:,} bytes, "
                f"above the limit of {MOST_BYTES:,}"
            )
        self.size = (height, width)
        self.signal = density
        self.points = grid_coordinates(height, width)
        self.beams = beam_grid(torch.linspace(0, 180, num_angles), height, width, detector)
        self.sinogram = project(density, self.beams)

    @classmethod
    def open(cls, path: Path, downscale: int = 1, num_angles: int = 100, detector: Detector = "width") -> CTTask:
        """Reads a slice from an image file; see `read_gray_image`."""
        return cls(read_gray_image(path, downscale), num_angles, detector)

    def coordinates(self, start: int = 0, end: int | None = None) -> Float[Tensor, "points 2"]:
        return self.points[start:end]

    def batch(self, generator: torch.Generator) -> Batch:
        return Batch(self.points, self.sinogram)

    def loss(self, outputs: Float[Tensor, "points 1"], target: Tensor) -> Float[Tensor, ""]:
        return (project(outputs.reshape(self.size), self.beams) - target).square().mean()

    def metrics(self, outputs: Float[Tensor, "points 1"]) -> dict[str, float]:
        found = outputs.reshape(self.size)
        return {
            "loss": float(self.loss(outputs, self.sinogram)),
            "psnr": float(psnr(found, self.signal)),
            "ssim": float(ssim(found.clamp(0, 1)[..., None], self.signal[..., None])),
        }

    def views(self, outputs: Float[Tensor, "points 1"]) -> list[Panel]:
        return [Panel("", outputs.reshape(self.size).cpu().numpy(), self.signal.cpu().numpy())]

    def save(self, outputs: Float[Tensor, "points 1"], folder: Path) -> Path:
        path = folder / "reconstruction.png"
        pixels = (outputs.reshape(self.size).clamp(0, 1) * 65535).round().cpu().numpy().astype(np.uint16)
        write_picture(pixels, path)
        return path
