"""Positional encoding of coordinates in front of a multilayer perceptron."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.functional.encodings import positional_encoding
from crossnorm_ns.networks.mlp import MLP


class PositionalEncoding(nn.Module):
    """x, sin(2^i pi x), cos(2^i pi x) for i = 0 .. num_frequencies - 1: the encoding of the paper's image task.

    Ordered as x, all sines (frequency by frequency), all cosines; the released code interleaves them.

    Args:
        in_dim: number of coordinates.
        num_frequencies: octaves, from half a wavelength over [0, 1] on.
    """

    def __init__(self, in_dim: int, num_frequencies: int = 10) -> None:
        super().__init__()
        if num_frequencies < 1:
            raise ValueError(f"num_frequencies must be at least 1, got {num_frequencies}")
        self.num_frequencies = num_frequencies
        self.out_dim = in_dim * (1 + 2 * num_frequencies)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Encodes each point."""
        return torch.cat([x, positional_encoding(math.pi * x, self.num_frequencies)], dim=-1)


class EncodedMLP(nn.Module):
    """A network on encoded coordinates; who trains on fixed points may encode them once and call `mlp` alone."""

    def __init__(self, encoding: PositionalEncoding, mlp: MLP) -> None:
        super().__init__()
        self.encoding, self.mlp = encoding, mlp

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Applies encoding and network to each point."""
        return self.mlp(self.encoding(x))
