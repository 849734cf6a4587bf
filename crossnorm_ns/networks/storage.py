"""What of a network must be kept to evaluate it, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from crossnorm_ns.functional.normalization import global_mean_and_variance
from crossnorm_ns.norms.base import Norm

_ROWS = 2
"""Of a batch that stands for all with the same mean and variance of all entries: global normalization asks no more."""


def stored_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What must be kept to evaluate a network: its parameters, and the column statistics its norms have stored.

    The moving averages of training are left out. Names are those of the state dict; the `mean` and `var` of a global
    normalization are two numbers, mean and variance of all entries, and stand for its `rows` too.
    """
    tensors = dict(network.state_dict(keep_vars=False))
    for path, norm in network.named_modules():
        if isinstance(norm, Norm):
            for domain, statistics in norm.domains.items():
                prefix = f"{path}.domains.{domain}"
                for name in ("rows", "mean", "var"):
                    del tensors[f"{prefix}.running_{name}"]
                if norm.formula.name == "gn":
                    del tensors[f"{prefix}.rows"]
                    mean, var = global_mean_and_variance(statistics.stored())  # type: ignore[operator]
                    tensors[f"{prefix}.mean"], tensors[f"{prefix}.var"] = mean, var
    return tensors


def load_stored(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a network what `stored_tensors` took from one like it; moving averages go on from the stored statistics.

    Raises:
        RuntimeError: they are those of another network.
    """
    state = dict(tensors)
    for path, norm in network.named_modules():
        if isinstance(norm, Norm):
            start, channels = f"{path}.domains.", norm.num_channels
            for prefix in [key.removesuffix(".mean") for key in tensors if key.startswith(start) and "mean" in key]:
                if norm.formula.name == "gn":
                    state[f"{prefix}.rows"] = tensors[f"{prefix}.mean"].new_tensor(_ROWS)
                    state[f"{prefix}.mean"] = tensors[f"{prefix}.mean"].expand(channels)
                    var_of_columns = tensors[f"{prefix}.var"] * (_ROWS * channels - 1) / ((_ROWS - 1) * channels)
                    state[f"{prefix}.var"] = var_of_columns.expand(channels)
                for name in ("rows", "mean", "var"):
                    state[f"{prefix}.running_{name}"] = state[f"{prefix}.{name}"]
    network.load_state_dict(state)


def num_stored_values(network: nn.Module) -> int:
    """How many numbers `stored_tensors` holds; bits per pixel follow from it."""
    return sum(tensor.numel() for tensor in stored_tensors(network).values())
