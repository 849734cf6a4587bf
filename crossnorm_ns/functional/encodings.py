"""Positional encodings of points and of Gaussians, and the Gaussian of a conical frustum.

Source: Barron et al., "Mip-NeRF" (ICCV 2021), section 3; google/mipnerf, internal/mip.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_SMALLEST = 1e-10  # keeps the frustum of zero size at its apex finite


def positional_encoding(
    x: Float[Tensor, "*batch dim"], num_degrees: int, include_identity: bool = False
) -> Float[Tensor, "*batch encoded"]:
    """[x,] sin(2^l x), cos(2^l x) for l = 0 .. num_degrees - 1; no factor of pi.

    Ordered as in mip-NeRF: all sines (degree by degree), then all cosines.
    """
    scales = 2.0 ** torch.arange(num_degrees, device=x.device, dtype=x.dtype)
    scaled = (x[..., None, :] * scales[:, None]).flatten(-2)
    parts = [torch.sin(scaled), torch.cos(scaled)]
    return torch.cat([x, *parts] if include_identity else parts, dim=-1)


def integrated_positional_encoding(
    mean: Float[Tensor, "*batch dim"], var: Float[Tensor, "*batch dim"], num_degrees: int
) -> Float[Tensor, "*batch encoded"]:
    """Expected positional encoding of a Gaussian with diagonal covariance.

    sin(2^l mean) exp(-4^l var / 2), and cosines likewise, for the degrees 2^0 to 2^(num_degrees - 1); no identity.
    Mip-NeRF, equation 14. Returns 2 * dim * num_degrees features.
    """
    scales = 2.0 ** torch.arange(num_degrees, device=mean.device, dtype=mean.dtype)
    scaled = (mean[..., None, :] * scales[:, None]).flatten(-2)
    attenuation = torch.exp(-0.5 * (var[..., None, :] * scales[:, None].square()).flatten(-2))
    return torch.cat([torch.sin(scaled) * attenuation, torch.cos(scaled) * attenuation], dim=-1)


def conical_frustum_gaussian(
    origins: Float[Tensor, "*batch 3"],
    directions: Float[Tensor, "*batch 3"],
    starts: Float[Tensor, "*batch 1"],
    ends: Float[Tensor, "*batch 1"],
    radii: Float[Tensor, "*batch 1"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Mean and diagonal of the covariance of a uniform distribution over a conical frustum.

    Mip-NeRF, equations 7 and 8 in the form that is stable for thin frustums.

    Args:
        origins: apex of the cone.
        directions: axis; not normalized, points are origin + t * direction.
        starts: t where the frustum begins.
        ends: t where it ends.
        radii: radius of the cone at t = 1, perpendicular to the axis.
    """
    mid, half = (starts + ends) / 2, (ends - starts) / 2
    denominator = (3 * mid.square() + half.square()).clamp_min(_SMALLEST)
    t_mean = mid + 2 * mid * half.square() / denominator
    t_var = half.square() / 3 - (4 / 15) * half**4 * (12 * mid.square() - half.square()) / denominator.square()
    r_var = radii.square() * (mid.square() / 4 + (5 / 12) * half.square() - (4 / 15) * half**4 / denominator)
    along = directions.square()
    across = 1 - along / along.sum(-1, keepdim=True).clamp_min(_SMALLEST)
    return origins + t_mean * directions, t_var * along + r_var * across
