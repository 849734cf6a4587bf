"""Magnetic resonance imaging (paper, section 5.4): a volume from samples of its Fourier transform."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crossnorm_ns.files import atomic_file
from crossnorm_ns.functional.metrics import psnr, ssim
from crossnorm_ns.functional.projections import masked_fft
from crossnorm_ns.representation.coordinates import grid_coordinates
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.inputs import read_volume
from crossnorm_ns.representation.pictures import Panel
from crossnorm_ns.representation.tasks.base import Batch, Task, check_sides

DRAWS_AT_96 = 200_000
"""Frequencies that Fourier Features draws for a volume of 96^3."""


def frequency_mask(size: tuple[int, ...], num_draws: int, seed: int = 0) -> Bool[np.ndarray, "x y z"]:
    """Which entries of the Fourier transform are measured: Gaussian draws around the zero frequency.

    The standard deviation along an axis of n entries is sqrt(192) n / 96: that of the source for its 96, and in
    proportion to n for others, so that draws in proportion to the volume cover each part of the spectrum as densely
    as there. Draws that leave the grid are left out, and equal ones count once. Source: Tancik et al., "Fourier
    Features" (NeurIPS 2020), notebook of the MRI task.

    Args:
        size: of the volume.
        num_draws: frequencies drawn.
        seed: of the draws.

    Returns:
        The mask, zero frequency first.
    """
    scale = np.sqrt(2 * 96) * np.asarray(size) / 96
    draws = np.rint(np.random.default_rng(seed).normal(size=(num_draws, len(size))) * scale).astype(np.int64)
    low = -(np.asarray(size) // 2)
    draws = draws[((draws >= low) & (draws < low + size)).all(axis=1)]
    mask = np.zeros(size, dtype=np.bool_)
    mask[tuple(draws.T)] = True  # negative frequencies count from the end, as in an FFT
    return mask


class MRITask(Task):
    """Fits samples of a volume's Fourier transform, by their mean squared distance; intensities are sigmoids.

    PSNR and SSIM (of slices along the last axis, averaged) compare the volume, which training does not see. A step
    holds the activations of all voxels: with 96^3 and layers of 256 several GB.

    Args:
        volume: intensities in [0, 1].
        num_draws: frequencies drawn, see `frequency_mask`; None draws as many for each voxel as Fourier Features,
            200,000 for 96^3, which covers the centre of the spectrum alike at every size.
        seed: of the draws.

    Raises:
        RepresentationError: the volume is smaller than SSIM's window, or there are no draws.
    """

    name: ClassVar[str] = "mri"
    metric: ClassVar[str] = "psnr"
    in_dim: ClassVar[int] = 3
    out_dim: ClassVar[int] = 1

    def __init__(self, volume: Float[Tensor, "x y z"], num_draws: int | None = None, seed: int = 0) -> None:
        check_sides(tuple(volume.shape), "the volume")
        self.size = tuple(volume.shape)
        if num_draws is None:
            num_draws = round(DRAWS_AT_96 * self.num_points / 96**3)
        if num_draws < 1:
            raise RepresentationError(f"a measurement of {num_draws} frequencies is none: give at least 1")
        self.signal = volume
        self.points = grid_coordinates(*self.size)
        self.mask = torch.from_numpy(frequency_mask(self.size, num_draws, seed))
        self.samples = masked_fft(volume, self.mask)

    @classmethod
    def open(cls, path: Path, size: int | None = None, num_draws: int | None = None, seed: int = 0) -> MRITask:
        """Reads a volume; see `read_volume`."""
        return cls(read_volume(path, size), num_draws, seed)

    def coordinates(self, start: int = 0, end: int | None = None) -> Float[Tensor, "points 3"]:
        return self.points[start:end]

    def batch(self, generator: torch.Generator) -> Batch:
        return Batch(self.points, self.samples)

    def loss(self, outputs: Float[Tensor, "points 1"], target: Tensor) -> Float[Tensor, ""]:
        difference = torch.view_as_real(masked_fft(self._volume(outputs), self.mask) - target)
        return difference.square().sum(-1).mean()

    def metrics(self, outputs: Float[Tensor, "points 1"]) -> dict[str, float]:
        found = self._volume(outputs)
        return {
            "loss": float(self.loss(outputs, self.samples)),
            "psnr": float(psnr(found, self.signal)),
            "ssim": float(ssim(found, self.signal)),
        }

    def views(self, outputs: Float[Tensor, "points 1"]) -> list[Panel]:
        found, truth = self._volume(outputs).cpu().numpy(), self.signal.cpu().numpy()
        panels = []
        for axis in range(3):
            views = (np.take(volume, self.size[axis] // 2, axis).T[::-1] for volume in (found, truth))
            panels.append(Panel(f"across {'xyz'[axis]}", *views))
        return panels

    def save(self, outputs: Float[Tensor, "points 1"], folder: Path) -> Path:
        path = folder / "reconstruction.npz"
        with atomic_file(path) as file:
            np.savez_compressed(file, volume=self._volume(outputs).cpu().numpy())
        return path

    def _volume(self, outputs: Float[Tensor, "points 1"]) -> Float[Tensor, "x y z"]:
        return torch.sigmoid(outputs).reshape(self.size)
