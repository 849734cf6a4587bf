"""Volume rendering of signed distance fields: sampling, opacities and weights as in NeuS.

`t` are positions along unit directions; a section reaches from one to the next. Signed distances are positive outside.
Sources: Wang et al., "NeuS" (NeurIPS 2021), sections 3.1 and 3.2; Totoro97/NeuS, models/renderer.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_SMALLEST = 1e-5
_FIRST_SHARPNESS = 64.0  # of the first up-sampling step; each further step doubles it


def sphere_bounds(
    origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> tuple[Float[Tensor, "rays 1"], Float[Tensor, "rays 1"]]:
    """Where rays begin and end: one unit before and behind the point that is nearest to the origin."""
    middle = -(origins * directions).sum(-1, keepdim=True) / directions.square().sum(-1, keepdim=True)
    return middle - 1, middle + 1


def even_samples(
    near: Float[Tensor, "rays 1"], far: Float[Tensor, "rays 1"], num_samples: int, perturb: bool
) -> Float[Tensor, "rays samples"]:
    """Evenly spaced from near to far; where `perturb`, each ray's are shifted together by up to half a spacing."""
    t = near + (far - near) * torch.linspace(0, 1, num_samples, device=near.device, dtype=near.dtype)
    return t + (torch.rand_like(near) - 0.5) * (far - near) / num_samples if perturb else t


def section_fenceposts(
    t: Float[Tensor, "rays samples"], last_length: Float[Tensor, "rays 1"]
) -> Float[Tensor, "rays fenceposts"]:
    """The sections' bounds: each sample begins a section, and the last one's has the length that is given."""
    return torch.cat([t, t[:, -1:] + last_length], dim=-1)


def annealed_slope(cosine: Float[Tensor, "*batch"], ratio: float) -> Float[Tensor, "*batch"]:
    """Change of the signed distance per unit of t, never positive.

    Args:
        cosine: of the angle between ray and gradient, times the gradient's length.
        ratio: 1 takes the cosine where it is negative, and 0 elsewhere; 0 takes (cosine - 1) / 2, which keeps sections
            alive that leave the surface; between them both are blended.
    """
    return -((0.5 - 0.5 * cosine).relu() * (1 - ratio) + (-cosine).relu() * ratio)


def section_opacity(
    signed_distance: Float[Tensor, "rays sections"],
    slope: Float[Tensor, "rays sections"],
    lengths: Float[Tensor, "rays sections"],
    sharpness: float | Float[Tensor, ""],
) -> Float[Tensor, "rays sections"]:
    """Opacity of sections along which the signed distance falls linearly (NeuS, equation 13).

    Args:
        signed_distance: in the middle of each section.
        slope: its change per unit of t, not positive.
        lengths: of the sections.
        sharpness: s, the inverse of the standard deviation of the logistic density around the surface.
    """
    half = slope * lengths / 2
    before = torch.sigmoid((signed_distance - half) * sharpness)
    behind = torch.sigmoid((signed_distance + half) * sharpness)
    return ((before - behind + _SMALLEST) / (before + _SMALLEST)).clamp(0, 1)


def rendering_weights(opacity: Float[Tensor, "rays sections"]) -> Float[Tensor, "rays sections"]:
    """Share of each section in the colour of its ray: opacity times the transmittance up to it."""
    through = torch.cat([torch.ones_like(opacity[:, :1]), 1 - opacity[:, :-1] + 1e-7], dim=-1).cumprod(-1)
    return opacity * through


def samples_at_quantiles(
    t: Float[Tensor, "rays fenceposts"], weights: Float[Tensor, "rays sections"], num_samples: int
) -> Float[Tensor, "rays new_samples"]:
    """Sorted samples at the middles of `num_samples` equal shares of the density that `weights` describe."""
    quantiles = (torch.arange(num_samples, device=t.device, dtype=t.dtype) + 0.5) / num_samples
    return inverse_transform(t, weights, quantiles.expand(len(t), -1))


def inverse_transform(
    t: Float[Tensor, "rays fenceposts"],
    weights: Float[Tensor, "rays sections"],
    quantiles: Float[Tensor, "rays new_samples"],
) -> Float[Tensor, "rays new_samples"]:
    """Where the cumulative density that `weights` describe, constant over each section, reaches the quantiles."""
    density = weights + _SMALLEST
    cumulative = (density / density.sum(-1, keepdim=True)).cumsum(-1)
    cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative], dim=-1)
    quantiles = quantiles.contiguous()
    upper = torch.searchsorted(cumulative, quantiles, right=True).clamp(1, t.shape[-1] - 1)
    low, high = cumulative.gather(-1, upper - 1), cumulative.gather(-1, upper)
    start, end = t.gather(-1, upper - 1), t.gather(-1, upper)
    share = torch.where(high - low < _SMALLEST, quantiles - low, (quantiles - low) / (high - low))
    return start + share.clamp_max(1) * (end - start)


def importance_samples(
    t: Float[Tensor, "rays samples"],
    signed_distance: Float[Tensor, "rays samples"],
    radii: Float[Tensor, "rays samples"],
    num_samples: int,
    sharpness: float,
) -> Float[Tensor, "rays new_samples"]:
    """Samples near the surface, from signed distances at the samples that are there.

    Each section's slope is the lower of its own and its predecessor's, so that a surface met at a shallow angle is not
    missed; sections outside of the unit sphere count as empty.

    Args:
        t: sorted samples.
        signed_distance: at the samples.
        radii: distances of the samples from the centre.
        num_samples: new ones of each ray.
        sharpness: of the density around the surface, in place of the learned one.
    """
    inside = (radii[:, :-1] < 1) | (radii[:, 1:] < 1)
    lengths = t.diff(dim=-1)
    slope = signed_distance.diff(dim=-1) / (lengths + _SMALLEST)
    previous = torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], dim=-1)
    slope = torch.minimum(slope, previous).clamp(-1e3, 0) * inside
    middle = (signed_distance[:, :-1] + signed_distance[:, 1:]) / 2
    weights = rendering_weights(section_opacity(middle, slope, lengths, sharpness))
    return samples_at_quantiles(t, weights, num_samples)


@torch.no_grad()
def upsample(
    signed_distance: Callable[[Float[Tensor, "rays samples 3"]], Float[Tensor, "rays samples 1"]],
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    t: Float[Tensor, "rays samples"],
    num_importance: int,
    num_steps: int,
) -> Float[Tensor, "rays all_samples"]:
    """Adds samples near the surface in steps, each with twice the sharpness of the one before.

    Args:
        signed_distance: is asked without gradients, for each sample once; not for those of the last step.
        origins: of the rays.
        directions: of unit length.
        t: samples to begin with.
        num_importance: samples to add in all, the same number in each step.
        num_steps: of up-sampling.

    Returns:
        All samples, sorted.
    """

    def at(positions: Tensor) -> tuple[Tensor, Tensor]:
        points = origins[:, None] + directions[:, None] * positions[..., None]
        return signed_distance(points)[..., 0], points.norm(dim=-1)

    distances, radii = at(t)
    for step in range(num_steps):
        sharpness = _FIRST_SHARPNESS * 2**step
        new = importance_samples(t, distances, radii, num_importance // num_steps, sharpness)
        t, order = torch.cat([t, new], dim=-1).sort(dim=-1)
        if step < num_steps - 1:
            new_distances, new_radii = at(new)
            distances = torch.cat([distances, new_distances], dim=-1).gather(-1, order)
            radii = torch.cat([radii, new_radii], dim=-1).gather(-1, order)
    return t


def outside_samples(
    far: Float[Tensor, "rays 1"], num_samples: int, offset: float, perturb: bool
) -> Float[Tensor, "rays samples"]:
    """Samples behind `far`, evenly spaced in inverse distance out to a thousand times `far`.

    Args:
        far: where the sphere's part of each ray ends.
        num_samples: of each ray.
        offset: added to all, so that they stay behind the samples within, which may be shifted.
        perturb: draws each sample within its stratum.
    """
    share = torch.linspace(1e-3, 1 - 1 / (num_samples + 1), num_samples, device=far.device, dtype=far.dtype)
    share = share.expand(len(far), -1)
    if perturb:
        middles = (share[:, 1:] + share[:, :-1]) / 2
        upper = torch.cat([middles, share[:, -1:]], dim=-1)
        lower = torch.cat([share[:, :1], middles], dim=-1)
        share = lower + (upper - lower) * torch.rand_like(share)
    return far / share.flip(-1) + offset


def inverted_sphere(points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """Direction from the centre and inverse distance, at most 1 (NeRF++, section 4: the parameters of the outside)."""
    radii = points.norm(dim=-1, keepdim=True).clamp(1, 1e10)
    return torch.cat([points / radii, 1 / radii], dim=-1)


def eikonal_errors(
    gradients: Float[Tensor, "rays samples 3"], points: Float[Tensor, "rays samples 3"]
) -> tuple[Float[Tensor, "rays 1"], Float[Tensor, "rays 1"]]:
    """Sums over each ray of (|gradient| - 1)^2 where |point| < 1.2, and the numbers of these points."""
    near = (points.norm(dim=-1) < 1.2).to(gradients.dtype)
    errors = (gradients.norm(dim=-1) - 1).square() * near
    return errors.sum(-1, keepdim=True), near.sum(-1, keepdim=True)
