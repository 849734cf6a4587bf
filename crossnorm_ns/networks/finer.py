"""FINER: sines whose frequency grows with their input.

Source: Liu et al., "FINER: Flexible Spectral-bias Tuning in Implicit NEural Representation by Variable-periodic
Activation Functions" (CVPR 2024), equations 4 and 5, and its repository liuzhen0212/FINER.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.networks.siren import SIREN


class VariablePeriodicSine(nn.Module):
    """sin(omega_0 (|x| + 1) x), where the factor |x| + 1 counts as a constant in gradients, as in the authors' code."""

    def __init__(self, omega_0: float) -> None:
        super().__init__()
        self.omega_0 = omega_0

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Applies the sine to each value."""
        return torch.sin(self.omega_0 * (x.detach().abs() + 1) * x)


class FINER(SIREN):
    """SIREN with variable-periodic sines; wide biases in the first layer spread the neurons over the frequencies.

    Args:
        in_dim: number of coordinates.
        hidden: width of each hidden layer.
        out_dim: number of outputs.
        omega_0: frequency of the sines at 0.
        first_bias_scale: the biases of the first layer start uniform within this.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        *,
        omega_0: float = 30.0,
        first_bias_scale: float = 1.0,
    ) -> None:
        super().__init__(in_dim, hidden, out_dim, omega_0=omega_0, activation=VariablePeriodicSine(omega_0))
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            first.bias.uniform_(-first_bias_scale, first_bias_scale)
