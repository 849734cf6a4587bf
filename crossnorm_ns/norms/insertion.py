"""Norms for networks that exist already: one before each hidden activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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


def insert_norms(module: nn.Module, norm: NormChoice = "cn", **options: Any) -> nn.Module:
    """Puts a norm before each hidden activation of `module`, in place.

    Knows chains of layers: `nn.Sequential` (nested too), and networks with `layers` and `activation` such as
    nerfstudio's `MLP` and ours, wherever they sit in the module. The last layer of each chain is the output and stays
    as it is, unless it feeds the heads of a nerfstudio field (`field_heads`), where it is a hidden one. Weights are
    kept.

    Args:
        module: the network or field.
        norm: bn, ln, gn or cn; "none" changes nothing.
        options: those of `make_norm`.

    Returns:
        The same module.

    Raises:
        ValueError: a tiny-cuda-nn network (its layers are fused in one kernel), a network that has norms already, or
            one without a hidden activation.
    """
    if norm == "none":
        return module
    count = _insert(module, norm, options, output_is_hidden=False)
    if count == 0:
        raise ValueError(
            f"found no hidden activation in {type(module).__name__}: expected an nn.Sequential or a network with "
            "`layers` and `activation`"
        )
    return module


def _insert(module: nn.Module, norm: NormChoice, options: dict[str, Any], output_is_hidden: bool) -> int:
    _refuse_fused(module)
    if isinstance(module, nn.Sequential):
        return _insert_in_sequential(module, norm, options)
    if isinstance(getattr(module, "layers", None), nn.ModuleList) and hasattr(module, "activation"):
        return _insert_in_layers(module, norm, options, output_is_hidden)
    has_heads = bool(getattr(module, "field_heads", None))
    return sum(
        _insert(child, norm, options, has_heads)
        for name, child in module.named_children()
        if name != "field_heads"
    )


def _refuse_fused(module: nn.Module) -> None:
    if type(module).__module__.startswith("tinycudann") or getattr(module, "tcnn_encoding", None) is not None:
        raise ValueError(
            f"{type(module).__name__} runs as one fused tiny-cuda-nn kernel, which has no place for a norm: "
            'build it with implementation="torch"'
        )


def _normalized(linear: nn.Linear, norm: NormChoice, options: dict[str, Any]) -> NormalizedLinear:
    if isinstance(linear, NormalizedLinear):
        raise ValueError("the network has norms already: insert them into the plain one")
    made = make_norm(norm, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype, **options)
    return NormalizedLinear(linear, made.train(linear.training))


def _insert_in_layers(network: nn.Module, norm: NormChoice, options: dict[str, Any], output_is_hidden: bool) -> int:
    layers = network.layers
    assert isinstance(layers, nn.ModuleList)
    if network.activation is None:
        return 0
    all_hidden = output_is_hidden and getattr(network, "out_activation", None) is not None
    hidden = getattr(network, "num_hidden_layers", len(layers) if all_hidden else len(layers) - 1)
    for i in range(hidden):
        layer = layers[i]
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer {i} of {type(network).__name__} is a {type(layer).__name__}, not a linear layer")
        layers[i] = _normalized(layer, norm, options)
    return hidden


def _leaves(sequential: nn.Sequential) -> list[tuple[nn.Sequential, str, nn.Module]]:
    leaves = []
    for name, child in sequential.named_children():
        leaves += _leaves(child) if isinstance(child, nn.Sequential) else [(sequential, name, child)]
    return leaves


def _is_activation(module: nn.Module) -> bool:
    """Elementwise, without parameters to normalize for: torch's own, or another leaf that is no linear layer."""
    return type(module).__module__ == "torch.nn.modules.activation"


def _insert_in_sequential(sequential: nn.Sequential, norm: NormChoice, options: dict[str, Any]) -> int:
    leaves = _leaves(sequential)
    for _, _, leaf in leaves:
        _refuse_fused(leaf)
    linear = [i for i, (_, _, leaf) in enumerate(leaves) if isinstance(leaf, nn.Linear)]
    hidden = [i for i in linear[:-1] if _is_activation(leaves[i + 1][2])]
    for i in hidden:
        parent, name, layer = leaves[i]
        assert isinstance(layer, nn.Linear)
        setattr(parent, name, _normalized(layer, norm, options))
    return len(hidden)
