"""How the field evaluates images of the Blender scenes: three protocols whose numbers differ, so each has a name.

Images are float32 colours on white, (height, width, 3), nominally in [0, 1]. Imports stay light: `--help` reads this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Image = Float[np.ndarray, "height width 3"]
ProtocolName = Literal["mipnerf", "nerfstudio", "nerfbaselines"]


class Scores(NamedTuple):
    """Quality of one image."""

    psnr: float
    """Decibels; infinite where render and truth are equal."""
    ssim: float


@dataclass(frozen=True)
class Protocol:
    """One way to prepare a render and its true image and to compare them."""

    name: ProtocolName
    description: str
    """What was done, for people who read the numbers: written beside every result."""
    prepare: Callable[[Image], Image]
    """Applied to render and truth alike before both metrics."""
    ssim: Callable[[Image, Image], float]
    """SSIM of prepared render and truth."""

    def score(self, render: Image, truth: Image) -> Scores:
        """Compares a render with its true image.

        Raises:
            ValueError: the sizes differ, or the image is smaller than SSIM's window of 11x11 pixels.
        """
        render, truth = self.prepare(render), self.prepare(truth)
        return Scores(psnr=_psnr(render, truth), ssim=self.ssim(render, truth))


def _as_is(image: Image) -> Image:
    return image


def _clip(image: Image) -> Image:
    return image.clip(0, 1)


def _truncate_to_8_bits(image: Image) -> Image:
    """To 0..255 without rounding, as nerfbaselines' `convert_image_dtype`; float32 so that v / 255 * 255 is v again."""
    return (image.astype(np.float32) * np.float32(255)).clip(0, 255).astype(np.uint8) / np.float32(255)


def _psnr(render: Image, truth: Image) -> float:
    import torch

    from crossnorm_ns.functional.metrics import psnr

    return psnr(torch.from_numpy(render), torch.from_numpy(truth)).item()


def _ssim(render: Image, truth: Image) -> float:
    import torch

    from crossnorm_ns.functional.metrics import ssim

    return ssim(torch.from_numpy(render), torch.from_numpy(truth)).item()


def _ssim_of_nerfstudio(render: Image, truth: Image) -> float:
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    def batch(image: Image) -> torch.Tensor:
        return torch.from_numpy(image).movedim(-1, 0)[None]

    value = structural_similarity_index_measure(batch(truth), batch(render))
    assert isinstance(value, torch.Tensor)
    return value.item()


PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="mipnerf",
            description=(
                "google/mipnerf eval.py: float images on white, not clipped; PSNR and SSIM per image, then the mean; "
                "SSIM with an 11-tap Gaussian (sigma 1.5), borders not counted, data range 1."
            ),
            prepare=_as_is,
            ssim=_ssim,
        ),
        Protocol(
            name="nerfstudio",
            description=(
                "nerfstudio's models: float images on white, renders clipped to [0, 1]; PSNR with data range 1; SSIM "
                "from torchmetrics with its defaults: borders mirrored and counted (torchmetrics 1.4.2 and later), "
                "data range measured on each image pair."
            ),
            prepare=_clip,
            ssim=_ssim_of_nerfstudio,
        ),
        Protocol(
            name="nerfbaselines",
            description=(
                "nerfbaselines' protocol 'nerf': render and truth on white, both cut down to 8 bits (truncated, not "
                "rounded), then PSNR and mip-NeRF's SSIM. Its published numbers are for 800x800."
            ),
            prepare=_truncate_to_8_bits,
            ssim=_ssim,
        ),
    )
}
