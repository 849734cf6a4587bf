"""Projections and Fourier samples against scikit-image, torch.fft, dense matrices and the definition of the adjoint."""

import numpy as np
import pytest
import torch
from skimage.transform import radon, rotate

from crossnorm_ns.functional.projections import back_project, beam_grid, fourier_samples, masked_fft, project

ANGLES = torch.tensor([0.0, 17.3, 45.0, 90.0, 121.9, 180.0], dtype=torch.float64)
SIZES = [(12, 12), (13, 13), (15, 10), (9, 16)]


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(24, 24), (25, 25)])
def test_projection_agrees_with_skimage(size):
    picture = noise(*size)
    expected = radon(picture.numpy(), ANGLES.numpy(), circle=False)
    sinogram = project(picture, beam_grid(ANGLES, *size))
    assert sinogram.shape == (len(ANGLES), len(expected))
    np.testing.assert_allclose(sinogram.T.numpy(), expected, atol=1e-8)


def test_projection_of_an_oblong_picture_agrees_with_skimage_on_the_square_around_it():
    picture = noise(14, 20)
    square = torch.zeros(20, 20, dtype=torch.float64)
    square[3:17] = picture
    expected = radon(square.numpy(), ANGLES.numpy(), circle=False)
    np.testing.assert_allclose(project(picture, beam_grid(ANGLES, 14, 20)).T.numpy(), expected, atol=1e-8)


def test_nothing_leaves_the_diagonal_detector():
    picture = noise(15, 10).abs()
    mass = project(picture, beam_grid(ANGLES[[0, 3, 5]], 15, 10)).sum(-1)
    torch.testing.assert_close(mass, picture.sum().expand(3))


def test_the_width_detector_sees_the_frame_of_the_picture():
    picture = noise(15, 10)
    grid = beam_grid(ANGLES, 15, 10, "width")
    sinogram = project(picture, grid)
    assert sinogram.shape == (len(ANGLES), 10)
    torch.testing.assert_close(sinogram[0], picture.sum(0))


@pytest.mark.parametrize("detector", ["diagonal", "width"])
@pytest.mark.parametrize("size", SIZES)
def test_back_projection_is_the_adjoint(size, detector):
    grid = beam_grid(ANGLES, *size, detector)
    x, y = noise(*size), noise(grid.shape[0], grid.shape[2], seed=1)
    left, right = (project(x, grid) * y).sum(), (x * back_project(y, grid, *size)).sum()
    assert abs(left - right) <= 1e-6 * abs(left)


@pytest.mark.parametrize("size", [(16, 16), (15, 10), (9, 16)])
def test_the_width_detector_sums_the_picture_that_skimage_turns(size):
    picture, (height, width) = noise(*size), size
    center = (width // 2, height // 2)
    turned = [rotate(picture.numpy(), -float(angle), center=center, order=1) for angle in ANGLES]
    sinogram = project(picture, beam_grid(ANGLES, *size, "width"))
    np.testing.assert_allclose(sinogram.numpy(), [some.sum(axis=0) for some in turned], atol=1e-8)


def matrix_of_projection(height, width, bins, steps):
    """By the definition: each beam samples the picture at distances of a pixel, bilinearly, 0 outside."""
    matrix = np.zeros((len(ANGLES), bins, height, width))
    for row, angle in zip(matrix, np.deg2rad(ANGLES.numpy()), strict=True):
        for bin_, step in np.ndindex(bins, steps):
            across, along = bin_ - bins // 2, step - steps // 2
            x = width // 2 + np.cos(angle) * across + np.sin(angle) * along
            y = height // 2 - np.sin(angle) * across + np.cos(angle) * along
            for i, j in np.ndindex(height, width):
                row[bin_, i, j] += max(0, 1 - abs(x - j)) * max(0, 1 - abs(y - i))
    return matrix.reshape(len(ANGLES) * bins, height * width)


@pytest.mark.parametrize("detector", ["diagonal", "width"])
def test_projection_and_back_projection_are_a_matrix_and_its_transpose(detector):
    height, width = 4, 5
    grid = beam_grid(ANGLES, height, width, detector)
    bins, steps = (8, 8) if detector == "diagonal" else (5, 4)  # 8: sqrt(2) * 5, rounded up
    matrix = matrix_of_projection(height, width, bins, steps)
    x, y = noise(height, width), noise(len(ANGLES), bins, seed=1)
    np.testing.assert_allclose(project(x, grid).flatten().numpy(), matrix @ x.flatten().numpy(), atol=1e-10)
    found = back_project(y, grid, height, width).flatten().numpy()
    np.testing.assert_allclose(found, matrix.T @ y.flatten().numpy(), atol=1e-10)


@pytest.mark.parametrize("size", [(7,), (6, 9), (5, 8, 6)])
@pytest.mark.parametrize("chunk_size", [1, 7, 10_000])
def test_fourier_samples_at_whole_frequencies_are_the_fft(size, chunk_size):
    volume = noise(*size)
    frequencies = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in size)).reshape(-1, len(size))
    expected = torch.fft.fftn(volume).flatten()
    torch.testing.assert_close(fourier_samples(volume, frequencies, chunk_size), expected)


def test_fourier_samples_between_whole_frequencies_are_those_of_the_padded_volume():
    volume = noise(6, 5)
    padded = torch.zeros(12, 10, dtype=torch.float64)
    padded[:6, :5] = volume
    expected = torch.fft.fftn(padded)[3, 7]
    sample = fourier_samples(volume, torch.tensor([[1.5, 3.5]], dtype=torch.float64))
    torch.testing.assert_close(sample, expected[None])


def test_gradients_pass_through_fourier_samples():
    volume, frequencies = noise(4, 3, 2).requires_grad_(), noise(5, 3, seed=1)
    assert torch.autograd.gradcheck(lambda v: torch.view_as_real(fourier_samples(v, frequencies, 2)), volume)


def test_fourier_samples_refuse_frequencies_with_other_axes():
    with pytest.raises(ValueError, match="2 axes cannot sample a volume with 3"):
        fourier_samples(noise(2, 2, 2), noise(5, 2))


def test_masked_fft_keeps_the_energy_of_the_volume():
    volume = noise(6, 5, 4)
    everything = masked_fft(volume, torch.ones(6, 5, 4, dtype=torch.bool))
    torch.testing.assert_close(everything.abs().square().sum(), volume.square().sum())


def test_masked_fft_is_the_fft_of_the_full_volume_at_the_mask():
    volume, mask = noise(6, 5, 4), noise(6, 5, 4, seed=1) > 0.3
    expected = np.fft.fftn(volume.numpy())[mask.numpy()] / np.sqrt(120)
    np.testing.assert_allclose(masked_fft(volume, mask).numpy(), expected, atol=1e-12)
