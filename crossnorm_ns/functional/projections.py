"""Linear measurements of pictures and volumes: parallel-beam projections, Fourier samples, masked Fourier transforms.

All are differentiable, and each has an oracle: `skimage.transform.radon`, `torch.fft`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.nn.functional import grid_sample

Detector = Literal["diagonal", "width"]


def beam_grid(
    angles: Float[Tensor, " angles"], height: int, width: int, detector: Detector = "diagonal"
) -> Float[Tensor, "angles steps bins 2"]:
    """Where the beams of a parallel-beam scan sample a picture, for `project` and `back_project`.

    The picture turns about the pixel (width // 2, height // 2), as in `skimage.transform.radon(circle=False)`.

    Args:
        angles: of the scan, degrees; their type is the type of the grid.
        height: of the picture, pixels.
        width: of the picture, pixels.
        detector: "diagonal" has as many bins, and samples along each beam, as the diagonal of the enclosing square, so
            nothing is ever out of sight; "width" keeps the picture's frame while it turns, as WIRE does, and loses
            what leaves the frame.

    Returns:
        Coordinates (x, y) of each sample along each beam for `grid_sample` with align_corners=False.
    """
    diagonal = math.ceil(math.sqrt(2) * max(height, width))
    bins, steps = (width, height) if detector == "width" else (diagonal, diagonal)
    along = torch.arange(steps, device=angles.device, dtype=angles.dtype) - steps // 2
    across = torch.arange(bins, device=angles.device, dtype=angles.dtype) - bins // 2
    along, across = along[:, None], across[None, :]
    radians = torch.deg2rad(angles)[:, None, None]
    x = torch.cos(radians) * across + torch.sin(radians) * along + width // 2
    y = -torch.sin(radians) * across + torch.cos(radians) * along + height // 2
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)


def project(
    picture: Float[Tensor, "height width"], grid: Float[Tensor, "angles steps bins 2"]
) -> Float[Tensor, "angles bins"]:
    """Sums a picture along the beams of a parallel-beam scan (Radon transform): rotate and sum.

    Args:
        picture: density of each pixel, 0 outside.
        grid: from `beam_grid` with the picture's size.

    Returns:
        The sinogram; bilinear interpolation, unit of length is one pixel.
    """
    pictures = picture.expand(grid.shape[0], 1, *picture.shape)
    return grid_sample(pictures, grid, align_corners=False).sum(dim=2).squeeze(1)


def back_project(
    sinogram: Float[Tensor, "angles bins"], grid: Float[Tensor, "angles steps bins 2"], height: int, width: int
) -> Float[Tensor, "height width"]:
    """The adjoint of `project`: <project(x), y> = <x, back_project(y)>.

    Args:
        sinogram: a value for each beam.
        grid: from `beam_grid` with the same height and width.
        height: of the picture, pixels.
        width: of the picture, pixels.
    """
    with torch.enable_grad():
        picture = sinogram.new_zeros(height, width).requires_grad_()
        return torch.autograd.grad(project(picture, grid), picture, sinogram)[0]


def fourier_samples(
    volume: Float[Tensor, "*size"], frequencies: Float[Tensor, "samples dims"], chunk_size: int = 1024
) -> Complex[Tensor, " samples"]:
    """Fourier transform of a picture or volume at any frequencies: sum over n of volume[n] exp(-2 pi i k.n / size).

    The axes are contracted one after another, last first, for a chunk of samples at a time. The cost is that of a
    direct sum; for many whole-numbered frequencies take `masked_fft`.

    Args:
        volume: values on a regular grid with `dims` axes.
        frequencies: k, in periods over each axis; need not be whole numbers.
        chunk_size: samples computed at a time; bounds the memory.

    Raises:
        ValueError: the frequencies have another number of axes than the volume.
    """
    if frequencies.shape[-1] != volume.ndim:
        raise ValueError(f"frequencies with {frequencies.shape[-1]} axes cannot sample a volume with {volume.ndim}")
    return torch.cat([_samples(volume, chunk) for chunk in frequencies.split(chunk_size)])


def _samples(volume: Tensor, frequencies: Float[Tensor, "samples dims"]) -> Complex[Tensor, " samples"]:
    waves = []
    for size, frequency in zip(volume.shape, frequencies.unbind(-1), strict=True):
        positions = torch.arange(size, device=volume.device, dtype=frequency.dtype) / size
        phase = -2 * math.pi * positions[:, None] * frequency
        waves.append(torch.polar(torch.ones_like(phase), phase))
    result = torch.tensordot(volume.to(waves[-1].dtype), waves[-1], dims=1)
    for wave in reversed(waves[:-1]):
        result = (result * wave).sum(dim=-2)
    return result


def masked_fft(volume: Float[Tensor, "*size"], mask: Bool[Tensor, "*size"]) -> Complex[Tensor, " samples"]:
    """The entries of the orthonormal Fourier transform (`torch.fft.fftn`, zero frequency first) where `mask` is set."""
    return torch.fft.fftn(volume, norm="ortho")[mask]
