"""Coordinate networks in plain torch. Never imports nerfstudio."""

from crossnorm_ns.networks.mlp import MLP, glorot_linear

__all__ = ["MLP", "glorot_linear"]
