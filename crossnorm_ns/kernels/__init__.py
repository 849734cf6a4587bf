"""Fast paths of normalization, and the one place that chooses among them."""

from crossnorm_ns.kernels.dispatch import column_statistics, cross_norm_backward, cross_norm_forward, supports

__all__ = ["column_statistics", "cross_norm_backward", "cross_norm_forward", "supports"]
