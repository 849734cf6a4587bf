"""Tensors as bytes: float32, float16, or 8 bits with one scale for the tensor or one for each of its rows."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from crossnorm_ns.representation.errors import RepresentationError

Quantization = Literal["float32", "float16", "int8"]
Code = Literal["f4", "f2", "q8", "q8r"]
"""How one tensor is written: float32, float16, int8 with a scale, int8 with a scale for each row (first axis)."""

_LEVELS = 127


class OutOfRangeError(RepresentationError):
    """A quantisation cannot hold a value that another can."""


_DECIBELS_PER_BIT = 20 * math.log10(2)


def choose_code(name: str, values: Tensor, quantization: Quantization) -> Code:
    """How a tensor is written under a quantisation.

    8 bits are for the weights of layers alone: biases, scales, shifts and the statistics of norms are few, and errors
    in them move a whole feature; they take float16. Numbers (how many rows a batch had) take float32. A scale for each
    row is chosen where it lowers the error by more than the bits that it costs would, spent on finer levels: 6 dB for
    each bit. Errors are relative to the size of each row (a feature, which norms bring to one scale), bits are those of
    the levels after entropy coding and of the scales.

    Raises:
        RepresentationError: there is no such quantisation, or it cannot hold the values.
    """
    if quantization not in get_args(Quantization):
        known = ", ".join(get_args(Quantization))
        raise RepresentationError(f"unknown quantization {quantization!r}: choose one of {known}")
    if not torch.isfinite(values).all():
        raise RepresentationError(f"{name} holds NaN or infinite values: the network diverged and cannot be stored")
    if quantization == "float32" or values.dim() == 0:
        return "f4"
    if quantization == "int8" and values.dim() > 1 and name.endswith("weight"):
        error, bits = _error_and_bits(values.flatten(1), "q8")
        error_by_rows, bits_by_rows = _error_and_bits(values.flatten(1), "q8r")
        return "q8r" if error - error_by_rows > _DECIBELS_PER_BIT * (bits_by_rows - bits) else "q8"
    if float(values.abs().max()) > torch.finfo(torch.float16).max:
        raise OutOfRangeError(f"{name} holds values beyond the range of float16: use float32")
    return "f2"


def pack(values: Tensor, code: Code) -> list[bytes]:
    """A tensor as streams of like bytes, which compress better than the bytes of each number side by side."""
    values = values.detach().cpu().float()
    if code in ("f4", "f2"):
        array = np.ascontiguousarray(values.numpy(), dtype=f"<{code}").reshape(-1)
        return [plane.tobytes() for plane in array.view(np.uint8).reshape(-1, array.itemsize).T]
    levels, scales = _quantize(values.flatten(1), code)
    return [levels.numpy().tobytes(), *pack(scales.flatten(), "f4" if code == "q8" else "f2")]


def packed_sizes(shape: tuple[int, ...], code: Code) -> list[int]:
    """Lengths of the streams that `pack` gives for a tensor of this shape."""
    number = math.prod(shape)
    if code in ("f4", "f2"):
        return [number] * int(code[1])
    return [number, *([1] * 4 if code == "q8" else [shape[0]] * 2)]


def unpack(streams: list[bytes], shape: tuple[int, ...], code: Code) -> Float[Tensor, "*shape"]:
    """The tensor that `pack` was given, up to the rounding of its code."""
    if code in ("f4", "f2"):
        planes = np.stack([np.frombuffer(stream, dtype=np.uint8) for stream in streams], axis=1)
        array = np.ascontiguousarray(planes).view(f"<{code}").astype(np.float32)
        return torch.from_numpy(array.reshape(shape))
    levels = torch.from_numpy(np.frombuffer(streams[0], dtype=np.int8).astype(np.float32))
    scales = unpack(streams[1:], (1 if code == "q8" else shape[0], 1), "f4" if code == "q8" else "f2")
    return (levels.reshape(shape[0], -1) * scales).reshape(shape)


def _quantize(
    matrix: Float[Tensor, "rows columns"], code: Code
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, "scales 1"]]:
    largest = matrix.abs().amax(dim=1, keepdim=True) if code == "q8r" else matrix.abs().max().reshape(1, 1)
    scales = largest / _LEVELS
    if code == "q8r":
        scales = scales.half().float()
    levels = (matrix / scales.where(scales > 0, torch.ones_like(scales))).round().clamp(-_LEVELS, _LEVELS)
    return levels.to(torch.int8), scales


def _error_and_bits(matrix: Float[Tensor, "rows columns"], code: Code) -> tuple[float, float]:
    """Mean over rows of the relative squared error in decibels, and the bits for each value."""
    levels, scales = _quantize(matrix, code)
    energy = matrix.square().sum(1).clamp_min(1e-30)
    error = float(((levels * scales - matrix).square().sum(1) / energy).mean())
    shares = torch.unique(levels, return_counts=True)[1] / levels.numel()
    entropy = float(-(shares * shares.log2()).sum())
    scale_bits = 16 / matrix.shape[1] if code == "q8r" else 32 / matrix.numel()
    return 10 * math.log10(max(error, 1e-30)), entropy + scale_bits
