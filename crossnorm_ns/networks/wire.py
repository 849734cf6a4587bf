"""WIRE: a network with complex Gabor wavelets.

Source: Saragadam et al., "WIRE: Wavelet Implicit Neural Representations" (CVPR 2023), section 3, and its repository
vishwa91/wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional


class ComplexLinear(nn.Module):
    """A linear layer with complex weights, held as pairs of reals (optimisers, casts and files know those).

    Real and imaginary parts start uniform within 1 / sqrt(in_features), as torch's complex linear layers do.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, 2).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features, 2).uniform_(-bound, bound))

    def forward(self, x: Complex[Tensor, "*batch in_features"]) -> Complex[Tensor, "*batch out_features"]:
        """Applies the layer to each row."""
        return functional.linear(x, torch.view_as_complex(self.weight), torch.view_as_complex(self.bias))


class ComplexGaborWavelet(nn.Module):
    """exp(i omega_0 x - |sigma_0 x|^2)."""

    def __init__(self, omega_0: float, sigma_0: float) -> None:
        super().__init__()
        self.omega_0, self.sigma_0 = omega_0, sigma_0

    def forward(self, x: Float[Tensor, "*shape"] | Complex[Tensor, "*shape"]) -> Complex[Tensor, "*shape"]:
        """Applies the wavelet to each value."""
        squared = x.real.square() + x.imag.square() if x.is_complex() else x.square()
        return torch.exp(1j * self.omega_0 * x - self.sigma_0**2 * squared)


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
        self.wavelet = ComplexGaborWavelet(omega_0, sigma_0)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Applies the network to each point."""
        z = self.first(x)
        for layer in self.layers:
            z = layer(self.wavelet(z))
        return z.real
