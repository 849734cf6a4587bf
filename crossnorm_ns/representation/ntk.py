"""The neural tangent kernel of a network on a whole batch.

Source: the paper, section 3.2; Jacot et al., "Neural Tangent Kernel" (NeurIPS 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from crossnorm_ns.functional.statistics import column_statistics
from crossnorm_ns.norms.base import Norm

_BLOCK_VALUES = 2**22  # features of one layer that a block of rows keeps at once


class _BatchFormula(nn.Module):
    """A norm's function of a whole training batch and nothing else: no stored statistics, no kernels of its own.

    torch.func cannot see through the norms' kernels; this is the formula that they compute, in plain torch.
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.formula, self.weight, self.bias = norm.formula, norm.weight, norm.bias

    def forward(self, x: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
        stats = column_statistics(x, kernel="plain") if self.formula.uses_columns else None
        center, inverse_std = self.formula.moments(x, stats)
        y = (x - center) * inverse_std
        y = y if self.weight is None else y * self.weight
        y = y if self.bias is None else y + self.bias
        return y.relu() if self.formula.relu else y


def _function_of_the_batch(network: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, bool]:
    """A copy whose norms are formulas of the batch, and whether they couple the samples."""
    coupled = False
    copied = copy.deepcopy(network).to(dtype).train()
    for part in list(copied.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, Norm):
                if child.statistics == "renorm" and child.formula.uses_columns:
                    raise ValueError("the kernel of batch-renormalised norms is not defined by one batch: use 'batch'")
                coupled |= child.formula.uses_columns
                setattr(part, name, _BatchFormula(child))
    return copied, coupled


def _column_groups(parameters: dict[str, Tensor], size: int) -> Iterator[dict[str, slice]]:
    """Splits all parameters, flattened one behind the other, into groups of at most `size` values."""
    group: dict[str, slice] = {}
    free = size
    for name, parameter in parameters.items():
        start = 0
        while start < parameter.numel():
            stop = min(parameter.numel(), start + free)
            group[name] = slice(start, stop)
            free -= stop - start
            start = stop
            if free == 0:
                yield group
                group, free = {}, size
    if group:
        yield group


def _rows_of_batch(
    function: Callable[[dict[str, Tensor]], Tensor], chosen: dict[str, Tensor], block: int
) -> Iterator[dict[str, Tensor]]:
    """Rows of the Jacobian in blocks, each a vector-Jacobian product of the whole batch with one output."""
    outputs, pull_back, *_ = vjp(function, chosen)
    for start in range(0, outputs.numel(), block):
        number = min(block, outputs.numel() - start)
        one_hot = outputs.new_zeros(number, outputs.numel())
        one_hot[:, start : start + number].fill_diagonal_(1)
        yield vmap(lambda row: pull_back(row)[0])(one_hot)


def _rows_of_samples(
    function: Callable[[dict[str, Tensor], Tensor], Tensor], chosen: dict[str, Tensor], points: Tensor, block: int
) -> Iterator[dict[str, Tensor]]:
    """The same where no sample depends on another: each row is the gradient of one sample alone."""
    for some in points.split(block):
        rows = vmap(jacrev(function), in_dims=(None, 0))(chosen, some[:, None])
        yield {name: values.flatten(0, 1) for name, values in rows.items()}


def jacobian_blocks(
    network: nn.Module,
    points: Float[Tensor, "samples in_dim"],
    *,
    dtype: torch.dtype = torch.float64,
    max_values: int | None = None,
) -> Iterator[Float[Tensor, "outputs columns"]]:
    """The Jacobian of all outputs in train mode by the parameters, some columns (parameters) at a time.

    Each row is a vector-Jacobian product of the whole batch: batch, global and cross normalization couple the samples,
    and mapping over single ones would change the statistics. Networks without such norms are mapped over samples,
    which gives the same rows sooner. Rows are ordered sample by sample, columns as the parameters are.

    Args:
        network: stays as it is, its stored statistics included.
        points: the batch.
        dtype: in which the network is evaluated.
        max_values: number of values in a block; None gives the whole Jacobian at once.

    Raises:
        ValueError: the norms are batch-renormalised, or points are no matrix.
    """
    if points.dim() != 2 or points.shape[0] == 0:
        raise ValueError(f"points must be a (samples, in_dim) matrix with at least one row, got {tuple(points.shape)}")
    module, coupled = _function_of_the_batch(network, dtype)
    points = points.detach().to(dtype)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    with torch.no_grad():
        outputs = module(points).numel()
    total = sum(parameter.numel() for parameter in parameters.values())
    columns = total if max_values is None else max(1, max_values // outputs)
    widest = max(parameter.shape[0] for parameter in parameters.values())
    for group in _column_groups(parameters, columns):
        chosen = {name: parameters[name] for name in group}
        others = {name: value for name, value in parameters.items() if name not in group}

        def function(
            subset: dict[str, Tensor], at: Tensor = points, others: dict[str, Tensor] = others
        ) -> Tensor:
            return functional_call(module, {**others, **subset}, (at,)).flatten()

        if coupled:
            block = max(1, _BLOCK_VALUES // (points.shape[0] * widest))
            rows = _rows_of_batch(function, chosen, block)
        else:
            size = sum(parameter.numel() for parameter in chosen.values()) * (outputs // points.shape[0])
            rows = _rows_of_samples(function, chosen, points, max(1, _BLOCK_VALUES // size))
        jacobian = points.new_empty(outputs, sum(part.stop - part.start for part in group.values()))
        start = 0
        for some in rows:
            flat = torch.cat([some[name].flatten(1)[:, part] for name, part in group.items()], dim=1)
            jacobian[start : start + flat.shape[0]] = flat
            start += flat.shape[0]
        yield jacobian


def neural_tangent_kernel(
    network: nn.Module,
    points: Float[Tensor, "samples in_dim"],
    *,
    dtype: torch.dtype = torch.float64,
    memory: int = 2**30,
) -> Float[Tensor, "outputs outputs"]:
    """J J^T of the network in train mode on this batch, J being the Jacobian of all outputs by all parameters.

    Summed over parameters, of which only so many are taken at a time that their part of J fits into `memory`.

    Args:
        network: stays as it is.
        points: the batch.
        dtype: in which the network is evaluated; the kernel is float64.
        memory: bytes for a part of the Jacobian. The kernel itself, 8 outputs^2 bytes, comes on top.

    Raises:
        ValueError: as `jacobian_blocks`.
    """
    kernel: Tensor | None = None
    max_values = memory // torch.empty(0, dtype=dtype).element_size()
    for jacobian in jacobian_blocks(network, points, dtype=dtype, max_values=max_values):
        if kernel is None:
            kernel = jacobian.new_zeros(jacobian.shape[0], jacobian.shape[0], dtype=torch.float64)
        if dtype == torch.float64:
            kernel.addmm_(jacobian, jacobian.T)
        else:
            kernel += jacobian @ jacobian.T
    assert kernel is not None
    return kernel


def kernel_eigenvalues(kernel: Float[Tensor, "outputs outputs"]) -> Float[Tensor, " outputs"]:
    """Eigenvalues in float64, the largest first. A kernel has none below 0; what rounding puts there is set to 0."""
    return torch.linalg.eigvalsh(kernel.double()).flip(0).clamp_min(0)


def predict_residuals(
    kernel: Float[Tensor, "outputs outputs"],
    residuals: Float[Tensor, " outputs"],
    learning_rate: float,
    steps: int,
) -> Float[Tensor, " outputs"]:
    """Residuals (prediction - target) of the linearised network after gradient descent on half their squared sum.

    In the kernel's eigenvectors each shrinks by (1 - learning_rate * eigenvalue) a step (paper, equations 3 and 4, in
    discrete time).

    Args:
        kernel: at initialisation.
        residuals: at initialisation, in the order of the kernel's rows.
        learning_rate: of gradient descent; stable below 2 / largest eigenvalue.
        steps: how many.
    """
    eigenvalues, vectors = torch.linalg.eigh(kernel.double())
    shrink = (1 - learning_rate * eigenvalues) ** steps
    return vectors @ (shrink * (vectors.T @ residuals.double()))


