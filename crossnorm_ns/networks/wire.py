"""WIRE: a network with complex Gabor wavelets.

Source: Saragadam et al., "WIRE: Wavelet Implicit Neural Representations" (CVPR 2023), section 3, and its repository
vishwa91/wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ComplexLinear(nn.Module):
    """A linear layer with complex weights, inputs and outputs, held as pairs of reals: optimisers and files know those.

    Real and imaginary parts start uniform within 1 / sqrt(in_features), as torch's complex linear layers do.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, 2).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features, 2).uniform_(-bound, bound))

    def forward(
        self, real: Float[Tensor, "*batch in_features"], imaginary: Float[Tensor, "*batch in_features"]
    ) -> tuple[Float[Tensor, "*batch out_features"], Float[Tensor, "*batch out_features"]]:
        """Applies the layer to each row; real and imaginary parts of the result."""
        (weight, weight_i), (bias, bias_i) = self.weight.unbind(-1), self.bias.unbind(-1)
        return (
            functional.linear(real, weight, bias) - functional.linear(imaginary, weight_i),
            functional.linear(real, weight_i, bias_i) + functional.linear(imaginary, weight),
        )


class WIRE(nn.Module):
    """Linear -> complex Gabor wavelet for each hidden layer, then a linear layer of which the real part counts.

    Hidden layers are narrower by sqrt(2) than asked for (rounded down), as in the authors' code: a complex weight is
    two numbers, and networks of one size are to be compared.

    Args:
        in_dim: number of coordinates.
        hidden: width of each hidden layer.
        out_dim: number of outputs.
        omega_0: frequency of the wavelets.
        sigma_0: inverse width of their envelopes.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        *,
        omega_0: float = 10.0,
        sigma_0: float = 10.0,
    ) -> None:
        super().__init__()
        widths = [max(1, int(width / math.sqrt(2))) for width in hidden]
        self.first = nn.Linear(in_dim, widths[0])
        self.layers = nn.ModuleList(
            ComplexLinear(inputs, outputs) for inputs, outputs in zip(widths, [*widths[1:], out_dim], strict=True)
        )
        self.omega_0, self.sigma_0 = omega_0, sigma_0

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Applies the network to each point."""
        real = self.first(x)
        imaginary = torch.zeros_like(real)
        for layer in self.layers:
            real, imaginary = layer(*self._wavelet(real, imaginary))
        return real

    def _wavelet(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """exp(i omega_0 z - |sigma_0 z|^2) of z = real + i imaginary; torch's complex exp takes 1.7 times as long."""
        squares = torch.addcmul(real.square(), imaginary, imaginary)
        size, angle = torch.exp(-self.omega_0 * imaginary - self.sigma_0**2 * squares), self.omega_0 * real
        return size * torch.cos(angle), size * torch.sin(angle)
