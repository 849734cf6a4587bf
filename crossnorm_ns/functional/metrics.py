"""Picture quality: PSNR and SSIM as mip-NeRF defines them, and LPIPS where its package is installed."""

from __future__ import annotations

import importlib
import math
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


def psnr(prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*_"]) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio of values with peak 1: -10 log10 of the mean squared error over everything given.

    The PSNR of a test set is the mean of its images' PSNRs, not the PSNR of all their pixels: call this per image.

    Args:
        prediction: colours, usually (..., 3); used as they are, values outside [0, 1] included.
        target: true colours, same shape.

    Returns:
        PSNR in decibels, float64 whatever the inputs are; infinite where they are equal.

    Raises:
        ValueError: the shapes differ, or there are no values.
    """
    _check_same_shape(prediction, target)
    if prediction.numel() == 0:
        raise ValueError(f"PSNR needs at least one value, but prediction and target are empty: {tuple(target.shape)}.")
    return -10 * torch.log10((prediction.double() - target.double()).square().mean())


def ssim(
    prediction: Float[Tensor, "height width channels"],
    target: Float[Tensor, "_ _ _"],
    *,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Float[Tensor, ""]:
    """Structural similarity of two images with data range 1, as mip-NeRF evaluates it.

    Source: Wang et al. 2004 with population variances, in the form of google/mipnerf `internal/math.py` (compute_ssim):
    a Gaussian window, no padding (the result's border of window_size // 2 pixels is not counted), variances clipped
    at 0, mean over pixels and channels. That code's bound on the covariance is left out: it acts on rounding errors
    only, which computing in float64 keeps below 1e-12 of the result.

    Args:
        prediction: image in [0, 1], channels last.
        target: true image, same shape.
        window_size: taps of the Gaussian window, an odd number.
        sigma: standard deviation of the window in pixels.
        k1: stabiliser of the luminance term.
        k2: stabiliser of the contrast and structure term.

    Returns:
        SSIM in [-1, 1], float64 whatever the inputs are.

    Raises:
        ValueError: the shapes differ, or the image is smaller than the window.
    """
    _check_same_shape(prediction, target)
    height, width, _ = target.shape
    if min(height, width) < window_size:
        raise ValueError(
            f"SSIM with a window of {window_size}x{window_size} pixels needs an image at least that large, "
            f"but this one is {width}x{height} (width x height)."
        )
    prediction, target = prediction.double(), target.double()
    window = _gaussian_window(window_size, sigma)
    prediction_mean, target_mean = _blur(prediction, window), _blur(target, window)
    prediction_variance = (_blur(prediction.square(), window) - prediction_mean.square()).clamp_min(0)
    target_variance = (_blur(target.square(), window) - target_mean.square()).clamp_min(0)
    covariance = _blur(prediction * target, window) - prediction_mean * target_mean
    c1, c2 = k1**2, k2**2
    luminance = (2 * prediction_mean * target_mean + c1) / (prediction_mean.square() + target_mean.square() + c1)
    structure = (2 * covariance + c2) / (prediction_variance + target_variance + c2)
    return (luminance * structure).mean()


def lpips(
    prediction: Float[Tensor, "height width 3"],
    target: Float[Tensor, "_ _ 3"],
    network: Literal["alex", "vgg"] = "alex",
) -> Float[Tensor, ""]:
    """Learned perceptual distance (Zhang et al. 2018, version 0.1) of two images in [0, 1]; lower is better.

    Needs the package `lpips` (`pip install "crossnorm-ns[lpips]"`), which downloads the network's weights on first use.
    The network is kept here, one per network and device, and never becomes part of a model or its checkpoints.

    Args:
        prediction: image in [0, 1], channels last.
        target: true image, same shape.
        network: "alex" as nerfstudio reports it, "vgg" as the NeRF papers do.

    Raises:
        ValueError: the shapes differ.
        ImportError: the package `lpips` is not installed.
    """
    _check_same_shape(prediction, target)
    distance = _lpips_network(network, prediction.device)
    images = torch.stack([prediction, target]).float().movedim(-1, 1)
    with torch.no_grad():
        return distance(images[:1], images[1:], normalize=True).squeeze()


@lru_cache(maxsize=4)
def _lpips_network(network: str, device: torch.device) -> nn.Module:
    try:
        package = importlib.import_module("lpips")
    except ImportError as error:
        raise ImportError(
            'LPIPS needs the package lpips: pip install "crossnorm-ns[lpips]" (or turn LPIPS off).'
        ) from error
    return package.LPIPS(net=network, verbose=False).eval().requires_grad_(False).to(device)


def _check_same_shape(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"Prediction and target must have the same shape, but have {tuple(prediction.shape)} "
            f"and {tuple(target.shape)}."
        )


def _gaussian_window(size: int, sigma: float) -> list[float]:
    weights = [math.exp(-0.5 * ((tap - (size - 1) / 2) / sigma) ** 2) for tap in range(size)]
    return [weight / sum(weights) for weight in weights]


def _blur(image: Float[Tensor, "height width channels"], window: list[float]) -> Float[Tensor, "_ _ channels"]:
    """Weighted mean over a square window, along height, then width; only where the window lies inside the image."""
    for dim in (0, 1):
        length = image.shape[dim] - len(window) + 1
        blurred = window[0] * image.narrow(dim, 0, length)
        for tap, weight in enumerate(window[1:], start=1):
            blurred = blurred.add(image.narrow(dim, tap, length), alpha=weight)
        image = blurred
    return image
