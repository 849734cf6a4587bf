"""Norms for networks that exist already: one before each hidden activation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from torch import Tensor, nn

from crossnorm_ns.norms.base import norms_of
from crossnorm_ns.norms.factory import NormChoice, make_norm


class NormalizedLinear(nn.Linear):
    """A linear layer with a norm behind it; keeps the weights, and their names, of the layer it replaces."""

    def __init__(self, linear: nn.Linear, norm: nn.Module) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name torch gives it)
        """Linear -> norm, shapes (..., in_features) -> (..., out_features)."""
        return self.norm(super().forward(input))


class _Site(NamedTuple):
    """A hidden layer and where it is kept."""

    parent: nn.Module
    name: str
    layer: nn.Module


def insert_norms(module: nn.Module, norm: NormChoice = "cn", **options: Any) -> nn.Module:
    """Puts a norm before each hidden activation of `module`, in place.

    Knows chains of layers: `nn.Sequential` (nested too), and networks with `layers` and `activation` such as
    nerfstudio's `MLP` and ours, wherever they sit in the module. The last layer of each chain is the output and stays
    as it is, unless it feeds the heads of a nerfstudio field (`field_heads`), where it is a hidden one. Weights are
    kept.

    Args:
        module: the network or field.
        norm: bn, ln, gn or cn; "none" changes nothing.
        options: those of `make_norm`; `relu=True` is for a network that then leaves its own ReLUs out.

    Returns:
        The same module.

    Raises:
        ValueError: a tiny-cuda-nn network (its layers are fused in one kernel), a network that has norms already, one
            whose hidden layers are not plain linear ones, or one without a hidden activation. The module is unchanged.
    """
    if norm == "none":
        return module
    for part in module.modules():
        _refuse_fused(part)
    if norms_of(module):
        raise ValueError(f"{type(module).__name__} has norms already: insert them into the plain network")
    sites = list(_hidden_layers(module, feeds_heads=False))
    if not sites:
        raise ValueError(
            f"found no hidden activation in {type(module).__name__}: expected an nn.Sequential or a network with "
            "`layers` and `activation`"
        )
    layers = [_normalized(site, norm, options) for site in sites]
    for site, layer in zip(sites, layers, strict=True):
        setattr(site.parent, site.name, layer)
    return module


def _refuse_fused(module: nn.Module) -> None:
    kind = type(module)
    if kind.__module__.startswith("tinycudann") and kind.__name__ != "Encoding":
        raise ValueError(
            f"a tiny-cuda-nn {kind.__name__} runs as one fused kernel, which has no place for a norm: "
            'build the network with implementation="torch"'
        )


def _normalized(site: _Site, norm: NormChoice, options: dict[str, Any]) -> NormalizedLinear:
    linear = site.layer
    # Subclasses compute something else, and weight normalization (as a hook) hides the parameters behind `weight`.
    if type(linear) is not nn.Linear or not isinstance(linear.weight, nn.Parameter):
        raise ValueError(
            f"hidden layer {site.name} of {type(site.parent).__name__} is no plain nn.Linear but {linear}: insert the "
            "norms first, then apply weight normalization and the like"
        )
    made = make_norm(norm, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype, **options)
    return NormalizedLinear(linear, made).train(linear.training)


def _hidden_layers(module: nn.Module, feeds_heads: bool) -> Iterator[_Site]:
    if isinstance(module, nn.Sequential):
        yield from _hidden_layers_of_sequential(module)
    elif isinstance(getattr(module, "layers", None), nn.ModuleList) and hasattr(module, "activation"):
        yield from _hidden_layers_of_network(module, feeds_heads)
    else:
        for name, child in module.named_children():
            if name != "field_heads":
                yield from _hidden_layers(child, feeds_heads=hasattr(module, "field_heads"))


def _hidden_layers_of_network(network: nn.Module, feeds_heads: bool) -> Iterator[_Site]:
    layers = network.layers
    assert isinstance(layers, nn.ModuleList)
    if network.activation is None:
        return
    all_hidden = feeds_heads and getattr(network, "out_activation", None) is not None
    hidden = getattr(network, "num_hidden_layers", len(layers) if all_hidden else len(layers) - 1)
    for i in range(hidden):
        yield _Site(layers, str(i), layers[i])


def _hidden_layers_of_sequential(sequential: nn.Sequential) -> Iterator[_Site]:
    sites = list(_flattened(sequential))
    for i, site in enumerate(sites):
        if not isinstance(site.layer, nn.Linear):
            yield from _hidden_layers(site.layer, feeds_heads=False)
            continue
        following = [other.layer for other in sites[i + 1 :]]
        until_next = list(takewhile(lambda layer: not isinstance(layer, nn.Linear), following))
        is_last = len(until_next) == len(following)
        if not is_last and any(_is_activation(layer) for layer in until_next):
            yield site


def _flattened(sequential: nn.Sequential) -> Iterator[_Site]:
    for name, child in sequential.named_children():
        if isinstance(child, nn.Sequential):
            yield from _flattened(child)
        else:
            yield _Site(sequential, name, child)


def _is_activation(module: nn.Module) -> bool:
    """One of torch's, or another's module (a sine, a Gaussian, ...) with neither parts nor parameters."""
    if type(module).__module__.startswith("torch.nn."):
        return type(module).__module__ == "torch.nn.modules.activation"
    return not any(module.children()) and not any(True for _ in module.parameters())
