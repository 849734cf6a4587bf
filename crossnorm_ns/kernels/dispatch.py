"""Chooses the kernel of a call: C++ on the CPU where a compiler is at hand, else the plain formula.

`CROSSNORM_KERNELS=plain` in the environment switches the compiled kernels off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossnorm_ns.kernels.extension import cpu_extension


def supports(x: Tensor) -> bool:
    """Whether a compiled kernel takes this tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and cpu_extension() is not None


def column_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each column of a (rows, channels) tensor that `supports` accepts."""
    extension = cpu_extension()
    assert extension is not None
    mean, var = extension.column_statistics(x)
    return mean, var


def cross_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int | float | Tensor,
    mean: Tensor,
    var: Tensor,
    paper: bool,
    eps: float,
) -> Tensor:
    """Cross normalization of (rows, channels) with the given column statistics."""
    extension = cpu_extension()
    assert extension is not None
    return extension.forward(x, weight, bias, float(rows), mean.to(x.dtype), var.to(x.dtype), paper, eps)


def cross_norm_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rows: int | float | Tensor,
    mean: Tensor,
    var: Tensor,
    batch_mean: Tensor | None,
    paper: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `batch_mean` lets them flow through the column statistics of the batch."""
    extension = cpu_extension()
    assert extension is not None
    own_mean = None if batch_mean is None else batch_mean.to(x.dtype)
    dx, dweight, dbias = extension.backward(
        grad_output, x, weight, float(rows), mean.to(x.dtype), var.to(x.dtype), own_mean, paper, eps
    )
    return dx, dweight, dbias
