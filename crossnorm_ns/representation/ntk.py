"""The neural tangent kernel of a network on a whole batch.

Source: the paper, section 3.2; Jacot et al., "Neural Tangent Kernel" (NeurIPS 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from crossnorm_ns.norms.base import norms_of
from crossnorm_ns.representation.errors import RepresentationError

_BLOCK_VALUES = 2**22  # of the gradients of single samples that are held at once


def _copy_in_training(network: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, bool]:
    """A copy in train mode, and whether its norms couple the samples.

    Raises:
        ValueError: a norm's gradients are not those of the function that it computes.
    """
    norms = [norm for norm in norms_of(network) if norm.formula.uses_columns]
    if any(norm.statistics == "renorm" for norm in norms):
        raise ValueError("batch-renormalised norms have no kernel: their gradients are not those of their values")
    return copy.deepcopy(network).to(dtype).train().requires_grad_(), bool(norms)


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


def _rows_of_batch(outputs: Float[Tensor, " outputs"], chosen: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Rows of the Jacobian one by one, each a vector-Jacobian product of the whole batch with one output.

    A loop: vmap would need the norms as plain formulas, which takes three times as long as their kernels one by one.
    """
    one_hot = torch.zeros_like(outputs)
    for i in range(outputs.numel()):
        one_hot[i] = 1
        row = torch.autograd.grad(outputs, list(chosen.values()), one_hot, retain_graph=True)
        one_hot[i] = 0
        yield {name: gradient[None] for name, gradient in zip(chosen, row, strict=True)}


def _rows_of_samples(
    network: nn.Module, chosen: dict[str, Tensor], points: Float[Tensor, "samples in_dim"], num_outputs: int
) -> Iterator[dict[str, Tensor]]:
    """The same, in blocks, where no sample depends on another: each row is the gradient of one sample alone."""
    others = {name: value.detach() for name, value in network.named_parameters() if name not in chosen}
    chosen = {name: value.detach() for name, value in chosen.items()}

    def outputs_of(subset: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(network, {**others, **subset}, (point[None],)).flatten()

    size = num_outputs * sum(value.numel() for value in chosen.values())
    for some in points.split(max(1, _BLOCK_VALUES // size)):
        rows = vmap(jacrev(outputs_of), in_dims=(None, 0))(chosen, some)
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
    and mapping over single ones would change the statistics. Networks without such norms are mapped over samples by
    torch.func, which gives the same rows sooner. Rows are ordered sample by sample, columns as the parameters are.

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
    module, coupled = _copy_in_training(network, dtype)
    points = points.detach().to(dtype)
    with torch.enable_grad():
        outputs = module(points).flatten()
    number = outputs.numel()
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    for group in _column_groups(parameters, total if max_values is None else max(1, max_values // number)):
        chosen = {name: parameters[name] for name in group}
        if coupled:
            rows = _rows_of_batch(outputs, chosen)
        else:
            rows = _rows_of_samples(module, chosen, points, number // points.shape[0])
        jacobian = points.new_empty(number, sum(part.stop - part.start for part in group.values()))
        start = 0
        for some in rows:
            flat = torch.cat([some[name].flatten(1)[:, part] for name, part in group.items()], dim=1)
            jacobian[start : start + flat.shape[0]] = flat
            start += flat.shape[0]
        yield jacobian
        del jacobian  # before the next one is made


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
        del jacobian  # the generator makes the next one while this loop waits
    assert kernel is not None
    return kernel


def kernel_eigenvalues(kernel: Float[Tensor, "outputs outputs"]) -> Float[Tensor, " outputs"]:
    """Eigenvalues in float64, the largest first. A kernel has none below 0; what rounding puts there is set to 0.

    Raises:
        RepresentationError: it holds NaN or infinite values.
    """
    if not torch.isfinite(kernel).all():
        raise RepresentationError("the kernel holds NaN or infinite values: the network diverged, or its weights did")
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
