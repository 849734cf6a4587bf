"""The kernels as operators of torch, which dispatches by device and which `torch.compile` keeps whole.

C++ on the CPU (normalization.cpp registers itself when it is loaded), Triton on CUDA devices. They have no derivatives
of their own: those are the matter of `crossnorm_ns.functional.normalization`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("crossnorm_ns", "DEF")
_FORMULA = "Tensor? weight, Tensor? bias, Tensor rows, Tensor mean, Tensor var"
_OPTIONS = "str form, float eps, bool relu"
_LIBRARY.define("column_statistics(Tensor x) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"normalize(Tensor x, {_FORMULA}, {_OPTIONS}) -> Tensor")
_LIBRARY.define(
    f"normalize_backward(Tensor dy, Tensor x, {_FORMULA}, Tensor? batch_mean, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"spatial_backward(Tensor d_dx, Tensor dy, Tensor x, {_FORMULA}, Tensor? batch_mean, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)"
)

column_statistics = torch.ops.crossnorm_ns.column_statistics.default
normalize = torch.ops.crossnorm_ns.normalize.default
normalize_backward = torch.ops.crossnorm_ns.normalize_backward.default
spatial_backward = torch.ops.crossnorm_ns.spatial_backward.default


def _of_columns(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.register_fake("crossnorm_ns::column_statistics", lib=_LIBRARY)
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = _of_columns(x)
    return mean.new_empty(()), mean, torch.empty_like(mean)


@torch.library.register_fake("crossnorm_ns::normalize", lib=_LIBRARY)
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("crossnorm_ns::normalize_backward", lib=_LIBRARY)
def _(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dweight = _of_columns(x)
    return x.new_empty(x.shape), dweight, torch.empty_like(dweight)


@torch.library.register_fake("crossnorm_ns::spatial_backward", lib=_LIBRARY)
def _(d_dx: Tensor, dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), _of_columns(x)


def _triton() -> Any:
    from crossnorm_ns.kernels import triton_kernels

    return triton_kernels


def column_statistics_by_triton(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `column_statistics` for CUDA devices."""
    return _triton().column_statistics(x)


def normalize_by_triton(x: Tensor, weight: Any, bias: Any, rows: Tensor, *statistics_and_options: Any) -> Tensor:
    """The operator `normalize` for CUDA devices."""
    return _triton().forward(x, weight, bias, rows, *statistics_and_options)


def normalize_backward_by_triton(
    dy: Tensor, x: Tensor, weight: Any, bias: Any, rows: Tensor, *statistics_and_options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `normalize_backward` for CUDA devices."""
    return _triton().backward(dy, x, weight, bias, rows, *statistics_and_options)


_LIBRARY.impl("column_statistics", column_statistics_by_triton, "CUDA")
_LIBRARY.impl("normalize", normalize_by_triton, "CUDA")
_LIBRARY.impl("normalize_backward", normalize_backward_by_triton, "CUDA")
