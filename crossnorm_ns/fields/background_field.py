"""The radiance field behind the unit sphere that NeuS takes where there are no masks.

Source: Totoro97/NeuS, models/fields.py (`NeRF`) and confs/womask.conf; Zhang et al., "NeRF++" (2020), section 4.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossnorm_ns.functional.encodings import positional_encoding
from crossnorm_ns.functional.surface_rendering import inverted_sphere
from crossnorm_ns.networks import MLP


class BackgroundField(nn.Module):
    """Density and colour of points outside, given to a NeRF as directions and inverse distances from the centre.

    Args:
        depth: hidden layers of the trunk.
        width: of each of them; the layer that sees the view direction has half of it.
        skip: index of the trunk layer behind which the encoded point is concatenated again.
        point_degrees: of the positional encoding of the four parameters of a point, identity included.
        view_degrees: of that of the view direction.
    """

    def __init__(
        self, depth: int = 8, width: int = 256, skip: int = 4, point_degrees: int = 10, view_degrees: int = 4
    ) -> None:
        super().__init__()
        self.point_degrees, self.view_degrees = point_degrees, view_degrees
        self.trunk = MLP(4 + 8 * point_degrees, (width,) * depth, skips=(skip,))
        self.density_layer = nn.Linear(self.trunk.out_dim, 1)
        self.bottleneck = nn.Linear(self.trunk.out_dim, width)
        self.head = MLP(width + 3 + 6 * view_degrees, (width // 2,), out_dim=3)
        for layer in (*self.trunk.layers, *self.head.layers):
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()

    def forward(
        self, points: Float[Tensor, "*batch 3"], directions: Float[Tensor, "*batch 3"]
    ) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 3"]]:
        """Density per unit of length, and colour in [0, 1], of points seen along unit directions."""
        encoded = positional_encoding(inverted_sphere(points), self.point_degrees, include_identity=True)
        view = positional_encoding(directions, self.view_degrees, include_identity=True)
        features = self.trunk(encoded)
        color = self.head(torch.cat([self.bottleneck(features), view], dim=-1))
        return functional.softplus(self.density_layer(features)), torch.sigmoid(color)
