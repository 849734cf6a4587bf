"""What the eigenvalues of a neural tangent kernel look like, and how they grow with samples and width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crossnorm_ns.representation.initialization import Initialization, initial_network
from crossnorm_ns.representation.ntk import kernel_eigenvalues, neural_tangent_kernel

_FLOOR = 1e-16  # of the largest eigenvalue: below lies nothing but rounding


@dataclass(frozen=True)
class EigenvalueStatistics:
    """Of the eigenvalues of one kernel."""

    mean: float
    variance: float
    maximum: float
    minimum: float
    median: float
    maximum_over_mean: float
    """Does not depend on the scale of the kernel, which a learning rate makes up for."""
    effective_rank: float
    """exp(entropy of the eigenvalues as shares of their sum) (Roy and Vetterli, 2007): how many of them count."""

    def as_dict(self) -> dict[str, float]:
        """By name, for JSON."""
        return asdict(self)


STATISTICS = tuple(field.name for field in fields(EigenvalueStatistics))


def describe(eigenvalues: Float[Tensor, " number"]) -> EigenvalueStatistics:
    """Statistics of a kernel's eigenvalues; the variance is the population's, as in the paper's equation 6."""
    eigenvalues = eigenvalues.double()
    shares = eigenvalues / eigenvalues.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return EigenvalueStatistics(
        mean=float(eigenvalues.mean()),
        variance=float(eigenvalues.var(correction=0)),
        maximum=float(eigenvalues.max()),
        minimum=float(eigenvalues.min()),
        median=float(eigenvalues.median()),
        maximum_over_mean=float(eigenvalues.max() / eigenvalues.mean()),
        effective_rank=float(entropy.exp()),
    )


def mean_statistics(several: Sequence[EigenvalueStatistics]) -> EigenvalueStatistics:
    """Mean of each statistic, for several draws of the weights."""
    means = {name: float(np.mean([getattr(one, name) for one in several])) for name in STATISTICS}
    return EigenvalueStatistics(**means)


def log10_above_rounding(eigenvalues: Float[Tensor, " number"]) -> Float[np.ndarray, " number"]:
    """log10 of eigenvalues; those below 1e-16 of the largest count as that."""
    return eigenvalues.double().clamp_min(_FLOOR * float(eigenvalues.max())).log10().cpu().numpy()


def log_edges(several: Sequence[Float[Tensor, " _"]], bins: int = 40) -> Float[np.ndarray, " edges"]:
    """Edges of bins of equal width in log10 (bins + 1 values of log10) over the eigenvalues of several kernels."""
    values = np.concatenate([log10_above_rounding(eigenvalues) for eigenvalues in several])
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high if high > low else low + 1, bins + 1)


def log_histogram(eigenvalues: Float[Tensor, " number"], edges: Float[np.ndarray, " edges"]) -> list[int]:
    """How many eigenvalues lie in each bin of `log_edges`."""
    return np.histogram(log10_above_rounding(eigenvalues), edges)[0].tolist()


def points_on_a_line(samples: int, in_dim: int = 1) -> Float[Tensor, "samples in_dim"]:
    """Points at equal distances over [-1, 1]: the coordinates of a 1-D signal, on the diagonal of a larger space."""
    return torch.linspace(-1, 1, samples)[:, None].expand(-1, in_dim).contiguous()


def statistics_at_initialisation(
    method: str,
    samples: int,
    hidden: Sequence[int],
    *,
    seeds: Sequence[int] = (0,),
    initialization: Initialization = "torch",
    device: torch.device | str = "cpu",
    **options: Any,
) -> EigenvalueStatistics:
    """Mean over seeds of the statistics of an untrained network's kernel on a 1-D signal."""
    points, several = points_on_a_line(samples).to(device), []
    for seed in seeds:
        network = initial_network(method, hidden, seed, initialization, **options).to(device)
        several.append(describe(kernel_eigenvalues(neural_tangent_kernel(network, points))))
    return mean_statistics(several)


def fit_order(sizes: Sequence[float | int], values: Sequence[float | int]) -> float:
    """The exponent p of values ~ sizes^p: the slope of a straight line through them on log-log axes.

    Raises:
        ValueError: fewer than two different sizes, or something is not positive.
    """
    if len(set(sizes)) < 2 or len(sizes) != len(values):
        raise ValueError(f"an order needs a value for each of at least two sizes, got {len(values)} for {list(sizes)}")
    if min(*sizes, *values) <= 0:
        raise ValueError(f"an order needs positive sizes and values, got {list(values)} at {list(sizes)}")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@dataclass(frozen=True)
class Growth:
    """How the statistics of a method's kernel grow with one size."""

    method: str
    axis: str
    """samples or width"""
    sizes: tuple[int, ...]
    statistics: tuple[EigenvalueStatistics, ...]

    def orders(self) -> dict[str, float]:
        """Fitted exponent of each statistic that is positive throughout."""
        values = {name: [getattr(one, name) for one in self.statistics] for name in STATISTICS}
        return {name: fit_order(self.sizes, some) for name, some in values.items() if min(some) > 0}


def growth_with_samples(
    method: str, samples: Sequence[int], hidden: Sequence[int], seeds: Sequence[int] = (0,), **options: Any
) -> Growth:
    """Statistics of a method's kernel for several numbers of samples on the same interval."""
    found = [statistics_at_initialisation(method, n, hidden, seeds=seeds, **options) for n in samples]
    return Growth(method, "samples", tuple(samples), tuple(found))


def growth_with_width(
    method: str, samples: int, widths: Sequence[int], layers: int, seeds: Sequence[int] = (0,), **options: Any
) -> Growth:
    """Statistics of a method's kernel for several widths of its hidden layers."""
    found = [statistics_at_initialisation(method, samples, (w,) * layers, seeds=seeds, **options) for w in widths]
    return Growth(method, "width", tuple(widths), tuple(found))


MEAN_FIELD_ORDERS: dict[str, dict[str, dict[str, float | int]]] = {
    "none": {
        "samples": {"mean": 0, "variance": 1, "maximum": 1},
        "width": {"mean": 1, "variance": 2, "maximum": 1},
    },
    "bn": {
        "samples": {"mean": 0, "variance": 0, "maximum": 0.5},
        "width": {"mean": 1, "variance": 2, "maximum": 1},
    },
}
"""Exponents of mean, variance and bound on the maximum in the paper's mean-field model, for no norm and for BN.

Equation 5 makes a kernel of width * (a on the diagonal, b elsewhere); equation 6 turns it into a mean of width * a, a
second moment of width^2 * (a^2 + (N - 1) b^2) and a largest eigenvalue of at most width * (a + (N - 1) b). Subtracting
the batch's mean from the last layer (equations 12 to 14) takes b away, which leaves a second moment of width^2, and
bounds the largest eigenvalue by sqrt(N * second moment). The model has no distances between samples: on a fixed
interval, where neighbours come closer as N grows, the largest eigenvalue of any smooth kernel ends up growing with N.
The paper's equation 22 for LN scales its bounds by numbers of outputs; those of GN and CN were not derived.
"""


def mean_field_order(method: str, axis: str, statistic: str) -> float | int | None:
    """The exponent that the mean-field model derives for a method, or None where it says nothing."""
    family, _, norm = method.partition("+")
    if family not in ("relu", "pe"):
        return None
    return MEAN_FIELD_ORDERS.get(norm or "none", {}).get(axis, {}).get(statistic)
