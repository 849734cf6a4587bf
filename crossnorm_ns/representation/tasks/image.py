"""Image representation (paper, section 5.1): from the place of a pixel to its colour."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.functional.metrics import psnr, ssim
from crossnorm_ns.networks import num_stored_values
from crossnorm_ns.representation.coordinates import pixel_coordinates
from crossnorm_ns.representation.inputs import read_image
from crossnorm_ns.representation.pictures import Panel, to_8_bits, write_picture
from crossnorm_ns.representation.tasks.base import Batch, Task, check_batch_size, check_sides


class ImageTask(Task):
    """Fits the colours of an image, by their mean squared error.

    PSNR is that of the outputs as they are, neither clipped nor rounded, as in Norm-INR; SSIM that of the outputs
    clipped to [0, 1].

    Args:
        pixels: RGB in [0, 1].
        batch_size: pixels drawn for each step (with replacement); None takes all, as the paper does.

    Raises:
        RepresentationError: the image is smaller than SSIM's window.
    """

    name: ClassVar[str] = "image"
    metric: ClassVar[str] = "psnr"
    in_dim: ClassVar[int] = 2
    out_dim: ClassVar[int] = 3

    def __init__(self, pixels: Float[Tensor, "height width 3"], batch_size: int | None = None) -> None:
        height, width, _ = pixels.shape
        check_sides((height, width), "the image")
        check_batch_size(batch_size)
        self.size, self.batch_size = (height, width), batch_size
        self.points = pixel_coordinates(height, width)
        self.signal = pixels.reshape(-1, 3)

    @classmethod
    def open(cls, path: Path, side: int | None = None, batch_size: int | None = None) -> ImageTask:
        """Reads an image file; see `read_image`."""
        return cls(read_image(path, side), batch_size)

    def coordinates(self, start: int = 0, end: int | None = None) -> Float[Tensor, "points 2"]:
        return self.points[start:end]

    def batch(self, generator: torch.Generator) -> Batch:
        if self.batch_size is None:
            return Batch(self.points, self.signal)
        index = torch.randint(self.num_points, (self.batch_size,), generator=generator).to(self.device)
        return Batch(self.points[index], self.signal[index])

    def loss(self, outputs: Float[Tensor, "points 3"], target: Tensor) -> Float[Tensor, ""]:
        return (outputs - target).square().mean()

    def metrics(self, outputs: Float[Tensor, "points 3"]) -> dict[str, float]:
        return {
            "loss": float(self.loss(outputs, self.signal)),
            "psnr": float(psnr(outputs, self.signal)),
            "ssim": float(ssim(self._image(outputs).clamp(0, 1), self._image(self.signal))),
        }

    def views(self, outputs: Float[Tensor, "points 3"]) -> list[Panel]:
        return [Panel("", self._image(outputs).cpu().numpy(), self._image(self.signal).cpu().numpy())]

    def save(self, outputs: Float[Tensor, "points 3"], folder: Path) -> Path:
        path = folder / "reconstruction.png"
        write_picture(to_8_bits(self._image(outputs).cpu().numpy()), path)
        return path

    def costs(self, network: nn.Module) -> dict[str, float]:
        """Number of parameters, and the bits of all that evaluation needs, at 32 bits a number, over the pixels.

        The released code counts parameters alone: no statistics of GN and CN.
        """
        return {**super().costs(network), "bits_per_pixel": 32 * num_stored_values(network) / self.num_points}

    def _image(self, values: Float[Tensor, "points 3"]) -> Float[Tensor, "height width 3"]:
        return values.reshape(*self.size, 3)
