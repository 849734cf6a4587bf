"""Multiplicative filter networks: GaborNet and FourierNet.

Source: Fathony et al., "Multiplicative Filter Networks" (ICLR 2021), sections 3.1 and 3.2, and its repository
boschresearch/multiplicative-filter-networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FourierFilter(nn.Module):
    """sin(W x + b); weights start as torch's, times `scale`, and b uniform over one period."""

    def __init__(self, in_dim: int, width: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, width)
        with torch.no_grad():
            self.linear.weight.mul_(scale)
            self.linear.bias.uniform_(-math.pi, math.pi)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Applies the filter to each point."""
        return torch.sin(self.linear(x))


class GaborFilter(FourierFilter):
    """A Fourier filter under the envelope exp(-gamma |x - mu|^2 / 2).

    Centers start uniform in [-1, 1]^in_dim, gamma is drawn from Gamma(alpha, 1), and weights are larger by its root.
    """

    def __init__(self, in_dim: int, width: int, scale: float, alpha: float) -> None:
        super().__init__(in_dim, width, scale)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.mu = nn.Parameter(2 * torch.rand(width, in_dim) - 1)
        self.gamma = nn.Parameter(torch.distributions.Gamma(alpha, 1.0, validate_args=False).sample((width,)))
        with torch.no_grad():
            self.linear.weight.mul_(self.gamma.sqrt()[:, None])

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Applies the filter to each point."""
        squared_distance = x.square().sum(-1, keepdim=True) + self.mu.square().sum(-1) - 2 * x @ self.mu.T
        return super().forward(x) * torch.exp(-0.5 * self.gamma * squared_distance)


class MultiplicativeFilterNetwork(nn.Module):
    """z_1 = g_1(x), z_i = (W_i z_(i-1) + b_i) * g_i(x) with filters g_i of the coordinates, then a linear layer.

    One filter for each hidden layer. The weights between them start uniform within 1 / sqrt(width).
    """

    def __init__(
        self, in_dim: int, hidden: Sequence[int], out_dim: int, make_filter: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.filters = nn.ModuleList(make_filter(in_dim, width) for width in hidden)
        self.linears = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in zip(hidden[:-1], hidden[1:], strict=True)
        )
        self.output = nn.Linear(hidden[-1], out_dim)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Applies the network to each point."""
        z = self.filters[0](x)
        for linear, filter_ in zip(self.linears, self.filters[1:], strict=True):
            z = linear(z) * filter_(x)
        return self.output(z)


class GaborNet(MultiplicativeFilterNetwork):
    """Multiplicative filter network with Gabor filters, in the configuration of the comparisons of vishwa91/wire.

    Args:
        in_dim: number of coordinates.
        hidden: width of each hidden layer.
        out_dim: number of outputs.
        input_scale: factor on the filters' frequencies.
        alpha: shape of the Gamma distribution of the envelopes, divided among the filters.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        *,
        input_scale: float = 128.0,
        alpha: float = 6.0,
    ) -> None:
        super().__init__(in_dim, hidden, out_dim, partial(GaborFilter, scale=input_scale, alpha=alpha / len(hidden)))


class FourierNet(MultiplicativeFilterNetwork):
    """Multiplicative filter network with Fourier filters, in the configuration of its authors.

    Args:
        in_dim: number of coordinates.
        hidden: width of each hidden layer.
        out_dim: number of outputs.
        input_scale: of the filters' frequencies, divided by the root of the number of filters, whose frequencies add.
    """

    def __init__(self, in_dim: int, hidden: Sequence[int], out_dim: int, *, input_scale: float = 256.0) -> None:
        scale = input_scale / math.sqrt(len(hidden))
        super().__init__(in_dim, hidden, out_dim, partial(FourierFilter, scale=scale))
