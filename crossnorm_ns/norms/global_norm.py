"""GlobalNorm: see `Norm` for what all norms share."""

from __future__ import annotations

from typing import Any

from crossnorm_ns.functional.normalization import Formula
from crossnorm_ns.norms.base import Norm


class GlobalNorm(Norm):
    """Global normalization (paper, section 4.3): all entries by one mean and one unbiased variance.

    Args:
        num_channels: C, size of the last dimension.
        eps: added to the variance.
        affine: learns a scale and a shift for each channel.
        options: the others of `Norm`.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, affine: bool = True, **options: Any) -> None:
        super().__init__(num_channels, Formula("gn", eps=eps), affine=affine, **options)
