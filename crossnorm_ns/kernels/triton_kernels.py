"""Batch, global and cross normalization in Triton: two passes over x forward, two over (x, dy) backward, no atomics.

The formulas of the cross are those of normalization.cpp, with its letters; the other norms are (x - center) D^-1/2
with a center and a D for each column. The plain twin is crossnorm_ns/functional/normalization.py.

Each program takes one run of consecutive rows, a tile of rows by all channels at a time. Sums over rows are kept for
each program and added in float64 afterwards, so results repeat exactly. The number of rows N is read from the device:
the host never waits for it. Launches are few, since at the sizes of one training step they cost as much as the work.
"""

from __future__ import annotations

import contextlib
import inspect
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
_TILE, _WARPS = 1024, 4


# Kernels carry `no_type_check` beside this: the runtime type checks of the tests would hide their source from Triton.
def _kernel(function: Callable) -> Any:
    sizes = [name for name in ("count", "chunk", "programs") if name in inspect.signature(function).parameters]
    return triton.jit(do_not_specialize=sizes)(function)  # a batch of another size compiles nothing anew


@_kernel
@no_type_check
def _share(rows, channels, FORM: tl.constexpr):
    """Of the cross 1 / number of values in a row and a column, else the variance's factor; in float64."""
    if FORM == "released":
        return 1 / (rows + channels)
    elif FORM == "paper":
        return 1 / (rows + channels - 1)
    elif FORM == "bn":
        return (rows - 1) / rows
    else:
        return rows / rows


@_kernel
@no_type_check
def _global_moments(rows, mean, var, channels, BLOCK: tl.constexpr):
    """Mean and unbiased variance of all entries from the statistics of the columns; in float64."""
    column = tl.arange(0, BLOCK)
    known = column < channels
    means = tl.load(mean + column, known, 0).to(tl.float64)
    center = tl.sum(means) / channels
    deviation = tl.where(known, means - center, 0)
    squares = (rows - 1) * tl.sum(tl.load(var + column, known, 0).to(tl.float64))
    return center, (squares + rows * tl.sum(deviation * deviation)) / tl.maximum(rows * channels - 1, 1)


@_kernel
@no_type_check
def _column_values(weight, bias, rows, mean, var, channels, eps, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """Of all columns: their numbers, scale, shift, center and variance; and what `_entries` takes behind these."""
    precision: tl.constexpr = mean.dtype.element_ty
    batch_rows = tl.load(rows).to(tl.float64)
    column = tl.arange(0, BLOCK)[None, :]
    known = column < channels
    center, spread = tl.load(mean + column, known, 0), tl.load(var + column, known, 0)
    if FORM == "gn":
        center, spread = _global_moments(batch_rows, mean, var, channels, BLOCK)
        center, spread = center.to(precision), spread.to(precision)
    return (
        column,
        tl.load(weight + column, known, 0).to(precision),
        tl.load(bias + column, known, 0).to(precision),
        center,
        spread,
        tl.load(mean),
        _share(batch_rows, channels, FORM).to(precision),
        batch_rows.to(precision),
        tl.full((), eps, precision),
    )


@_kernel
@no_type_check
def _inverse_root(x):
    """x^-1/2, rounded once: the hardware's estimate of a float32 and a Newton step."""
    root = tl.rsqrt(x)
    return root + 0.5 * root * (1 - x * root * root)


@_kernel
@no_type_check
def _entries(x, mean, var, about, keep, share, rows, channels, eps, FORM: tl.constexpr):
    """x - center, D^-1/2 (0 outside of x) and x - row mean of a tile; sums over rows are of x - about."""
    if FORM == "bn" or FORM == "gn":  # noqa: PLR1714
        return x - mean, tl.where(keep, _inverse_root(var * share + eps), 0), x
    near = tl.where(keep, x - about, 0)
    row_mean = (tl.sum(near, 1) / channels)[:, None]
    deviation = tl.where(keep, near - row_mean, 0)
    row_squares = tl.sum(deviation * deviation, 1)[:, None]
    row_offset = row_mean - (mean - about)
    if FORM == "released":
        centered = (x - mean) - share * (channels * row_offset - x)
        variance = var + row_squares / tl.maximum(channels - 1, 1)
    else:
        offset = share * (channels * row_offset - (x - mean))
        centered = (x - mean) - offset
        row_offset -= offset
        squares = (rows - 1) * var + rows * offset * offset
        squares += row_squares + channels * row_offset * row_offset - centered * centered
        variance = tl.where(squares < 0, 0, share * squares)  # rounding of an outlier's row may go below 0
    return centered, tl.where(keep, _inverse_root(variance + eps), 0), deviation


@_kernel
@no_type_check
def _moments_kernel(
    x, partials, count, chunk, channels, SINGLE: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr
):
    """Mean and sum of squared deviations of each column over the program's rows, about the first of them."""
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = tl.float32 if SINGLE else tl.float64
    column = tl.arange(0, BLOCK_C)[None, :]
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, count)
    first = begin.to(tl.int64) * channels + column
    shift = tl.load(x + first, column < channels, 0).to(precision)
    seen = tl.full((BLOCK_R, 1), 0, precision)
    mean = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    squares = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        value = tl.load(x + row.to(tl.int64) * channels + column, keep, 0).to(precision) - shift
        difference = tl.where(keep, value - mean, 0)
        seen += (row < end).to(precision)
        mean += difference * (1 / tl.maximum(seen, 1))
        squares += difference * (value - mean)
    program_mean = tl.sum(seen * mean, 0)[None, :] / (end - begin)
    difference = mean - program_mean
    squares = tl.sum(squares + seen * difference * difference, 0)[None, :]
    at = partials + tl.program_id(0) * 2 * channels + column
    tl.store(at, shift.to(tl.float64) + program_mean, column < channels)
    tl.store(at + channels, squares.to(tl.float64), column < channels)


@_kernel
@no_type_check
def _merge_kernel(
    partials, rows, mean, var, count, chunk, channels, programs, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The programs' moments merged by Chan's formula, in float64; and their number of rows."""
    program = tl.arange(0, BLOCK_P)[:, None]
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    keep = (program < programs) & (column < channels)
    at = partials + program * 2 * channels + column
    seen = tl.minimum(tl.maximum(count - program * chunk, 0), chunk).to(tl.float64)
    means = tl.load(at, keep, 0)
    center = tl.sum(seen * means, 0)[None, :] / count
    difference = means - center
    squares = tl.sum(tl.load(at + channels, keep, 0) + seen * difference * difference, 0)[None, :]
    tl.store(mean + column, center, column < channels)
    tl.store(var + column, squares / tl.maximum(count - 1, 1), column < channels)
    tl.store(rows, count.to(rows.dtype.element_ty))


@_kernel
@no_type_check
def _forward_kernel(
    x, y, weight, bias, rows, mean, var, count, chunk, channels,
    eps: tl.float64,  # a bare float would arrive as float32
    FORM: tl.constexpr, RELU: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = mean.dtype.element_ty
    column, scale, shift, center, spread, about, share, batch_rows, epsilon = _column_values(
        weight, bias, rows, mean, var, channels, eps, FORM, BLOCK_C
    )
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, count)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        centered, inverse, _ = _entries(value, center, spread, about, keep, share, batch_rows, channels, epsilon, FORM)
        result = centered * inverse * scale + shift
        if RELU:
            result = tl.where(result <= 0, 0, result)
        tl.store(y + at, result.to(y.dtype.element_ty), keep)


@_kernel
@no_type_check
def _sums_kernel(
    x, dy, partials, weight, bias, rows, mean, var, count, chunk, channels,
    eps: tl.float64,
    FORM: tl.constexpr, RELU: tl.constexpr, SUMS: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The program's sums over its rows of what backward needs of each column.

    They are, with g = dy weight, r = D^-1/2, h = -g (x - c) r^3 / 2: of dweight, dbias, g r, h and h (m - c).
    """
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    CROSS: tl.constexpr = FORM == "released" or FORM == "paper"  # noqa: PLR1714
    precision: tl.constexpr = mean.dtype.element_ty
    column, scale, shift, center, spread, about, share, batch_rows, epsilon = _column_values(
        weight, bias, rows, mean, var, channels, eps, FORM, BLOCK_C
    )
    dweight = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    dbias = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    if CROSS:
        scaled = tl.full((BLOCK_R, BLOCK_C), 0, precision)
        variance = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    if FORM == "paper":
        offset = tl.full((BLOCK_R, BLOCK_C), 0, precision)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, count)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        gradient = tl.load(dy + at, keep, 0).to(precision)
        centered, inverse, _ = _entries(value, center, spread, about, keep, share, batch_rows, channels, epsilon, FORM)
        normalized = centered * inverse
        if RELU:
            gradient = tl.where(normalized * scale + shift <= 0, 0, gradient)
        dweight += gradient * normalized
        dbias += gradient
        if CROSS:
            result = gradient * scale * inverse
            h = -0.5 * result * normalized * inverse
            scaled += result
            variance += h
        if FORM == "paper":
            offset += h * (center - value + centered)
    at = partials + tl.program_id(0) * SUMS * channels + column
    tl.store(at, tl.sum(dweight, 0)[None, :], column < channels)
    tl.store(at + channels, tl.sum(dbias, 0)[None, :], column < channels)
    if CROSS:
        tl.store(at + 2 * channels, tl.sum(scaled, 0)[None, :], column < channels)
        tl.store(at + 3 * channels, tl.sum(variance, 0)[None, :], column < channels)
    if FORM == "paper":
        tl.store(at + 4 * channels, tl.sum(offset, 0)[None, :], column < channels)


@_kernel
@no_type_check
def _columns_kernel(
    partials, dweight, dbias, constant, slope, weight, rows, mean, var, count, channels, programs,
    eps: tl.float64,
    FORM: tl.constexpr, SUMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The programs' sums added, in float64: dweight, dbias, and what flows through the statistics of each column.

    That is constant + slope (x - batch mean), a part of dx. One program of global normalization sees all columns.
    """
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    known = column < channels
    by_weight = tl.full((BLOCK_P, BLOCK_C), 0, tl.float64)
    by_bias = tl.full((BLOCK_P, BLOCK_C), 0, tl.float64)
    scaled = tl.full((BLOCK_P, BLOCK_C), 0, tl.float64)
    variance = tl.full((BLOCK_P, BLOCK_C), 0, tl.float64)
    offset = tl.full((BLOCK_P, BLOCK_C), 0, tl.float64)
    for start in range(0, programs, BLOCK_P):
        program = start + tl.arange(0, BLOCK_P)[:, None]
        keep = (program < programs) & known
        at = partials + program * SUMS * channels + column
        by_weight += tl.load(at, keep, 0)
        by_bias += tl.load(at + channels, keep, 0)
        if SUMS > 2:
            scaled += tl.load(at + 2 * channels, keep, 0)
            variance += tl.load(at + 3 * channels, keep, 0)
        if SUMS > 4:
            offset += tl.load(at + 4 * channels, keep, 0)
    by_weight, by_bias = tl.sum(by_weight, 0)[None, :], tl.sum(by_bias, 0)[None, :]
    scaled, variance, offset = tl.sum(scaled, 0)[None, :], tl.sum(variance, 0)[None, :], tl.sum(offset, 0)[None, :]
    tl.store(dweight + column, by_weight, known)
    tl.store(dbias + column, by_bias, known)
    batch_rows = tl.load(rows).to(tl.float64)
    share = _share(batch_rows, channels, FORM)
    scale = tl.load(weight + column, known, 0).to(tl.float64)
    means, variances = (tl.load(mean + column, known, 0).to(tl.float64), tl.load(var + column, known, 0).to(tl.float64))
    if FORM == "released":
        dmean = -batch_rows * share * scaled
        dvar = variance
    elif FORM == "paper":
        dmean = batch_rows * share * (2 * offset - scaled)
        dvar = (batch_rows - 1) * share * variance
    elif FORM == "bn":
        square = 1 / (variances * share + eps)
        dmean = -by_bias * scale * tl.sqrt(square)
        dvar = -0.5 * by_weight * scale * square * share
    else:
        center, spread = _global_moments(batch_rows, mean, var, channels, BLOCK_C)
        square = 1 / (spread + eps)
        dvariance = -0.5 * tl.sum(by_weight * scale) * square / tl.maximum(batch_rows * channels - 1, 1)
        dmean = -tl.sum(by_bias * scale) * tl.sqrt(square) / channels + 2 * batch_rows * dvariance * (means - center)
        dvar = (batch_rows - 1) * dvariance + tl.zeros_like(means)
    tl.store(constant + column, dmean / count, known)
    tl.store(slope + column, 2 * dvar / tl.maximum(count - 1, 1), known)


@_kernel
@no_type_check
def _gradient_kernel(
    x, dy, dx, batch_mean, constant, slope, weight, bias, rows, mean, var, count, chunk, channels,
    eps: tl.float64,
    FORM: tl.constexpr, RELU: tl.constexpr, FLOW: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dx, with what flows through the column statistics if FLOW."""
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = mean.dtype.element_ty
    column, scale, shift, center, spread, about, share, batch_rows, epsilon = _column_values(
        weight, bias, rows, mean, var, channels, eps, FORM, BLOCK_C
    )
    if FLOW:
        own_mean = tl.load(batch_mean + column, column < channels, 0)
        added = tl.load(constant + column, column < channels, 0)
        factor = tl.load(slope + column, column < channels, 0)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, count)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        gradient = tl.load(dy + at, keep, 0).to(precision)
        centered, inverse, deviation = _entries(
            value, center, spread, about, keep, share, batch_rows, channels, epsilon, FORM
        )
        normalized = centered * inverse
        if RELU:
            gradient = tl.where(normalized * scale + shift <= 0, 0, gradient)
        result = gradient * scale * inverse
        if FORM == "released" or FORM == "paper":  # noqa: PLR1714
            h = -0.5 * result * normalized * inverse
            through_squares = 2 * tl.sum(h, 1)[:, None] * deviation
            through_center = result - tl.sum(result, 1)[:, None]
            if FORM == "released":
                result += share * through_center + through_squares / tl.maximum(channels - 1, 1)
            else:
                through_center += 2 * tl.sum(h * (centered - deviation), 1)[:, None]
                result += share * (through_center + through_squares + result * normalized * normalized)
        if FLOW:
            result += added + factor * (value - own_mean)
        tl.store(dx + at, result.to(dx.dtype.element_ty), keep)


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _layout(x: Tensor) -> tuple[int, int, int]:
    """Number of programs, rows of each, and channels of a tile."""
    rows, channels = x.shape
    chunk = max(_MIN_ROWS, triton.cdiv(rows, _MAX_PROGRAMS))
    return triton.cdiv(rows, chunk), chunk, triton.next_power_of_2(channels)


def _over_programs(channels: int, block: int, whole: bool) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile of the kernel that adds the sums of all programs; `whole`: one program has all columns."""
    block_c = block if whole else min(block, 4)
    return (triton.cdiv(channels, block_c),), {"BLOCK_P": max(1, 1024 // block_c), "BLOCK_C": block_c}


def _columns(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: int | float | Tensor, mean: Tensor, var: Tensor
) -> list[Tensor]:
    """Weight, bias, rows, mean and variance of the columns, as the kernels read them."""
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    if not isinstance(rows, Tensor) or rows.device != x.device:
        rows = x.new_full((), float(rows), dtype=torch.float64)
    return [weight.contiguous(), bias.contiguous(), rows, *(t.to(_precision(x)).contiguous() for t in (mean, var))]


def _on_device_of(x: Tensor) -> Any:
    """Where kernels start: entering a device costs as much as a small kernel, and is seldom needed."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def column_statistics(
    x: Float[Tensor, "rows channels"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Number of rows, mean and unbiased variance (0 of less than two rows) of each column, in float32 or better."""
    x = x.contiguous()
    count, channels = x.shape
    rows, (mean, var) = x.new_empty((), dtype=_precision(x)), x.new_empty((2, channels), dtype=_precision(x))
    if count == 0:
        return rows.zero_(), mean.zero_(), var.zero_()
    programs, chunk, block = _layout(x)
    partials = x.new_empty((programs, 2, channels), dtype=torch.float64)
    block_p = triton.next_power_of_2(programs)
    block_c = min(block, 4 * _MAX_PROGRAMS // block_p)
    single = mean.dtype == torch.float32
    with _on_device_of(x):
        _moments_kernel[(programs,)](
            x, partials, count, chunk, channels, SINGLE=single, BLOCK_C=block, TILE=_TILE, num_warps=_WARPS
        )
        _merge_kernel[(triton.cdiv(channels, block_c),)](
            partials, rows, mean, var, count, chunk, channels, programs, BLOCK_P=block_p, BLOCK_C=block_c
        )
    return rows, mean, var


def forward(
    x: Float[Tensor, "rows channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    rows: int | float | Float[Tensor, ""],
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
    x = x.contiguous()
    y = torch.empty_like(x)
    count, channels = x.shape
    if count == 0:
        return y
    programs, chunk, block = _layout(x)
    columns = _columns(x, weight, bias, rows, mean, var)
    with _on_device_of(x):
        _forward_kernel[(programs,)](
            x, y, *columns, count, chunk, channels, eps,
            FORM=form, RELU=relu, BLOCK_C=block, TILE=_TILE, num_warps=_WARPS,
        )  # fmt: skip
    return y


def backward(
    dy: Float[Tensor, "rows channels"],
    x: Float[Tensor, "rows channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    rows: int | float | Float[Tensor, ""],
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
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    (count, channels), precision = x.shape, _precision(x)
    dweight, dbias, constant, slope = x.new_empty((4, channels), dtype=precision)
    if count == 0:
        return dx, dweight.zero_(), dbias.zero_()
    programs, chunk, block = _layout(x)
    weight, bias, *statistics = _columns(x, weight, bias, rows, mean, var)
    kinds = {"released": 4, "paper": 5}.get(form, 2)
    partials = x.new_empty((programs, kinds, channels), dtype=precision)
    grid, tile = _over_programs(channels, block, whole=form == "gn")
    options = {"FORM": form, "RELU": relu, "BLOCK_C": block, "TILE": _TILE, "num_warps": _WARPS}
    own_mean = statistics[1] if batch_mean is None else batch_mean.to(precision).contiguous()
    with _on_device_of(x):
        _sums_kernel[(programs,)](
            x, dy, partials, weight, bias, *statistics, count, chunk, channels, eps, SUMS=kinds, **options
        )
        _columns_kernel[grid](
            partials, dweight, dbias, constant, slope, weight, *statistics, count, channels, programs, eps,
            FORM=form, SUMS=kinds, **tile,
        )  # fmt: skip
        _gradient_kernel[(programs,)](
            x, dy, dx, own_mean, constant, slope, weight, bias, *statistics, count, chunk, channels, eps,
            FLOW=batch_mean is not None, **options,
        )  # fmt: skip
    return dx, dweight, dbias
