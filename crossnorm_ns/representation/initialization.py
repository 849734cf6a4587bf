"""Untrained networks on a 1-D signal, for the kernel analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from crossnorm_ns.networks import make_network
from crossnorm_ns.representation.errors import RepresentationError

Initialization = Literal["torch", "gaussian"]

_WEIGHT_VARIANCE, _BIAS_VARIANCE = 2.0, 0.1


def initial_network(
    method: str, hidden: Sequence[int], seed: int, initialization: Initialization = "torch", **options: Any
) -> nn.Module:
    """A network of one coordinate and one output.

    Args:
        method: see `make_network`.
        hidden: width of each hidden layer.
        seed: of the weights.
        initialization: "torch" leaves the method's own. "gaussian" draws the weights of all linear layers from a normal
            distribution of variance 2 / fan_in and their biases from one of variance 0.1, in the manner of the paper's
            section 3.1 (which leaves the variances open): the signal then keeps its size through ReLU layers, where
            torch's initialisation lets it shrink.
        options: of the method.

    Raises:
        RepresentationError: "gaussian" for a method whose weights have a meaning of their own.
    """
    torch.manual_seed(seed)
    network = make_network(method, 1, 1, hidden, **options)
    if initialization == "torch":
        return network
    if method.partition("+")[0] not in ("relu", "pe"):
        raise RepresentationError(f"a Gaussian initialisation is for relu and pe methods, and {method} is neither")
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=(_WEIGHT_VARIANCE / layer.in_features) ** 0.5)
            nn.init.normal_(layer.bias, std=_BIAS_VARIANCE**0.5)
    return network
