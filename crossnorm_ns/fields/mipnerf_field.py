"""The network of mip-NeRF as published, with any norm before its ReLUs.

Source: google/mipnerf, internal/models.py (`MLP`) and configs/blender.gin.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor
from torch.nn import functional

from crossnorm_ns.functional.encodings import (
    conical_frustum_gaussian,
    integrated_positional_encoding,
    positional_encoding,
)
from crossnorm_ns.networks import MLP, glorot_linear
from crossnorm_ns.norms import NormalizedLinear, NormChoice

DENSITY_BIAS = -1.0
RGB_PADDING = 0.001


class MipNeRFField(Field):
    """Density from the Gaussian of a conical frustum, colour from its features and the view direction.

    The frustums of the ray samples are read as mip-NeRF means them: directions as long as one unit of t (not
    necessarily unit length), and `pixel_area` the area pi r^2 of the cone's cross-section at t = 1.

    Args:
        depth: hidden layers of the trunk.
        width: of each of them and of the bottleneck.
        skip: index of the trunk layer behind which the encoded input is concatenated again.
        head_width: of the hidden layer that sees the view direction.
        point_degrees: degrees 2^0 .. 2^(n-1) of the integrated positional encoding.
        view_degrees: degrees of the positional encoding of the view direction, identity appended.
        norm: before the ReLU of every trunk layer and of the view layer.
        norm_options: those of `make_norm`.
        normed_weight_scale: factor on the initial weights of the layers that a norm follows. It hardly changes the
            function, but smaller weights turn faster at the same learning rate.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 256,
        skip: int = 4,
        head_width: int = 128,
        point_degrees: int = 16,
        view_degrees: int = 4,
        norm: NormChoice = "none",
        norm_options: dict[str, Any] | None = None,
        normed_weight_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.point_degrees, self.view_degrees = point_degrees, view_degrees
        view_dim = 3 + 6 * view_degrees
        self.trunk = MLP(6 * point_degrees, (width,) * depth, skips=(skip,), norm=norm, norm_options=norm_options)
        self.density_layer = glorot_linear(self.trunk.out_dim, 1)
        self.bottleneck = glorot_linear(self.trunk.out_dim, width)
        self.head = MLP(width + view_dim, (head_width,), norm=norm, norm_options=norm_options)
        self.rgb_layer = glorot_linear(self.head.out_dim, 3)
        for layer in self.modules():
            if isinstance(layer, NormalizedLinear):
                layer.weight.data.mul_(normed_weight_scale)

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Density (..., 1), per unit of length in the world, and the trunk's features."""
        frustums = ray_samples.frustums
        mean, var = conical_frustum_gaussian(
            frustums.origins,
            frustums.directions,
            frustums.starts,
            frustums.ends,
            torch.sqrt(frustums.pixel_area / math.pi),
        )
        features = self.trunk(integrated_positional_encoding(mean, var, self.point_degrees))
        return functional.softplus(self.density_layer(features) + DENSITY_BIAS), features

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """Colour (..., 3) in [0, 1], slightly padded so that the sigmoid can reach both ends."""
        assert density_embedding is not None
        directions = functional.normalize(ray_samples.frustums.directions, dim=-1)
        view = positional_encoding(directions, self.view_degrees, include_identity=True)
        features = self.head(torch.cat([self.bottleneck(density_embedding), view], dim=-1))
        rgb = torch.sigmoid(self.rgb_layer(features)) * (1 + 2 * RGB_PADDING) - RGB_PADDING
        return {FieldHeadNames.RGB: rgb}
