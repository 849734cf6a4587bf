"""Stateless mathematics: normalization, encodings, volume rendering, metrics. Never imports nerfstudio."""

from crossnorm_ns.functional.normalization import batch_norm, cross_norm, global_norm, layer_norm
from crossnorm_ns.functional.statistics import ColumnStatistics, column_statistics

__all__ = ["ColumnStatistics", "batch_norm", "column_statistics", "cross_norm", "global_norm", "layer_norm"]
