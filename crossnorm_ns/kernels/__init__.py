"""Fast paths of normalization, and the one place that chooses among them."""

from crossnorm_ns.kernels.dispatch import KernelChoice, chooses_kernel, supports
from crossnorm_ns.kernels.operators import column_statistics, normalize, normalize_backward, spatial_backward

__all__ = [
    "KernelChoice",
    "chooses_kernel",
    "column_statistics",
    "normalize",
    "normalize_backward",
    "spatial_backward",
    "supports",
]
