"""SIREN: a multilayer perceptron with sines.

Source: Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions" (NeurIPS 2020),
section 3.2 and supplement 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.networks.mlp import MLP


class Sine(nn.Module):
    """sin(omega_0 x)."""

    def __init__(self, omega_0: float) -> None:
        super().__init__()
        self.omega_0 = omega_0

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Applies the sine to each value."""
        return torch.sin(self.omega_0 * x)


class SIREN(MLP):
    """Linear -> sin(omega_0 x) for each hidden layer, then a linear layer.

    Weights start uniform within 1 / fan_in in the first layer and within sqrt(6 / fan_in) / omega_0 in the others,
    the last included, which keeps the weighted sums in front of the sines at unit variance through all layers. Biases
    start as those of torch's linear layers, uniform within 1 / sqrt(fan_in), as in the authors' code.

    Args:
        in_dim: number of coordinates.
        hidden: width of each hidden layer.
        out_dim: number of outputs.
        omega_0: frequency of the sines.
        activation: in place of the sine.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        *,
        omega_0: float = 30.0,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__(in_dim, hidden, out_dim, activation=activation or Sine(omega_0), linear=nn.Linear)
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                assert isinstance(layer, nn.Linear)
                fan_in = layer.in_features
                bound = 1 / fan_in if i == 0 else math.sqrt(6 / fan_in) / omega_0
                layer.weight.uniform_(-bound, bound)
