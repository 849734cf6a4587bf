"""A multilayer perceptron with any norm before its hidden activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.norms import NormChoice, insert_norms
from crossnorm_ns.norms.base import Norm


def glorot_linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer with Glorot-uniform weights and no bias at the start, as in mip-NeRF."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _ends_in_relu(layer: nn.Module) -> bool:
    norm = getattr(layer, "norm", None)
    return isinstance(norm, Norm) and norm.formula.relu


class MLP(nn.Module):
    """Linear -> norm -> activation, once for each hidden layer, and a last linear layer where `out_dim` is given.

    Args:
        in_dim: number of input features.
        hidden: width of each hidden layer.
        out_dim: number of outputs of the last linear layer; None ends at the last hidden activation.
        skips: indices of hidden layers behind which the input is concatenated again.
        skip_scale: factor on what such a concatenation gives.
        activation: of the hidden layers; None is ReLU, which the norms then apply themselves.
        norm: before each hidden activation.
        norm_options: those of `make_norm`.
        linear: makes a linear layer of so many inputs and outputs, initialised.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int | None = None,
        skips: Sequence[int] = (),
        skip_scale: float = 1.0,
        activation: nn.Module | None = None,
        norm: NormChoice = "none",
        norm_options: dict[str, Any] | None = None,
        linear: Callable[[int, int], nn.Linear] = glorot_linear,
    ) -> None:
        super().__init__()
        self.in_dim, self.skips, self.num_hidden_layers = in_dim, frozenset(skips), len(hidden)
        self.skip_scale = skip_scale
        self.activation = nn.ReLU() if activation is None else activation
        widths = [width + in_dim * (i in self.skips) for i, width in enumerate(hidden)]
        outputs = [*hidden] if out_dim is None else [*hidden, out_dim]
        self.layers = nn.ModuleList(linear(width, out) for width, out in zip([in_dim, *widths], outputs, strict=False))
        self.out_dim = out_dim if out_dim is not None else widths[-1]
        insert_norms(self, norm, relu=activation is None, **(norm_options or {}))

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Applies the network to each point."""
        inputs = x
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < self.num_hidden_layers and not _ends_in_relu(layer):
                x = self.activation(x)
            if i in self.skips:
                x = torch.cat([x, inputs], dim=-1)
                x = x if self.skip_scale == 1 else x * self.skip_scale
        return x
