"""Each protocol against the library it is named after, or a twin written from that library's formulas."""

import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from crossnorm_ns.data.blender_scene import composite_on_white
from eval.protocols import PROTOCOLS, ProtocolName


def picture(seed: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Float32 colours of a 24x32 image: waves and a little noise."""
    generator = np.random.default_rng(seed)
    waves = np.sin(np.linspace(0, 9, 24 * 32 * 3).reshape(24, 32, 3) * generator.uniform(1, 3, 3))
    return np.clip(
        low + (high - low) * (0.5 + 0.4 * waves) + 0.03 * generator.standard_normal(waves.shape), low, high
    ).astype(np.float32)


def skimage_ssim(render: np.ndarray, truth: np.ndarray) -> float:
    return structural_similarity(
        render.astype(np.float64),
        truth.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )


def batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_command_line_offers_exactly_the_registered_protocols() -> None:
    assert tuple(PROTOCOLS) == get_args(ProtocolName)
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert len(protocol.description) > 40


@pytest.mark.parametrize("name", get_args(ProtocolName))
def test_equal_images_are_perfect(name: ProtocolName) -> None:
    scores = PROTOCOLS[name].score(picture(0), picture(0))
    assert scores.psnr == math.inf
    assert scores.ssim == pytest.approx(1, abs=1e-6)


def test_mipnerf_counts_colours_outside_of_range_as_they_are() -> None:
    truth = picture(0)
    render = truth + np.float32(0.2) * (picture(1) - np.float32(0.5))
    render[0, 0] = 1.3
    scores = PROTOCOLS["mipnerf"].score(render, truth)
    error = np.mean((render.astype(np.float64) - truth) ** 2)
    assert scores.psnr == pytest.approx(-10 * math.log10(error), abs=1e-6)
    assert scores.ssim == pytest.approx(skimage_ssim(render, truth), abs=1e-6)


def test_nerfstudio_equals_torchmetrics_as_its_models_call_it() -> None:
    """Images that do not span [0, 1], so that the measured data range shows."""
    truth, render = picture(0, 0.2, 0.7), picture(1, 0.2, 0.7)
    scores = PROTOCOLS["nerfstudio"].score(render, truth)
    assert scores.psnr == pytest.approx(
        PeakSignalNoiseRatio(data_range=1.0)(batch(truth), batch(render)).item(), abs=1e-4
    )
    assert scores.ssim == pytest.approx(
        StructuralSimilarityIndexMeasure()(batch(truth), batch(render)).item(), abs=1e-5
    )
    assert abs(scores.ssim - PROTOCOLS["mipnerf"].score(render, truth).ssim) > 1e-3


def test_nerfstudio_clips_renders() -> None:
    truth = picture(0)
    render = truth * np.float32(1.5)
    assert PROTOCOLS["nerfstudio"].score(render, truth) == PROTOCOLS["nerfstudio"].score(render.clip(0, 1), truth)


def nerfbaselines_8_bit(rgba: np.ndarray) -> np.ndarray:
    """Its `image_to_srgb` for uint8 RGBA on a white background, value by value: float32 throughout, then int()."""
    values = np.empty((*rgba.shape[:2], 3))
    for row, column, channel in np.ndindex(*values.shape):
        alpha = np.float32(rgba[row, column, 3]) / np.float32(255)
        colour = np.float32(rgba[row, column, channel]) / np.float32(255) * alpha
        colour = colour + (np.float32(1) - alpha) * np.float32(1)
        values[row, column, channel] = int(min(max(colour * np.float32(255), 0), 255))
    return values / 255


def test_nerfbaselines_truncates_both_images_to_8_bits_after_compositing() -> None:
    generator = np.random.default_rng(0)
    truth_rgba = generator.integers(0, 256, (16, 20, 4), dtype=np.uint8)
    render = picture(2)[:16, :20]
    truth_8_bit = nerfbaselines_8_bit(truth_rgba)
    render_8_bit = np.floor(render.astype(np.float64) * 255) / 255
    truth = composite_on_white(truth_rgba.astype(np.float32) / np.float32(255))
    scores = PROTOCOLS["nerfbaselines"].score(render, truth)
    error = np.mean((truth_8_bit - render_8_bit) ** 2)
    assert scores.psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert scores.ssim == pytest.approx(skimage_ssim(render_8_bit, truth_8_bit), abs=1e-5)


def test_nerfbaselines_keeps_8_bit_images_and_does_not_round_up() -> None:
    prepare = PROTOCOLS["nerfbaselines"].prepare
    all_values = np.arange(256, dtype=np.float32).reshape(16, 16, 1).repeat(3, -1) / np.float32(255)
    np.testing.assert_array_equal(prepare(all_values), all_values)
    np.testing.assert_allclose(prepare(np.full((1, 1, 3), 0.9999, dtype=np.float32)), 254 / 255)
    np.testing.assert_array_equal(prepare(np.full((1, 1, 3), 1.2, dtype=np.float32)), 1)


@pytest.mark.parametrize("name", get_args(ProtocolName))
def test_images_of_different_sizes_are_refused(name: ProtocolName) -> None:
    with pytest.raises(ValueError, match="shape"):
        PROTOCOLS[name].score(picture(0)[:16], picture(0))


def test_help_of_the_command_does_not_import_torch() -> None:
    code = "import eval.blender, sys; sys.exit('torch' in sys.modules or 'nerfstudio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
