"""Row and column statistics of a batch of features, and their exact merging.

Columns are features, rows are the points of the batch. Variances are unbiased unless a name says otherwise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crossnorm_ns import kernels
from crossnorm_ns.kernels import KernelChoice


class ColumnStatistics(NamedTuple):
    """What a norm needs to know of a whole batch, or of a population in its place.

    Attributes:
        rows: number of points N that a batch has; a number or a scalar tensor.
        mean: mean of each feature.
        var: unbiased variance of each feature.
    """

    rows: int | float | Tensor
    mean: Float[Tensor, " channels"]
    var: Float[Tensor, " channels"]


def as_rows(x: Float[Tensor, "*batch channels"], kernel: KernelChoice = "plain") -> Float[Tensor, "rows channels"]:
    """All leading dimensions as one, in float32 or better: what statistics are computed of.

    Half precision stays where a kernel of the CUDA device reads it, which computes in float32 by itself.
    """
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.element_size() >= 4 or (rows.is_cuda and kernels.chooses_kernel(rows, kernel)):
        return rows
    return rows.float()


def like(rows: Tensor, x: Tensor) -> Tensor:
    """Rows in the shape and the type of x."""
    rows = rows if x.dim() == 2 else rows.reshape(x.shape)
    return rows if rows.dtype == x.dtype else rows.to(x.dtype)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def column_statistics(
    x: Float[Tensor, "rows channels"],
    process_group=None,
    kernel: KernelChoice = "auto",
    known: ColumnStatistics | None = None,
) -> ColumnStatistics:
    """Statistics of each feature over the batch, differentiable (twice) in x.

    Args:
        x: features, at least one row. The variance of a single row is 0.
        process_group: reduces over the processes of this group, as if their rows were one batch; every process of
            the group must call, and one without rows contributes nothing.
        kernel: "compiled", "plain" or "auto"; where x requires gradients it is always the plain formula.
        known: the same statistics from an earlier call: processes then exchange nothing but gradients.
    """
    if process_group is not None:
        return _reduced_column_statistics(_exact(x), process_group, known)
    rows = x.shape[0]
    if not x.requires_grad and not torch.compiler.is_exporting() and kernels.chooses_kernel(x, kernel):
        return ColumnStatistics(*kernels.column_statistics(x))
    var, mean = torch.var_mean(_exact(x), dim=0, correction=min(1, rows - 1))
    return ColumnStatistics(rows, mean, var)


class _Sum(torch.autograd.Function):
    """Sum over the processes of a group, whose value may be known; the gradients of all processes are summed, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, process_group: Any, known: Tensor | None) -> Tensor:
        ctx.process_group = process_group
        if known is not None:
            return known.clone()
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        return _Sum.apply(grad_outputs[0], ctx.process_group, None), None, None


def _reduced_column_statistics(
    x: Float[Tensor, "rows channels"], process_group: Any, known: ColumnStatistics | None
) -> ColumnStatistics:
    # A process without rows takes part with zeros, so that no other waits for it, forward or backward.
    if known is None:
        total = _Sum.apply(torch.cat([x.new_tensor([float(x.shape[0])]), x.sum(0)]), process_group, None)
        rows = total[0].detach()
        mean = total[1:] / rows.clamp_min(1)
    else:
        rows = torch.as_tensor(known.rows)
        mean = _Sum.apply(x.sum(0) / rows.clamp_min(1), process_group, known.mean)
    own_share = (x - mean).square().sum(0) / (rows - 1).clamp_min(1)
    return ColumnStatistics(rows, mean, _Sum.apply(own_share, process_group, None if known is None else known.var))


def renormalised(running: ColumnStatistics, batch: ColumnStatistics) -> ColumnStatistics:
    """Values of the running statistics with the gradients of the batch's, for renormalised training."""
    return ColumnStatistics(
        running.rows,
        running.mean + (batch.mean - batch.mean.detach()),
        running.var + (batch.var - batch.var.detach()),
    )


class PopulationMoments:
    """Exact statistics over many batches: (count, mean, sum of squared deviations), merged by Chan's formula.

    Accumulates in float64, so the result does not depend on how the rows are split into batches.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.batches = 0
        self.mean: Tensor | None = None
        self.squared_deviations: Tensor | None = None

    def update(self, statistics: ColumnStatistics) -> None:
        """Merges one batch's statistics."""
        count = float(statistics.rows)
        if count == 0:
            return
        mean = statistics.mean.to("cpu", torch.float64)  # not every device has float64
        squared_deviations = statistics.var.to("cpu", torch.float64) * (count - 1)
        self.batches += 1
        if self.mean is None or self.squared_deviations is None:
            self.count, self.mean, self.squared_deviations = count, mean, squared_deviations
            return
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.squared_deviations = (
            self.squared_deviations + squared_deviations + difference.square() * (self.count * count / total)
        )
        self.count = total

    def statistics(self) -> ColumnStatistics:
        """Population mean and variance, with the mean number of rows of a batch: what training saw as N."""
        if self.mean is None or self.squared_deviations is None:
            raise ValueError("no rows were seen: the statistics of nothing are undefined")
        return ColumnStatistics(
            self.count / self.batches, self.mean, self.squared_deviations / max(self.count - 1, 1.0)
        )
