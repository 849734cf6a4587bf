"""CrossNorm: see `Norm` for what all norms share."""

from __future__ import annotations

from typing import Any

from crossnorm_ns.functional.normalization import Formula, Variant
from crossnorm_ns.norms.base import Norm


class CrossNorm(Norm):
    """Cross normalization (paper, section 4.3): each entry by the statistics of its row and its column.

    Args:
        num_channels: C, size of the last dimension.
        variant: "released", the code behind the paper's image results, or "paper", the formula of section 4.3; they
            differ where rows are few. See `crossnorm_ns.functional.cross_norm`.
        eps: added to the variance.
        affine: learns a scale and a shift for each channel.
        options: the others of `Norm`.
    """

    def __init__(
        self,
        num_channels: int,
        variant: Variant = "released",
        eps: float = 1e-5,
        affine: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(num_channels, Formula("cn", variant, eps), affine=affine, **options)
