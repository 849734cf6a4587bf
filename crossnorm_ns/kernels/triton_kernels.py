"""Batch, global and cross normalization in Triton: two passes over x forward, two over (x, dy) backward, no atomics.

The formulas of the cross are those of normalization.cpp, with its letters; the other norms are (x - center) D^-1/2
with a center and a D for each column. The plain twin is crossnorm_ns/functional/normalization.py.

Each program takes one run of consecutive rows, a tile of rows by all channels at a time. Sums over rows are kept for
each program and added in float64 afterwards, so a result repeats exactly while the autotuned tile stays the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

Form = Literal["released", "paper", "bn", "gn"]

_MAX_PROGRAMS = 1024
_MIN_ROWS = 64  # of a program, so that its sums stay small beside what it reads
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_CONFIGS = [
    triton.Config({"TILE": tile}, num_warps=warps)
    for tile, warps in ((1024, 4), (2048, 4), (2048, 8), (4096, 8), (4096, 16))
]


# Kernels carry `no_type_check` beside this: the runtime type checks of the tests would hide their source from Triton.
def _kernel(function: Callable) -> Any:
    return triton.jit(function)


def _tuned(*key: str) -> Callable[[Any], Any]:
    """Chooses the tile for each width and type of x; the interpreter has nothing to measure and takes one."""
    return triton.autotune(_CONFIGS[-1:] if _INTERPRETED else _CONFIGS, key=list(key))


@_kernel
@no_type_check
def _column_values(weight, bias, mean, var, column, channels):
    known = column < channels
    return (
        tl.load(weight + column, known, 0),
        tl.load(bias + column, known, 0),
        tl.load(mean + column, known, 0),
        tl.load(var + column, known, 0),
    )


@_kernel
@no_type_check
def _entries(x, mean, var, keep, share, batch_rows, channels, eps, FORM: tl.constexpr):
    """x - center, D^-1/2 (0 outside of x) and x - row mean of a tile."""
    share = tl.full((), share, x.dtype)
    batch_rows = tl.full((), batch_rows, x.dtype)
    eps = tl.full((), eps, x.dtype)
    if FORM == "columns":
        return x - mean, tl.where(keep, tl.rsqrt(var + eps), 0), x
    row_mean = (tl.sum(x, 1) / channels)[:, None]
    deviation = tl.where(keep, x - row_mean, 0)
    row_squares = tl.sum(deviation * deviation, 1)[:, None]
    if FORM == "released":
        centered = (x - mean) - share * (channels * (row_mean - mean) - x)
        variance = var + row_squares / tl.maximum(channels - 1, 1)
    else:
        offset = share * (channels * (row_mean - mean) - (x - mean))
        centered = (x - mean) - offset
        row_offset = (row_mean - mean) - offset
        squares = (batch_rows - 1) * var + batch_rows * offset * offset
        squares += row_squares + channels * row_offset * row_offset - centered * centered
        variance = tl.where(squares < 0, 0, share * squares)  # rounding of an outlier's row may go below 0
    return centered, tl.where(keep, tl.rsqrt(variance + eps), 0), deviation


@_tuned("BLOCK_C")
@_kernel
@no_type_check
def _moments_kernel(
    x, partials, rows, chunk, channels, SINGLE: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr
):
    """Mean and sum of squared deviations of each column over the program's rows, about the first of them."""
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = tl.float32 if SINGLE else tl.float64
    column = tl.arange(0, BLOCK_C)[None, :]
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, rows)
    first = begin.to(tl.int64) * channels + column
    shift = tl.load(x + first, column < channels, 0).to(precision)
    count = tl.full((BLOCK_R, 1), 0, precision)
    mean = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    squares = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        value = tl.load(x + row.to(tl.int64) * channels + column, keep, 0).to(precision) - shift
        difference = tl.where(keep, value - mean, 0)
        count += (row < end).to(precision)
        mean += difference / tl.maximum(count, 1)
        squares += difference * (value - mean)
    program_mean = tl.sum(count * mean, 0)[None, :] / (end - begin)
    difference = mean - program_mean
    squares = tl.sum(squares + count * difference * difference, 0)[None, :]
    at = partials + tl.program_id(0) * 2 * channels + column
    tl.store(at, shift.to(tl.float64) + program_mean, column < channels)
    tl.store(at + channels, squares.to(tl.float64), column < channels)


@_kernel
@no_type_check
def _merge_kernel(partials, mean, var, rows, chunk, channels, programs, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The programs' moments merged by Chan's formula, in float64."""
    program = tl.arange(0, BLOCK_P)[:, None]
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    keep = (program < programs) & (column < channels)
    at = partials + program * 2 * channels + column
    count = tl.minimum(tl.maximum(rows - program * chunk, 0), chunk).to(tl.float64)
    means = tl.load(at, keep, 0)
    center = tl.sum(count * means, 0)[None, :] / rows
    difference = means - center
    squares = tl.sum(tl.load(at + channels, keep, 0) + count * difference * difference, 0)[None, :]
    tl.store(mean + column, center, column < channels)
    tl.store(var + column, squares / tl.maximum(rows - 1, 1), column < channels)


@_tuned("BLOCK_C", "FORM")
@_kernel
@no_type_check
def _forward_kernel(
    x, y, weight, bias, mean, var, rows, chunk, channels,
    share: tl.float64, batch_rows: tl.float64, eps: tl.float64,  # a bare float would arrive as float32
    FORM: tl.constexpr, RELU: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = mean.dtype.element_ty
    column = tl.arange(0, BLOCK_C)[None, :]
    scale, shift, center, spread = _column_values(weight, bias, mean, var, column, channels)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, rows)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        centered, inverse, _ = _entries(value, center, spread, keep, share, batch_rows, channels, eps, FORM)
        result = centered * inverse * scale + shift
        if RELU:
            result = tl.where(result <= 0, 0, result)
        tl.store(y + at, result.to(y.dtype.element_ty), keep)


@_tuned("BLOCK_C", "FORM")
@_kernel
@no_type_check
def _backward_kernel(
    x, dy, dx, partials, weight, bias, mean, var, rows, chunk, channels,
    share: tl.float64, batch_rows: tl.float64, eps: tl.float64,
    FORM: tl.constexpr, RELU: tl.constexpr, SUMS: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dx without what flows through the column statistics, and the program's sums over its rows.

    They are, with g = dy weight, r = D^-1/2, h = -g (x - c) r^3 / 2: of dweight, dbias, g r, h and h (m - c).
    """
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = mean.dtype.element_ty
    own_share = tl.full((), share, precision)
    column = tl.arange(0, BLOCK_C)[None, :]
    scale, shift, center, spread = _column_values(weight, bias, mean, var, column, channels)
    dweight = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    dbias = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    if FORM != "columns":
        scaled = tl.full((BLOCK_R, BLOCK_C), 0, precision)
        variance = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    if FORM == "paper":
        offset = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, rows)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        gradient = tl.load(dy + at, keep, 0).to(precision)
        centered, inverse, deviation = _entries(value, center, spread, keep, share, batch_rows, channels, eps, FORM)
        normalized = centered * inverse
        if RELU:
            gradient = tl.where(normalized * scale + shift <= 0, 0, gradient)
        dweight += gradient * normalized
        dbias += gradient
        result = gradient * scale * inverse
        if FORM != "columns":
            h = -0.5 * result * normalized * inverse
            scaled += result
            variance += h
            through_squares = 2 * tl.sum(h, 1)[:, None] * deviation
            through_center = result - tl.sum(result, 1)[:, None]
            if FORM == "released":
                result += own_share * through_center + through_squares / tl.maximum(channels - 1, 1)
            else:
                offset += h * (center - value + centered)
                through_center += 2 * tl.sum(h * (centered - deviation), 1)[:, None]
                result += own_share * (through_center + through_squares + result * normalized * normalized)
        tl.store(dx + at, result.to(dx.dtype.element_ty), keep)
    at = partials + tl.program_id(0) * SUMS * channels + column
    tl.store(at, tl.sum(dweight, 0)[None, :], column < channels)
    tl.store(at + channels, tl.sum(dbias, 0)[None, :], column < channels)
    if FORM != "columns":
        tl.store(at + 2 * channels, tl.sum(scaled, 0)[None, :], column < channels)
        tl.store(at + 3 * channels, tl.sum(variance, 0)[None, :], column < channels)
    if FORM == "paper":
        tl.store(at + 4 * channels, tl.sum(offset, 0)[None, :], column < channels)


@_kernel
@no_type_check
def _add_kernel(
    x, dx, batch_mean, from_mean, from_var, rows, chunk, channels, BLOCK_C: tl.constexpr, TILE: tl.constexpr
):
    """dx += from_mean + from_var (x - batch_mean): what flows through the column statistics."""
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = batch_mean.dtype.element_ty
    column = tl.arange(0, BLOCK_C)[None, :]
    center = tl.load(batch_mean + column, column < channels, 0)
    constant = tl.load(from_mean + column, column < channels, 0)
    slope = tl.load(from_var + column, column < channels, 0)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, rows)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        result = tl.load(dx + at, keep, 0).to(precision) + constant + slope * (value - center)
        tl.store(dx + at, result.to(dx.dtype.element_ty), keep)


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _layout(x: Tensor) -> tuple[int, int, int]:
    """Number of programs, rows of each, and channels of a tile."""
    rows, channels = x.shape
    chunk = max(_MIN_ROWS, triton.cdiv(rows, _MAX_PROGRAMS))
    return triton.cdiv(rows, chunk), chunk, triton.next_power_of_2(channels)


def _center_and_variance(form: Form, rows: float, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """What normalizes each column, of shape (channels,) or (), in float64; for the cross its own statistics."""
    mean, var = mean.double(), var.double()
    if form == "bn":
        return mean, var * ((rows - 1) / rows)
    if form == "gn":
        center = mean.mean()
        squared_deviations = (rows - 1) * var.sum() + rows * (mean - center).square().sum()
        return center, squared_deviations / max(rows * len(mean) - 1, 1)
    return mean, var


def _column_gradients(
    form: Form, sums: Tensor, weight: Tensor, rows: float, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the column statistics `mean` and `var`, (channels,) each, from the sums (kinds, channels)."""
    channels = len(mean)
    if form == "released":
        return -rows / (rows + channels) * sums[2], sums[3]
    if form == "paper":
        size = rows + channels - 1
        return rows / size * (2 * sums[4] - sums[2]), (rows - 1) / size * sums[3]
    center, variance = _center_and_variance(form, rows, mean, var)
    inverse = torch.rsqrt(variance + eps)
    by_weight, by_bias = sums * weight.double()
    dcenter, dvariance = -by_bias * inverse, -0.5 * by_weight * inverse.square()
    if form == "bn":
        return dcenter, dvariance * ((rows - 1) / rows)
    share = dvariance.sum() / max(rows * channels - 1, 1)
    return dcenter.sum() / channels + 2 * rows * share * (mean.double() - center), share * (rows - 1)


def _columns(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, rows: float, mean: Tensor, var: Tensor
) -> list[Tensor]:
    """Weight, bias, center and variance of each column, contiguous and in the precision of the kernels."""
    weight = x.new_ones(()) if weight is None else weight
    bias = x.new_zeros(()) if bias is None else bias
    values = (weight, bias, *_center_and_variance(form, rows, mean, var))
    return [value.to(_precision(x)).expand(x.shape[1]).contiguous() for value in values]


def _formula(form: Form, rows: float, channels: int, eps: float, relu: bool) -> dict[str, Any]:
    share = 1 / (rows + channels - (form == "paper"))
    name = form if form in ("released", "paper") else "columns"
    return {"share": share, "batch_rows": rows, "eps": eps, "FORM": name, "RELU": relu}


def column_statistics(
    x: Float[Tensor, "rows channels"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and unbiased variance (0 of less than two rows) of each column, in float32 or better."""
    x = x.contiguous()
    rows, channels = x.shape
    mean, var = x.new_zeros((2, channels), dtype=_precision(x))
    if rows == 0:
        return mean, var
    programs, chunk, block = _layout(x)
    partials = x.new_empty((programs, 2, channels), dtype=torch.float64)
    block_p = triton.next_power_of_2(programs)
    block_c = min(block, 4 * _MAX_PROGRAMS // block_p)
    with torch.cuda.device_of(x):
        _moments_kernel[(programs,)](
            x, partials, rows, chunk, channels, SINGLE=mean.dtype == torch.float32, BLOCK_C=block
        )
        _merge_kernel[(triton.cdiv(channels, block_c),)](
            partials, mean, var, rows, chunk, channels, programs, BLOCK_P=block_p, BLOCK_C=block_c
        )
    return mean, var


def forward(
    x: Float[Tensor, "rows channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    rows: int | float,
    mean: Float[Tensor, " channels"],
    var: Float[Tensor, " channels"],
    form: Form,
    eps: float,
    relu: bool,
) -> Float[Tensor, "rows channels"]:
    """Normalizes x, and rectifies if `relu`; returns x's own type.

    Args:
        x: features, float16, bfloat16, float32 or float64; computed in float32 or better.
        weight: scale of each feature, or None for 1.
        bias: shift of each feature, or None for 0.
        rows: the N of the formula, that of the column statistics.
        mean: mean of each column.
        var: unbiased variance of each column.
        form: which norm: the cross as released or as in the paper, batch or global normalization.
        eps: added to the variance.
        relu: returns max(y, 0) in place of y; NaN stays NaN.
    """
    x, rows = x.contiguous(), float(rows)
    y = torch.empty_like(x)
    if len(x) == 0:
        return y
    programs, chunk, block = _layout(x)
    columns = _columns(x, weight, bias, form, rows, mean, var)
    formula = _formula(form, rows, x.shape[1], eps, relu)
    with torch.cuda.device_of(x):
        _forward_kernel[(programs,)](x, y, *columns, len(x), chunk, x.shape[1], **formula, BLOCK_C=block)
    return y


def backward(
    dy: Float[Tensor, "rows channels"],
    x: Float[Tensor, "rows channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    rows: int | float,
    mean: Float[Tensor, " channels"],
    var: Float[Tensor, " channels"],
    batch_mean: Float[Tensor, " channels"] | None,
    form: Form,
    eps: float,
    relu: bool,
) -> tuple[Float[Tensor, "rows channels"], Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Gradients of x (in its own type), weight and bias (in float32 or better).

    Args:
        dy: gradient of the result of `forward`, which had the other arguments.
        x: features.
        weight: scale of each feature, or None for 1.
        bias: shift of each feature, or None for 0; matters to `relu` alone.
        rows: the N of the formula.
        mean: mean of each column that normalized.
        var: unbiased variance of each column that normalized.
        batch_mean: mean of each column of x itself, where gradients flow through its statistics, whatever values
            normalized; None where `mean` and `var` are constants.
        form: which norm.
        eps: added to the variance.
        relu: whether the result was rectified; no gradient where it was 0.
    """
    x, dy, rows = x.contiguous(), dy.contiguous(), float(rows)
    dx = torch.empty_like(x)
    (count, channels), precision = x.shape, _precision(x)
    if count == 0:
        dweight, dbias = x.new_zeros((2, channels), dtype=precision)
        return dx, dweight, dbias
    programs, chunk, block = _layout(x)
    columns = _columns(x, weight, bias, form, rows, mean, var)
    formula = _formula(form, rows, channels, eps, relu)
    kinds = {"released": 4, "paper": 5}.get(form, 2)
    partials = x.new_empty((programs, kinds, channels), dtype=precision)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            x, dy, dx, partials, *columns, count, chunk, channels, **formula, SUMS=kinds, BLOCK_C=block
        )
        sums = partials.sum(0, dtype=torch.float64)
        if batch_mean is not None:
            dmean, dvar = _column_gradients(form, sums, columns[0], rows, mean, var, eps)
            spread = (batch_mean, dmean / count, 2 * dvar / max(count - 1, 1))
            spread = [value.to(precision).expand(channels).contiguous() for value in spread]
            _add_kernel[(programs,)](x, dx, *spread, count, chunk, channels, BLOCK_C=block, TILE=2048)
    dweight, dbias = sums[:2].to(precision)
    return dx, dweight, dbias
