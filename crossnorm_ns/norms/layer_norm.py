"""LayerNorm: see `Norm` for what all norms share."""

from __future__ import annotations

from typing import Any

from crossnorm_ns.functional.normalization import Formula
from crossnorm_ns.norms.base import Norm


class LayerNorm(Norm):
    """Layer normalization (paper, section 4.2): each sample by its own mean and biased variance; no stored statistics.

    Args:
        num_channels: C, size of the last dimension.
        eps: added to the variance.
        affine: learns a scale and a shift for each channel.
        options: the others of `Norm`.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, affine: bool = True, **options: Any) -> None:
        super().__init__(num_channels, Formula("ln", eps=eps), affine=affine, **options)
