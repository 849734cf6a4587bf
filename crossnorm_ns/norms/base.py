"""What all norms share: train and eval semantics, stored statistics, domains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.functional.normalization import Formula, normalize
from crossnorm_ns.functional.statistics import ColumnStatistics, PopulationMoments, as_rows, column_statistics, like

StatisticsMode = Literal["batch", "renorm"]


class StoredStatistics(nn.Module):
    """Column statistics of one domain: those that evaluation uses, and the moving average that training feeds.

    Calibration overwrites the first alone, so a calibrated checkpoint resumes as if it had never been calibrated.
    """

    rows: Tensor
    mean: Tensor
    var: Tensor
    running_rows: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, like: Tensor) -> None:
        super().__init__()
        like = like.to(torch.promote_types(like.dtype, torch.float32))
        for prefix in ("", "running_"):
            self.register_buffer(f"{prefix}rows", like.new_ones(()))
            self.register_buffer(f"{prefix}mean", like.new_zeros(num_channels))
            self.register_buffer(f"{prefix}var", like.new_ones(num_channels))

    def _apply(self, fn, recurse=True):
        # A network moved to half precision keeps its statistics in float32.
        def convert(buffer: Tensor) -> Tensor:
            converted = fn(buffer)
            return converted if converted.element_size() >= 4 else buffer.to(converted.device)

        return super()._apply(convert, recurse)

    def track(self, batch: ColumnStatistics, momentum: float) -> None:
        """Moves the average towards a batch by `momentum`; evaluation follows it until the next calibration."""
        running = [self.running_rows, self.running_mean, self.running_var]
        values = (batch.rows, batch.mean, batch.var)
        batches = [torch.as_tensor(value).to(own) for value, own in zip(values, running, strict=True)]
        torch._foreach_lerp_(running, batches, momentum)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_copy_([self.rows, self.mean, self.var], running)  # pyright: ignore[reportPrivateImportUsage]

    def store(self, statistics: ColumnStatistics) -> None:
        """Sets what evaluation uses."""
        for buffer, value in zip(self.stored(), statistics, strict=True):
            assert isinstance(buffer, Tensor)
            buffer.copy_(torch.as_tensor(value))

    def stored(self) -> ColumnStatistics:
        """What evaluation uses."""
        return ColumnStatistics(self.rows, self.mean, self.var)

    def running(self) -> ColumnStatistics:
        """The moving average over training batches."""
        return ColumnStatistics(self.running_rows, self.running_mean, self.running_var)


class Norm(nn.Module):
    """A norm over `(..., num_channels)`; rows are all leading dimensions.

    Training uses the statistics of the batch at hand. Evaluation is a function of one sample: row statistics stay
    exact, column statistics are stored ones, one set for each domain (see `norm_domain`). A pass without gradients in
    train mode reads the moving average and leaves it alone. Spatial gradients (backward passes that build a graph)
    hold the column statistics constant.

    Args:
        num_channels: C, size of the last dimension.
        formula: which norm.
        affine: learns a scale (`weight`) and a shift (`bias`) for each channel.
        momentum: of the moving average, which serves previews between calibrations.
        statistics: "batch" normalizes with the batch's statistics in training; "renorm" with the values of the moving
            average and the gradients of the batch's, so that the functions of training and evaluation coincide.
        coupled_gradients: keeps the terms between samples in spatial gradients, for comparison.
        relu: applies a ReLU to the result, in the same pass over memory.
        device: of the parameters and buffers.
        dtype: of the parameters; statistics are float32 or better.

    Raises:
        ValueError: for a size or an option that cannot be.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    _template: Tensor  # empty: has the device and the type of what is stored

    def __init__(
        self,
        num_channels: int,
        formula: Formula,
        *,
        affine: bool = True,
        momentum: float = 0.1,
        statistics: StatisticsMode = "batch",
        coupled_gradients: bool = False,
        relu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must lie in (0, 1], got {momentum}")
        if statistics not in ("batch", "renorm"):
            raise ValueError(f"unknown statistics {statistics!r}: choose 'batch' or 'renorm'")
        self.num_channels = num_channels
        self.formula = replace(formula, relu=relu or formula.relu)
        self.momentum = momentum
        self.statistics: StatisticsMode = statistics
        self.coupled_gradients = coupled_gradients
        self.synchronized = False
        self.domain = "default"
        self.domains = nn.ModuleDict()
        self._populations: dict[str, PopulationMoments] | None = None
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            values = torch.full((num_channels,), value, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if affine else None)
        self.register_buffer("_template", torch.empty(0, device=device, dtype=dtype), persistent=False)

    def forward(self, x: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
        """Normalizes x.

        Raises:
            ValueError: x has another number of channels.
            RuntimeError: evaluation in a domain that has no stored statistics yet.
        """
        if x.shape[-1] != self.num_channels:
            raise ValueError(
                f"{type(self).__name__} over {self.num_channels} channels was given an input of shape "
                f"{tuple(x.shape)}: its last dimension must be {self.num_channels}"
            )
        if not self.formula.uses_columns:
            return normalize(self.formula, x, self.weight, self.bias)
        if not self.training or not torch.is_grad_enabled():
            return normalize(self.formula, x, self.weight, self.bias, stats=self._known_statistics())
        rows, group = as_rows(x, "auto"), self.process_group
        if rows.shape[0] == 0 and group is None:
            return normalize(self.formula, x, self.weight, self.bias)
        batch = column_statistics(rows.detach(), group)
        stats = self._collect(batch)
        y = normalize(
            self.formula,
            rows,
            self.weight,
            self.bias,
            stats=stats,
            batch=batch,
            coupled_gradients=self.coupled_gradients,
            process_group=group,
        )
        return like(y, x)

    def _known_statistics(self) -> ColumnStatistics | None:
        """What a pass that is no training pass normalizes with.

        In evaluation what the domain stores for it; within a training step the moving average, on which calibration
        has no influence, or None (the batch's own) before the first training pass.
        """
        if self.domain in self.domains:
            domain = self.add_domain(self.domain)
            return domain.running() if self.training else domain.stored()
        if self.training:
            return None
        known = ", ".join(self.domains) or "none"
        raise RuntimeError(
            f"no statistics are stored for the domain {self.domain!r} (known: {known}): "
            "train, or call crossnorm_ns.calibrate, before evaluation"
        )

    def _collect(self, batch: ColumnStatistics) -> ColumnStatistics:
        """Notes a training batch and returns the statistics whose values normalize it."""
        calibrating, first = self._populations is not None, self.domain not in self.domains
        domain = self.add_domain(self.domain)
        if self._populations is not None:
            self._populations.setdefault(self.domain, PopulationMoments()).update(batch)
        if first or not calibrating:
            domain.track(batch, 1.0 if first else self.momentum)
        if self.statistics == "batch":
            return batch
        return ColumnStatistics(*(torch.as_tensor(t).clone() for t in domain.running()))

    def add_domain(self, name: str) -> StoredStatistics:
        """The statistics of a domain, those of nothing (mean 0, variance 1) where it is new.

        Raises:
            ValueError: it is new, and its name is no identifier or taken.
        """
        if name not in self.domains:
            if not name.isidentifier() or hasattr(self.domains, name):
                raise ValueError(f"{name!r} cannot name a domain: choose another identifier")
            self.domains[name] = StoredStatistics(self.num_channels, self._template)
        domain = self.domains[name]
        assert isinstance(domain, StoredStatistics)
        return domain

    @property
    def process_group(self):
        """What column statistics are reduced over, None for this process alone."""
        if not self.synchronized or not torch.distributed.is_initialized():
            return None
        return torch.distributed.group.WORLD

    def begin_calibration(self) -> None:
        """From here to `end_calibration`, training passes gather population statistics."""
        self._populations = {}

    def end_calibration(self, keep: bool = True) -> None:
        """Stores what was gathered since `begin_calibration` for evaluation, or forgets it.

        Renormalised norms keep the moving average: its values are what they train with.
        """
        for name, population in (self._populations or {}).items():
            if keep and self.statistics == "batch":
                self.add_domain(name).store(population.statistics())
        self._populations = None

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A state that holds this norm says which domains there are: others belong to the weights that it replaces.
        keys = [key[len(prefix) :].split(".") for key in state_dict if key.startswith(prefix)]
        names = {key[1] for key in keys if key[0] == "domains"}
        for name in names:
            self.add_domain(name)
        if keys:
            for name in self.domains.keys() - names:
                del self.domains[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        variant = f", variant={self.formula.variant!r}" if self.formula.name == "cn" else ""
        relu = ", relu=True" if self.formula.relu else ""
        return f"{self.num_channels}{variant}, eps={self.formula.eps}, statistics={self.statistics!r}{relu}"


def norms_of(module: nn.Module) -> list[Norm]:
    """All norms in a module, itself included."""
    return [part for part in module.modules() if isinstance(part, Norm)]


@contextlib.contextmanager
def norm_domain(module: nn.Module, name: str) -> Iterator[None]:
    """Within it, the norms of `module` use the statistics of the domain `name` (coarse, fine, render, mesh, ...).

    One network called on differently distributed points needs one set of statistics for each call site.
    """
    norms = norms_of(module)
    before = [norm.domain for norm in norms]
    for norm in norms:
        norm.domain = name
    try:
        yield
    finally:
        for norm, domain in zip(norms, before, strict=True):
            norm.domain = domain
