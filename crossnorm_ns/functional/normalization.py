"""Batch, layer, global and cross normalization as pure functions of a batch of features.

Every norm is y = (x - center) * inverse_std * weight + bias; a norm is its `center` and `inverse_std`, functions of
the rows of x (exact, one sample each) and of the column statistics (the batch's, or stored ones).

Sources: the paper, section 4 and equations of 4.3 for the cross; github.com/Aiolus-X/Norm-INR for the released forms.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossnorm_ns import kernels
from crossnorm_ns.functional.statistics import ColumnStatistics, as_rows, column_statistics, like, renormalised
from crossnorm_ns.kernels import KernelChoice

Variant = Literal["released", "paper"]
NormName = Literal["bn", "ln", "gn", "cn"]


def _row_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each row, shape (rows, 1); the variance of a single channel is 0."""
    var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=min(1, x.shape[-1] - 1))
    return mean, var


def _batch_moments(stats: ColumnStatistics, eps: float) -> tuple[Tensor, Tensor]:
    biased_var = stats.var * ((stats.rows - 1) / stats.rows)
    return stats.mean, torch.rsqrt(biased_var + eps)


def _layer_moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return mean, torch.rsqrt(var + eps)


def global_mean_and_variance(stats: ColumnStatistics) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and unbiased variance of all entries of a batch: what global normalization needs of its columns."""
    channels = stats.mean.shape[0]
    mean = stats.mean.mean()
    squared_deviations = (stats.rows - 1) * stats.var.sum() + stats.rows * (stats.mean - mean).square().sum()
    degrees = stats.rows * channels - 1
    degrees = degrees.clamp_min(1) if isinstance(degrees, Tensor) else max(degrees, 1)
    return mean, squared_deviations / degrees


def _global_moments(stats: ColumnStatistics, eps: float) -> tuple[Tensor, Tensor]:
    mean, var = global_mean_and_variance(stats)
    return mean, torch.rsqrt(var + eps)


def _released_cross_moments(x: Tensor, stats: ColumnStatistics, eps: float) -> tuple[Tensor, Tensor]:
    """(row sum + column sum - x) / (N + C), written about the column's mean so that a large mean cancels exactly."""
    rows, mean, var = stats
    channels = x.shape[-1]
    row_mean, row_var = _row_statistics(x)
    center = mean + (channels * (row_mean - mean) - x) / (rows + channels)
    return center, torch.rsqrt(var + row_var + eps)


def _paper_cross_moments(x: Tensor, stats: ColumnStatistics, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the N + C - 1 values in the row and the column of each entry."""
    rows, mean, var = stats
    channels = x.shape[-1]
    row_var, row_mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    size = rows + channels - 1
    center = mean + (channels * (row_mean - mean) - (x - mean)) / size
    in_row = channels * (row_var + (row_mean - center).square()) - (x - center).square()
    in_column = (rows - 1) * var + rows * (mean - center).square()
    var = ((in_row + in_column) / size).clamp_min(0)  # rounding of an outlier's row may fall below
    return center, torch.rsqrt(var + eps)


@dataclass(frozen=True)
class Formula:
    """Which norm: its name, the variant (of the cross alone), the epsilon under the root, whether a ReLU follows."""

    name: NormName
    variant: Variant = "released"
    eps: float = 1e-5
    relu: bool = False

    def __post_init__(self) -> None:
        if self.name not in ("bn", "ln", "gn", "cn"):
            raise ValueError(f"unknown norm {self.name!r}: choose one of bn, ln, gn, cn")
        if self.variant not in ("released", "paper"):
            raise ValueError(f"unknown variant {self.variant!r}: choose 'released' or 'paper'")

    @property
    def uses_columns(self) -> bool:
        """Whether other samples of the batch play a part; layer normalization looks at one row alone."""
        return self.name != "ln"

    def moments(self, x: Float[Tensor, "rows channels"], stats: ColumnStatistics | None) -> tuple[Tensor, Tensor]:
        """Center and inverse standard deviation, each broadcastable to x."""
        if self.name == "ln":
            return _layer_moments(x, self.eps)
        assert stats is not None
        if self.name == "bn":
            return _batch_moments(stats, self.eps)
        if self.name == "gn":
            return _global_moments(stats, self.eps)
        moments = _released_cross_moments if self.variant == "released" else _paper_cross_moments
        return moments(x, stats, self.eps)


def _apply(
    formula: Formula, x: Tensor, weight: Tensor | None, bias: Tensor | None, stats: ColumnStatistics | None
) -> Tensor:
    """The formula itself: the plain twin of every kernel. Shapes (rows, channels) -> (rows, channels)."""
    center, inverse_std = formula.moments(x, stats)
    return _finish(formula, (x - center) * inverse_std, weight, bias)


def _finish(formula: Formula, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.relu() if formula.relu else y


def _kernel_arguments(formula: Formula, x: Tensor, stats: ColumnStatistics) -> tuple[tuple, tuple]:
    """Column statistics and options as the kernels take them."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = stats.rows if isinstance(stats.rows, Tensor) else torch.tensor(stats.rows, dtype=dtype, device="cpu")
    form = formula.variant if formula.name == "cn" else formula.name
    columns = _typed(rows, dtype), _typed(stats.mean, dtype), _typed(stats.var, dtype)
    return columns, (form, formula.eps, formula.relu)


def _typed(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)


def _backward_arguments(
    formula: Formula,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: ColumnStatistics,
    batch: ColumnStatistics | None,
) -> tuple:
    """What the kernels of backward passes take behind the gradients."""
    columns, options = _kernel_arguments(formula, x, stats)
    batch_mean = None if batch is None else _typed(batch.mean, columns[1].dtype)
    return x, weight, bias, *columns, batch_mean, *options


def _of_given(gradients: Any, weight: Tensor | None, bias: Tensor | None) -> list[Tensor | None]:
    """Gradients of x, weight and bias, where these are not None."""
    dx, dweight, dbias = gradients
    return [dx, None if weight is None else dweight, None if bias is None else dbias]


class _SpatialGradient(torch.autograd.Function):
    """The backward pass of `_Normalize` that builds a graph, uncoupled, with derivatives in closed form.

    Values are those of constant columns; derivatives see how the columns depend on x. Where the gradients of weight
    and bias are differentiated, or a graph of the derivatives is built, the plain formula takes over.
    """

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        formula: Formula,
        stats: ColumnStatistics,
        batch: ColumnStatistics | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.normalize_backward(dy, *_backward_arguments(formula, x, weight, bias, stats, None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        dy, x, weight, bias, ctx.formula, ctx.stats, ctx.batch = inputs
        ctx.coupled, ctx.process_group = False, None
        ctx.save_for_backward(dy, x, weight, bias)
        ctx.set_materialize_grads(False)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple:
        dy, x, weight, bias = ctx.saved_tensors
        d_dx = grad_outputs[0]
        if d_dx is not None and grad_outputs[1:] == (None, None) and not torch.is_grad_enabled():
            arguments = _backward_arguments(ctx.formula, x, weight, bias, ctx.stats, ctx.batch)
            d_dy, dx, dweight = kernels.spatial_backward(d_dx, dy, *arguments)
            return d_dy, dx, None if weight is None else dweight, None, None, None, None
        graph = torch.is_grad_enabled()

        def start(t: Tensor) -> Tensor:
            return t.view_as(t) if graph else t.detach().requires_grad_()

        with torch.enable_grad():
            own_dy, own_x = start(dy), start(x)
            own_weight, own_bias = (None if t is None else start(t) for t in (weight, bias))
            inputs = [own_dy, own_x, own_weight, own_bias]
            gradients = _gradients_by_formula(ctx, own_dy, own_x, own_weight, own_bias)
            known = [(z, dz) for z, dz in zip(gradients, grad_outputs, strict=True) if z is not None and dz is not None]
            if not known:
                return (None,) * 7
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            outputs, upstream = zip(*known, strict=True)
            found = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=graph, allow_unused=True))
        grads = [next(found) if t is not None and t.requires_grad else None for t in inputs]
        return *grads, None, None, None


# torch binds the arguments to the signature in each call, and would work it out each time.
_SpatialGradient.forward.__signature__ = inspect.signature(_SpatialGradient.forward)  # type: ignore[attr-defined]


class _Normalize(torch.autograd.Function):
    """A norm that keeps x alone for the backward pass.

    `stats` are the values that normalize. `batch` are the statistics of x itself where gradients flow through them
    (None: the statistics are constants, as in evaluation).

    A backward pass that builds a graph is a spatial gradient (a normal, the eikonal term): there the column statistics
    count as constants, so that no gradient leaks from one sample to another, while the second pass, to the
    parameters, sees how they depend on everything. `coupled` switches that off.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        formula: Formula,
        stats: ColumnStatistics,
        batch: ColumnStatistics | None,
        coupled: bool,
        process_group: Any,
        by_kernel: bool,
    ) -> Tensor:
        if by_kernel:
            columns, options = _kernel_arguments(formula, x, stats)
            return kernels.normalize(x, weight, bias, *columns, *options)
        return _apply(formula, x, weight, bias, stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, ctx.formula, ctx.stats, ctx.batch, ctx.coupled, ctx.process_group, ctx.by_kernel = inputs
        ctx.save_for_backward(x, weight, bias)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        (grad_output,) = grad_outputs
        x, weight, bias = ctx.saved_tensors
        by_kernel = ctx.by_kernel and ctx.process_group is None
        if by_kernel and not torch.is_grad_enabled():
            arguments = _backward_arguments(ctx.formula, x, weight, bias, ctx.stats, ctx.batch)
            grads = _of_given(kernels.normalize_backward(grad_output, *arguments), weight, bias)
        elif by_kernel and x.device.type == "cpu" and (ctx.batch is None or not ctx.coupled):
            grads = _of_given(
                _SpatialGradient.apply(grad_output, x, weight, bias, ctx.formula, ctx.stats, ctx.batch), weight, bias
            )
        else:
            grads = _gradients_by_formula(ctx, grad_output, x, weight, bias)
        return (*grads, *[None] * 6)


_Normalize.forward.__signature__ = inspect.signature(_Normalize.forward)  # type: ignore[attr-defined]


class _NormalizeEagerly(_Normalize):
    """The same outside of functorch's transforms (`torch.func`), whose way in takes longer than a small kernel."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # type: ignore[override]
        _Normalize.setup_context(ctx, inputs, inputs[0])
        return _Normalize.forward(*inputs)

    setup_context = torch.autograd.Function.setup_context  # tells torch that forward takes the context


_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


# A compiler that traced it would lose the distinction between spatial gradients and others: it breaks its graph here.
@torch.compiler.disable
def _normalize_uncompiled(*inputs: Any) -> Any:
    return _Normalize.apply(*inputs)


def _normalize(*inputs: Any) -> Any:
    if torch.compiler.is_compiling():
        return _normalize_uncompiled(*inputs)
    return (_Normalize if _transforms_active() else _NormalizeEagerly).apply(*inputs)


def _statistics_with_gradients(
    stats: ColumnStatistics, batch: ColumnStatistics | None, source: Tensor, process_group: Any
) -> ColumnStatistics:
    """The statistics that normalize, as functions of `source` unless they are constants."""
    if batch is None:
        return stats
    own = column_statistics(source, process_group, known=batch)
    return own if stats is batch else renormalised(stats, own)


def _gradients_by_formula(
    ctx: Any, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> list[Tensor | None]:
    """Gradients of x, weight and bias by autograd through the plain formula; differentiable where a graph is built."""

    def start(t: Tensor) -> Tensor:
        return t.view_as(t) if spatial else t.detach().requires_grad_()

    def exact(t: Tensor) -> Tensor:
        return t.to(torch.promote_types(t.dtype, torch.float32))

    # A spatial gradient stops at views of the inputs. Statistics computed from x itself are constants to it, yet remain
    # functions of x in the graph that it builds.
    spatial = torch.is_grad_enabled()
    own_x = start(x)
    own_weight, own_bias = (None if t is None else start(t) for t in (weight, bias))
    source = x if spatial and not ctx.coupled else own_x
    with torch.enable_grad():
        stats = _statistics_with_gradients(ctx.stats, ctx.batch, exact(source), ctx.process_group)
        y = _apply(ctx.formula, exact(own_x), own_weight, own_bias, stats).to(x.dtype)
    inputs = [own_x, own_weight, own_bias]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(y, wanted, grad_output, create_graph=spatial))
    return [next(grads) if t is not None and t.requires_grad else None for t in inputs]


def normalize(
    formula: Formula,
    x: Float[Tensor, "*batch channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    *,
    stats: ColumnStatistics | None = None,
    batch: ColumnStatistics | None = None,
    coupled_gradients: bool = True,
    process_group: Any = None,
    kernel: KernelChoice = "auto",
) -> Float[Tensor, "*batch channels"]:
    """Normalizes x; rows are all leading dimensions. Computes in float32 or better and returns x's own type.

    Args:
        formula: which norm.
        x: features.
        weight: scale of each feature, or None for 1.
        bias: shift of each feature, or None for 0.
        stats: column statistics that normalize; None means those of x.
        batch: the statistics of x, where gradients shall flow through them although `stats` gives the values.
        coupled_gradients: keeps the terms between samples in gradients that build a graph (spatial gradients).
        process_group: over which the column statistics are reduced.
        kernel: "compiled", "plain", or "auto": the environment's `CROSSNORM_KERNELS`, else compiled where possible.

    Raises:
        ValueError: weight, bias or statistics do not fit x in size or device; there is no such kernel.
    """
    rows = as_rows(x, kernel)
    _check_fit(rows, weight=weight, bias=bias)
    if stats is not None:
        _check_fit(rows, mean=stats.mean, var=stats.var)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    weight, bias = (None if values is None else _typed(values, dtype) for values in (weight, bias))
    if formula.name == "ln":
        y = functional.layer_norm(rows.to(dtype), rows.shape[-1:], weight, bias, formula.eps)
        y = y.relu() if formula.relu else y
    elif rows.shape[0] == 0 and process_group is None:
        y = _finish(formula, rows, weight, bias)  # nothing to normalize, and gradients of zero
    else:
        by_kernel = kernels.chooses_kernel(rows, kernel)
        if stats is None:
            stats = batch = column_statistics(rows.detach(), process_group, kernel)
        if by_kernel and not torch.is_grad_enabled() and not torch.compiler.is_exporting():
            columns, options = _kernel_arguments(formula, rows, stats)
            y = kernels.normalize(rows, weight, bias, *columns, *options)
        elif not torch.compiler.is_compiling() or (batch is not None and not coupled_gradients):
            y = _normalize(rows, weight, bias, formula, stats, batch, coupled_gradients, process_group, by_kernel)
        else:
            exact = rows.to(dtype)
            y = _apply(formula, exact, weight, bias, _statistics_with_gradients(stats, batch, exact, process_group))
    return like(y, x)


def _check_fit(rows: Tensor, **given: Tensor | None) -> None:
    channels, device = rows.shape[1], rows.device
    for name, values in given.items():
        if values is not None and (values.shape != (channels,) or values.device != device):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)} on {values.device}, but x has {channels} channels on {device}"
            )


def batch_norm(
    x: Float[Tensor, "*batch channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    *,
    stats: ColumnStatistics | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch channels"]:
    """Batch normalization over all leading dimensions (paper, section 4.1), biased variance."""
    return normalize(Formula("bn", eps=eps), x, weight, bias, stats=stats)


def layer_norm(
    x: Float[Tensor, "*batch channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch channels"]:
    """Layer normalization over the last dimension (paper, section 4.2), biased variance."""
    return normalize(Formula("ln", eps=eps), x, weight, bias)


def global_norm(
    x: Float[Tensor, "*batch channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    *,
    stats: ColumnStatistics | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch channels"]:
    """Global normalization: one mean and one unbiased variance over all entries, affine per feature (section 4.3)."""
    return normalize(Formula("gn", eps=eps), x, weight, bias, stats=stats)


def cross_norm(
    x: Float[Tensor, "*batch channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    *,
    stats: ColumnStatistics | None = None,
    variant: Variant = "released",
    eps: float = 1e-5,
    relu: bool = False,
    kernel: KernelChoice = "auto",
) -> Float[Tensor, "*batch channels"]:
    """Cross normalization: each entry by the statistics of its row and its column (paper, section 4.3).

    Twice differentiable, with all terms between samples; the modules of `crossnorm_ns.norms` gate those terms out of
    spatial gradients.

    Args:
        x: features; rows are all leading dimensions.
        weight: scale of each feature, or None for 1.
        bias: shift of each feature, or None for 0.
        stats: column statistics (rows N, mean, unbiased variance) in place of the batch's, taken as constants.
        variant: "released" is the code behind the paper's image results: mean (row sum + column sum - x) / (N + C),
            variance column + row, both unbiased. "paper" is section 4.3: mean and biased variance of the N + C - 1
            values in the row and the column.
        eps: added to the variance.
        relu: applies a ReLU to the result, in the same pass over memory.
        kernel: "compiled" (C++ or Triton), "plain" (the formula in PyTorch), or "auto": what `CROSSNORM_KERNELS` in the
            environment says, else compiled where possible.
    """
    return normalize(Formula("cn", variant, eps, relu), x, weight, bias, stats=stats, kernel=kernel)
