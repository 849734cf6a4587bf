"""A multilayer perceptron with Gaussian activations.

Source: Ramasinghe and Lucey, "Beyond Periodicity: Towards a Unifying Framework for Activations in Coordinate-MLPs"
(ECCV 2022); scale and initialisation as in the comparisons of vishwa91/wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.networks.mlp import MLP


class Gaussian(nn.Module):
    """exp(-(scale x)^2)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Applies the Gaussian to each value."""
        return torch.exp(-(self.scale * x).square())


class GaussianMLP(MLP):
    """Linear -> exp(-(scale x)^2) for each hidden layer, then a linear layer; torch's own initialisation.

    Args:
        in_dim: number of coordinates.
        hidden: width of each hidden layer.
        out_dim: number of outputs.
        scale: of the activations; a standard deviation of 1 / (sqrt(2) scale).
    """

    def __init__(self, in_dim: int, hidden: Sequence[int], out_dim: int, *, scale: float = 10.0) -> None:
        super().__init__(in_dim, hidden, out_dim, activation=Gaussian(scale), linear=nn.Linear)
