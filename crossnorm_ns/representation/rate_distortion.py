"""What an image costs in bits and in quality, as network weights and as JPEG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.integrate import trapezoid
from torch import Tensor, nn

from crossnorm_ns.functional.metrics import psnr, ssim
from crossnorm_ns.representation.codec import ImageSpec, bits_per_pixel, decode, encode, render_8_bits
from crossnorm_ns.representation.pictures import to_8_bits
from crossnorm_ns.representation.quantization import OutOfRangeError, Quantization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JPEG_QUALITIES = (2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclass(frozen=True)
class RatePoint:
    """One file of an image."""

    codec: str
    """jpeg, or method and quantisation of the weights."""
    setting: str
    """quality of the JPEG, or hidden layers of the network."""
    bytes: int
    """Size of the whole file."""
    bits_per_pixel: float
    psnr: float
    """Of the decoded image, rounded to 8 bits, in decibels."""
    ssim: float


def measure(
    codec: str,
    setting: str,
    data: bytes,
    decoded: UInt8[np.ndarray, "height width 3"],
    original: Float[Tensor, "height width 3"],
) -> RatePoint:
    """Rate and quality of a file's image."""
    image, truth = torch.from_numpy(decoded.astype(np.float32)) / 255, original.cpu()
    rate = bits_per_pixel(data, *decoded.shape[:2])
    return RatePoint(codec, setting, len(data), rate, float(psnr(image, truth)), float(ssim(image, truth)))


def jpeg_points(
    original: Float[Tensor, "height width 3"], qualities: Iterable[int] = JPEG_QUALITIES
) -> list[RatePoint]:
    """The image as JPEG files by Pillow (optimised Huffman tables, its usual chroma subsampling) at some qualities."""
    from PIL import Image

    points = []
    for quality in qualities:
        file = io.BytesIO()
        Image.fromarray(to_8_bits(original.cpu().numpy())).save(file, "jpeg", quality=quality, optimize=True)
        decoded = np.asarray(Image.open(file).convert("RGB"))
        points.append(measure("jpeg", str(quality), file.getvalue(), decoded, original))
    return points


def network_points(
    network: nn.Module,
    spec: ImageSpec,
    original: Float[Tensor, "height width 3"],
    quantizations: Sequence[Quantization] = get_args(Quantization),
) -> dict[Quantization, tuple[RatePoint, bytes]]:
    """A trained network as files, each decoded and rendered again; without those that cannot hold its values.

    Raises:
        RepresentationError: the network cannot be stored (see `encode`).
    """
    points = {}
    for quantization in quantizations:
        try:
            data = encode(network, spec, quantization)
        except OutOfRangeError:
            continue
        decoded, _ = decode(data)
        image = render_8_bits(decoded, spec.height, spec.width)
        name = f"{len(spec.hidden)}x{spec.hidden[0]}"
        points[quantization] = (measure(f"{spec.method} {quantization}", name, data, image, original), data)
    return points


@dataclass(frozen=True)
class Gain:
    """How far a codec's PSNR is above another's at equal bits per pixel."""

    codec: str
    other: str
    least: float
    """In decibels, over the rates that both have."""
    mean: float
    """Over the logarithm of the rate, as in Bjontegaard's measure, but of straight lines between the points."""
    largest: float
    lowest_rate: float
    """In bits per pixel."""
    highest_rate: float


def gain_at_equal_rates(points: Sequence[RatePoint], codec: str, other: str) -> Gain | None:
    """Compares two codecs, their PSNR interpolated over the logarithm of the rate; None if no rates are common."""
    (rates, psnrs), (other_rates, other_psnrs) = (
        np.array(sorted((np.log(p.bits_per_pixel), p.psnr) for p in points if p.codec == name)).reshape(-1, 2).T
        for name in (codec, other)
    )
    if not len(rates) or not len(other_rates):
        return None
    low, high = max(rates[0], other_rates[0]), min(rates[-1], other_rates[-1])
    if low >= high:
        return None
    knots = np.unique(np.concatenate([rates, other_rates]).clip(low, high))
    differences = np.interp(knots, rates, psnrs) - np.interp(knots, other_rates, other_psnrs)
    return Gain(
        codec,
        other,
        least=float(differences.min()),
        mean=float(trapezoid(differences, knots) / (high - low)),
        largest=float(differences.max()),
        lowest_rate=float(np.exp(low)),
        highest_rate=float(np.exp(high)),
    )


def gains(points: Sequence[RatePoint]) -> list[Gain]:
    """Each codec over those behind it in the order of the points that store weights alike, and over JPEG."""
    codecs = list(dict.fromkeys(point.codec for point in points if point.codec != "jpeg"))
    pairs = [
        *((a, b) for i, a in enumerate(codecs) for b in codecs[i + 1 :] if a.split()[1] == b.split()[1]),
        *((a, "jpeg") for a in codecs),
    ]
    found = (gain_at_equal_rates(points, *pair) for pair in pairs)
    return [gain for gain in found if gain is not None]


def rate_distortion_figure(points: Sequence[RatePoint]) -> Figure:
    """PSNR and SSIM against bits per pixel, a curve for each codec."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for codec in dict.fromkeys(point.codec for point in points):
        some = sorted((p for p in points if p.codec == codec), key=lambda point: point.bits_per_pixel)
        style = {"color": "gray", "linestyle": "--"} if codec == "jpeg" else {"marker": "o", "markersize": 4}
        rates = [point.bits_per_pixel for point in some]
        left.plot(rates, [point.psnr for point in some], label=codec, **style)
        right.plot(rates, [point.ssim for point in some], label=codec, **style)
    for axes, name in ((left, "PSNR (dB)"), (right, "SSIM")):
        axes.set(xlabel="bits per pixel", ylabel=name, xscale="log")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure
