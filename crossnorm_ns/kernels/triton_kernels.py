"""Batch, global and cross normalization in Triton: two passes over x forward, two over (x, dy) backward, no atomics.

The formulas of the cross are those of normalization.cpp, with its letters; the other norms are (x - center) D^-1/2
with a center and a D for each column. The plain twin is crossnorm_ns/functional/normalization.py.

Each program takes one run of consecutive rows, a tile of rows by all channels at a time. Sums over rows are kept for
each program and added in float64 afterwards, so results repeat exactly. The number of rows N is read from the device:
the host never waits for it. Launches are few, since at the sizes of one training step they cost as much as the work.
"""

from __future__ import annotations

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
_TILE, _WARPS = 2048, 8


# Kernels carry `no_type_check` beside this: the runtime type checks of the tests would hide their source from Triton.
def _kernel(function: Callable) -> Any:
    sizes = [name for name in ("count", "chunk", "programs") if name in inspect.signature(function).parameters]
    return triton.jit(function, do_not_specialize=sizes)  # a batch of another size compiles nothing anew


@_kernel
@no_type_check
def _column_values(weight, bias, mean, var, column, channels, precision: tl.constexpr):
    known = column < channels
    return (
        tl.load(weight + column, known, 0).to(precision),
        tl.load(bias + column, known, 0).to(precision),
        tl.load(mean + column, known, 0),
        tl.load(var + column, known, 0),
    )


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
def _entries(x, mean, var, keep, share, rows, channels, eps, FORM: tl.constexpr):
    """x - center, D^-1/2 (0 outside of x) and x - row mean of a tile."""
    if FORM == "bn" or FORM == "gn":  # noqa: PLR1714
        return x - mean, tl.where(keep, tl.rsqrt(var * share + eps), 0), x
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
        squares = (rows - 1) * var + rows * offset * offset
        squares += row_squares + channels * row_offset * row_offset - centered * centered
        variance = tl.where(squares < 0, 0, share * squares)  # rounding of an outlier's row may go below 0
    return centered, tl.where(keep, tl.rsqrt(variance + eps), 0), deviation


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
    batch_rows = tl.load(rows).to(tl.float64)
    share = _share(batch_rows, channels, FORM).to(precision)
    batch_rows, epsilon = batch_rows.to(precision), tl.full((), eps, precision)
    column = tl.arange(0, BLOCK_C)[None, :]
    scale, shift, center, spread = _column_values(weight, bias, mean, var, column, channels, precision)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, count)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        centered, inverse, _ = _entries(value, center, spread, keep, share, batch_rows, channels, epsilon, FORM)
        result = centered * inverse * scale + shift
        if RELU:
            result = tl.where(result <= 0, 0, result)
        tl.store(y + at, result.to(y.dtype.element_ty), keep)


@_kernel
@no_type_check
def _backward_kernel(  # noqa: PLR0915
    x, dy, dx, partials, weight, bias, rows, mean, var, count, chunk, channels,
    eps: tl.float64,
    FORM: tl.constexpr, RELU: tl.constexpr, SUMS: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dx without what flows through the column statistics, and the program's sums over its rows.

    They are, with g = dy weight, r = D^-1/2, h = -g (x - c) r^3 / 2: of dweight, dbias, g r, h and h (m - c).
    """
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    CROSS: tl.constexpr = FORM == "released" or FORM == "paper"  # noqa: PLR1714
    precision: tl.constexpr = mean.dtype.element_ty
    batch_rows = tl.load(rows).to(tl.float64)
    share = _share(batch_rows, channels, FORM).to(precision)
    batch_rows, epsilon = batch_rows.to(precision), tl.full((), eps, precision)
    column = tl.arange(0, BLOCK_C)[None, :]
    scale, shift, center, spread = _column_values(weight, bias, mean, var, column, channels, precision)
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
        centered, inverse, deviation = _entries(value, center, spread, keep, share, batch_rows, channels, epsilon, FORM)
        normalized = centered * inverse
        if RELU:
            gradient = tl.where(normalized * scale + shift <= 0, 0, gradient)
        dweight += gradient * normalized
        dbias += gradient
        result = gradient * scale * inverse
        if CROSS:
            h = -0.5 * result * normalized * inverse
            scaled += result
            variance += h
            through_squares = 2 * tl.sum(h, 1)[:, None] * deviation
            through_center = result - tl.sum(result, 1)[:, None]
            if FORM == "released":
                result += share * through_center + through_squares / tl.maximum(channels - 1, 1)
            else:
                offset += h * (center - value + centered)
                through_center += 2 * tl.sum(h * (centered - deviation), 1)[:, None]
                result += share * (through_center + through_squares + result * normalized * normalized)
        tl.store(dx + at, result.to(dx.dtype.element_ty), keep)
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

    That is constant + slope (x - batch mean), to be added to dx; of global normalization nothing yet.
    """
    program = tl.arange(0, BLOCK_P)[:, None]
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    known = column < channels
    keep = (program < programs) & known
    at = partials + program * SUMS * channels + column
    by_weight = tl.sum(tl.load(at, keep, 0).to(tl.float64), 0)[None, :]
    by_bias = tl.sum(tl.load(at + channels, keep, 0).to(tl.float64), 0)[None, :]
    tl.store(dweight + column, by_weight, known)
    tl.store(dbias + column, by_bias, known)
    if FORM != "gn":
        batch_rows = tl.load(rows).to(tl.float64)
        share = _share(batch_rows, channels, FORM)
        if FORM == "bn":
            scale = tl.load(weight + column, known, 0).to(tl.float64)
            square = 1 / (tl.load(var + column, known, 0).to(tl.float64) * share + eps)
            dmean = -by_bias * scale * tl.sqrt(square)
            dvar = -0.5 * by_weight * scale * square * share
        else:
            scaled = tl.sum(tl.load(at + 2 * channels, keep, 0).to(tl.float64), 0)[None, :]
            variance = tl.sum(tl.load(at + 3 * channels, keep, 0).to(tl.float64), 0)[None, :]
            if FORM == "released":
                dmean = -batch_rows * share * scaled
                dvar = variance
            else:
                offset = tl.sum(tl.load(at + 4 * channels, keep, 0).to(tl.float64), 0)[None, :]
                dmean = batch_rows * share * (2 * offset - scaled)
                dvar = (batch_rows - 1) * share * variance
        tl.store(constant + column, dmean / count, known)
        tl.store(slope + column, 2 * dvar / tl.maximum(count - 1, 1), known)


@_kernel
@no_type_check
def _add_kernel(x, dx, batch_mean, constant, slope, count, chunk, channels, BLOCK_C: tl.constexpr, TILE: tl.constexpr):
    """dx += constant + slope (x - batch_mean): what flows through the column statistics."""
    BLOCK_R: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    precision: tl.constexpr = batch_mean.dtype.element_ty
    column = tl.arange(0, BLOCK_C)[None, :]
    center = tl.load(batch_mean + column, column < channels, 0)
    added = tl.load(constant + column, column < channels, 0)
    factor = tl.load(slope + column, column < channels, 0)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, count)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        keep = (row < end) & (column < channels)
        at = row.to(tl.int64) * channels + column
        value = tl.load(x + at, keep, 0).to(precision)
        result = tl.load(dx + at, keep, 0).to(precision) + added + factor * (value - center)
        tl.store(dx + at, result.to(dx.dtype.element_ty), keep)


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _layout(x: Tensor) -> tuple[int, int, int]:
    """Number of programs, rows of each, and channels of a tile."""
    rows, channels = x.shape
    chunk = max(_MIN_ROWS, triton.cdiv(rows, _MAX_PROGRAMS))
    return triton.cdiv(rows, chunk), chunk, triton.next_power_of_2(channels)


def _over_programs(programs: int, channels: int, block: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile of the kernels that add what all programs found."""
    block_p = triton.next_power_of_2(programs)
    block_c = min(block, 4 * _MAX_PROGRAMS // block_p)
    return (triton.cdiv(channels, block_c),), {"BLOCK_P": block_p, "BLOCK_C": block_c}


def _global_statistics(rows: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of all entries, in float64."""
    rows, mean, var = rows.double(), mean.double(), var.double()
    center = mean.mean()
    squared_deviations = (rows - 1) * var.sum() + rows * (mean - center).square().sum()
    return center, squared_deviations / (rows * len(mean) - 1).clamp_min(1)


def _global_gradients(
    dweight: Tensor, dbias: Tensor, weight: Tensor, rows: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the column statistics `mean` and `var`, (channels,) each, of global normalization."""
    rows, center, variance = rows.double(), *_global_statistics(rows, mean, var)
    inverse = torch.rsqrt(variance + eps)
    dcenter = -(dbias.double() * weight).sum() * inverse
    dvariance = -0.5 * (dweight.double() * weight).sum() * inverse.square()
    share = dvariance / (rows * len(mean) - 1).clamp_min(1)
    dvar = (share * (rows - 1)).repeat(len(mean))
    return dcenter / len(mean) + 2 * rows * share * (mean.double() - center), dvar


def _columns(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    form: Form,
    rows: int | float | Tensor,
    mean: Tensor,
    var: Tensor,
) -> list[Tensor]:
    """Weight, bias, rows, center and variance of the columns, as the kernels read them."""
    channels, precision = x.shape[1], _precision(x)
    weight = x.new_ones(channels) if weight is None else weight
    bias = x.new_zeros(channels) if bias is None else bias
    if not isinstance(rows, Tensor) or rows.device != x.device:
        rows = x.new_full((), float(rows), dtype=torch.float64)
    if form == "gn":
        mean, var = (value.to(precision).expand(channels) for value in _global_statistics(rows, mean, var))
    return [
        weight.contiguous(),
        bias.contiguous(),
        rows,
        mean.to(precision).contiguous(),
        var.to(precision).contiguous(),
    ]


def column_statistics(
    x: Float[Tensor, "rows channels"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Number of rows, mean and unbiased variance (0 of less than two rows) of each column, in float32 or better."""
    x = x.contiguous()
    count, channels = x.shape
    rows, mean, var = (x.new_empty(shape, dtype=_precision(x)) for shape in ((), channels, channels))
    if count == 0:
        return rows.zero_(), mean.zero_(), var.zero_()
    programs, chunk, block = _layout(x)
    partials = x.new_empty((programs, 2, channels), dtype=torch.float64)
    grid, tile = _over_programs(programs, channels, block)
    single = mean.dtype == torch.float32
    with torch.cuda.device_of(x):
        _moments_kernel[(programs,)](
            x, partials, count, chunk, channels, SINGLE=single, BLOCK_C=block, TILE=_TILE, num_warps=_WARPS
        )
        _merge_kernel[grid](partials, rows, mean, var, count, chunk, channels, programs, **tile)
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
    columns = _columns(x, weight, bias, form, rows, mean, var)
    with torch.cuda.device_of(x):
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
    dweight, dbias, constant, slope = (x.new_empty(channels, dtype=precision) for _ in range(4))
    if count == 0:
        return dx, dweight.zero_(), dbias.zero_()
    programs, chunk, block = _layout(x)
    weight, bias, rows, center, spread = _columns(x, weight, bias, form, rows, mean, var)
    kinds = {"released": 4, "paper": 5}.get(form, 2)
    partials = x.new_empty((programs, kinds, channels), dtype=precision)
    grid, tile = _over_programs(programs, channels, block)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            x, dy, dx, partials, weight, bias, rows, center, spread, count, chunk, channels, eps,
            FORM=form, RELU=relu, SUMS=kinds, BLOCK_C=block, TILE=_TILE, num_warps=_WARPS,
        )  # fmt: skip
        _columns_kernel[grid](
            partials, dweight, dbias, constant, slope, weight, rows, center, spread, count, channels, programs, eps,
            FORM=form, SUMS=kinds, **tile,
        )  # fmt: skip
        if batch_mean is not None:
            if form == "gn":
                dmean, dvar = _global_gradients(dweight, dbias, weight, rows, mean, var, eps)
                constant, slope = (dmean / count).to(precision), (2 * dvar / max(count - 1, 1)).to(precision)
            batch_mean = batch_mean.to(precision).contiguous()
            _add_kernel[(programs,)](
                x, dx, batch_mean, constant, slope, count, chunk, channels, BLOCK_C=block, TILE=_TILE, num_warps=_WARPS
            )
    return dx, dweight, dbias
