"""PSNR and SSIM against closed forms, brute force and scikit-image; LPIPS stays lazy and outside of models."""

import math
import sys
import types

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from crossnorm_ns.functional import metrics
from crossnorm_ns.functional.metrics import lpips, psnr, ssim


def skimage_ssim(prediction: Tensor, target: Tensor) -> float:
    """The oracle: Wang et al.'s window and population statistics; it averages over the map without its border."""
    return structural_similarity(
        prediction.double().numpy(),
        target.double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )


def smooth_image(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Waves of random directions in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 6, width), indexing="ij")
    frequencies = torch.randn(2, channels, generator=generator)
    return 0.5 + 0.5 * torch.sin(y[..., None] * frequencies[0] + x[..., None] * frequencies[1])


@pytest.mark.parametrize("offset", [0.5, 0.1, -0.01])
def test_psnr_of_a_constant_error_is_its_square_in_decibels(offset: float) -> None:
    target = smooth_image(5, 7)
    assert psnr(target + offset, target).item() == pytest.approx(-20 * math.log10(abs(offset)), abs=1e-4)


def test_psnr_averages_squared_errors_over_everything() -> None:
    prediction, target = torch.rand(4, 3, 2, 3), torch.rand(4, 3, 2, 3)
    squared = [(p - t) ** 2 for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)]
    assert psnr(prediction, target).item() == pytest.approx(-10 * math.log10(sum(squared) / len(squared)), abs=1e-9)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(torch.ones(2, 2, 3), torch.ones(2, 2, 3)).item() == math.inf


def test_psnr_of_half_precision_renders_is_not_rounded() -> None:
    target = torch.zeros(8, 8, 3, dtype=torch.float16)
    assert psnr(target + 2**-5, target).item() == pytest.approx(100 * math.log10(2), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width", "channels"), [(11, 11, 3), (40, 23, 3), (16, 64, 1)])
def test_ssim_agrees_with_skimage(height: int, width: int, channels: int, dtype: torch.dtype) -> None:
    target = smooth_image(height, width, channels).to(dtype)
    noise = 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for prediction in ((target + noise).clamp(0, 1), smooth_image(height, width, channels, seed=2).to(dtype)):
        assert ssim(prediction, target).item() == pytest.approx(skimage_ssim(prediction, target), abs=1e-7)


def test_ssim_of_an_inverted_image_is_negative_as_with_skimage() -> None:
    target = smooth_image(32, 32)
    value = ssim(1 - target, target).item()
    assert value < -0.2
    assert value == pytest.approx(skimage_ssim(1 - target, target), abs=1e-7)


def test_ssim_agrees_with_skimage_on_white_background() -> None:
    """Variances of flat white are rounding errors of either sign."""
    target = torch.ones(48, 48, 3)
    target[16:32, 16:32] = smooth_image(16, 16)
    prediction = target + 1e-4 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    assert ssim(prediction, target).item() == pytest.approx(skimage_ssim(prediction, target), abs=1e-7)


def test_ssim_agrees_with_skimage_on_real_images(shared_data) -> None:
    from crossnorm_ns.data.blender_scene import composite_on_white, load_image

    truths = [load_image(shared_data / "blender/lego/test" / f"r_{index}.png") for index in (0, 1)]
    first, second = (torch.from_numpy(composite_on_white(rgba)) for rgba in truths)
    assert ssim(first, second).item() == pytest.approx(skimage_ssim(first, second), abs=1e-7)


def test_ssim_of_one_window_equals_its_formula() -> None:
    """Brute force: an image of the window's size has one SSIM value per channel."""
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.rand(11, 11, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))

    def mean(values: Tensor) -> float:
        return sum(weights[i][j] / total * values[i, j, 0].item() for i in range(11) for j in range(11))

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y, covariance = (
        mean((x - mean_x) ** 2),
        mean((y - mean_y) ** 2),
        mean((x - mean_x) * (y - mean_y)),
    )
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (variance_x + variance_y + 9e-4)
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    value = ssim(torch.full((12, 12, 3), 0.25), torch.full((12, 12, 3), 0.75)).item()
    assert value == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-9)


def test_ssim_of_equal_images_is_one_and_order_does_not_matter() -> None:
    first, second = smooth_image(20, 20), smooth_image(20, 20, seed=1)
    assert ssim(first, first).item() == pytest.approx(1, abs=1e-12)
    assert ssim(first, second).item() == pytest.approx(ssim(second, first).item(), abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_metrics_on_gpu_equal_those_on_cpu() -> None:
    first, second = smooth_image(40, 30), smooth_image(40, 30, seed=1)
    for metric in (psnr, ssim):
        assert metric(first.cuda(), second.cuda()).item() == pytest.approx(metric(first, second).item(), abs=1e-9)


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match=r"11x11.*40x10"):
        ssim(torch.rand(10, 40, 3), torch.rand(10, 40, 3))


@pytest.mark.parametrize("metric", [psnr, ssim, lpips])
def test_different_shapes_are_refused(metric) -> None:
    with pytest.raises(ValueError, match=r"\(16, 20, 3\) and \(20, 16, 3\)"):
        metric(torch.rand(16, 20, 3), torch.rand(20, 16, 3))


def test_psnr_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        psnr(torch.zeros(0, 3), torch.zeros(0, 3))


class MeanDistance(nn.Module):
    """Stands in for the LPIPS network: the same call, the mean absolute difference of inputs scaled to [-1, 1]."""

    built = 0

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        MeanDistance.built += 1
        self.scale = nn.Parameter(torch.tensor({"alex": 1.0, "vgg": 10.0}[net]))

    def forward(self, first: Tensor, second: Tensor, normalize: bool) -> Tensor:
        assert first.shape[:2] == second.shape[:2] == (1, 3)
        first, second = (2 * image - 1 if normalize else image for image in (first, second))
        return self.scale * (first - second).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture
def lpips_package(monkeypatch: pytest.MonkeyPatch):
    metrics._lpips_network.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=MeanDistance))
    MeanDistance.built = 0
    yield
    metrics._lpips_network.cache_clear()


def test_lpips_gives_the_package_images_in_its_own_range_and_layout(lpips_package: None) -> None:
    prediction, target = torch.full((8, 6, 3), 0.75), torch.full((8, 6, 3), 0.5)
    assert lpips(prediction, target).item() == pytest.approx(0.5)
    assert lpips(prediction, target, network="vgg").item() == pytest.approx(5)


def test_lpips_builds_its_network_once_and_without_gradients(lpips_package: None) -> None:
    prediction = torch.rand(8, 6, 3, requires_grad=True)
    values = [lpips(prediction, torch.rand(8, 6, 3)) for _ in range(3)]
    assert MeanDistance.built == 1
    assert not any(value.requires_grad for value in values)


def test_lpips_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._lpips_network.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"crossnorm-ns\[lpips\]"):
        lpips(torch.rand(8, 6, 3), torch.rand(8, 6, 3))
