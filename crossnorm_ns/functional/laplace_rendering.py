"""Volume rendering of signed distance fields with Laplace's density, and samples whose opacity has a bounded error.

`t` are positions along unit directions; a section reaches from one to the next. Signed distances are positive outside.
Sources: Yariv et al., "Volume Rendering of Neural Implicit Surfaces" (NeurIPS 2021), sections 3.1 to 3.4;
lioryariv/volsdf, code/model/density.py and ray_sampler.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from crossnorm_ns.functional.rendering import volume_rendering_weights
from crossnorm_ns.functional.surface_rendering import inverse_transform

_LARGEST_EXPONENT = math.log(1e6)


def laplace_density(
    signed_distance: Float[Tensor, "*batch"], beta: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Density per unit of length: the distribution function of Laplace's law at -signed_distance, over beta.

    That is VolSDF's equations 2 and 3 with alpha = 1 / beta: deep inside it is 1 / beta, on the surface half of that.
    """
    tail = torch.exp(-signed_distance.abs() / beta) / 2
    return torch.where(signed_distance > 0, tail, 1 - tail) / beta


def section_distance(
    signed_distance: Float[Tensor, "rays samples"], t: Float[Tensor, "rays samples"]
) -> Float[Tensor, "rays sections"]:
    """Lower bound of the distance between each section and the surface, from the distances at its two ends.

    No surface lies within the balls around both ends, so the section is at least as far from it as from where the balls
    meet; 0 where they do not meet, and where the section passes through the surface (theorem 1's d*).
    """
    lengths = t.diff(dim=-1)
    start, end = signed_distance[:, :-1].abs(), signed_distance[:, 1:].abs()
    half = (lengths + start + end) / 2
    area = (half * (half - lengths) * (half - start) * (half - end)).clamp_min(0).sqrt()  # Heron's, of the triangle
    height = torch.where(start + end > lengths, 2 * area / lengths.clamp_min(1e-10), 0)
    height = torch.where(lengths.square() + start.square() <= end.square(), start, height)
    height = torch.where(lengths.square() + end.square() <= start.square(), end, height)
    return torch.where(signed_distance[:, :-1] * signed_distance[:, 1:] > 0, height, 0)


def opacity_error_bound(
    signed_distance: Float[Tensor, "rays samples"], t: Float[Tensor, "rays samples"], beta: Float[Tensor, "rays 1"]
) -> Float[Tensor, "rays sections"]:
    """Bound of the error of a ray's opacity anywhere within each section (theorem 1, equations 12 to 15).

    The error is that of the left Riemann sum of the density, for signed distances that change by at most 1 per unit of
    length.
    """
    lengths = t.diff(dim=-1)
    distance = section_distance(signed_distance, t)
    errors = (lengths.square() * torch.exp(-distance / beta)).cumsum(-1) / (4 * beta.square())
    optical_depth = lengths * laplace_density(signed_distance[:, :-1], beta)
    before = optical_depth.cumsum(-1) - optical_depth
    return torch.expm1(errors.clamp_max(_LARGEST_EXPONENT)) * torch.exp(-before)


def sufficient_beta(t: Float[Tensor, "rays samples"], tolerance: float) -> Float[Tensor, "rays 1"]:
    """A beta with which the opacity's error is at most `tolerance`, whatever the signed distances are (lemma 2)."""
    return (t.diff(dim=-1).square().sum(-1, keepdim=True) / (4 * math.log1p(tolerance))).sqrt()


@torch.no_grad()
def error_bounded_samples(
    signed_distance: Callable[[Float[Tensor, "rays samples 3"]], Float[Tensor, "rays samples 1"]],
    origins: Float[Tensor, "rays 3"],
    directions: Float[Tensor, "rays 3"],
    t: Float[Tensor, "rays samples"],
    beta: Float[Tensor, ""],
    num_samples: int,
    num_extra: int,
    *,
    tolerance: float = 0.1,
    max_iterations: int = 5,
    bisections: int = 10,
    perturb: bool = False,
) -> Float[Tensor, "rays all_samples"]:
    """Samples where the opacity rises, whose error is bounded (algorithm 1).

    Each ray goes its own way, whichever others are with it: while the error bound at `beta` is above the tolerance it
    is given as many new samples as it began with, where the bound is large, and a larger beta that keeps the bound.

    Args:
        signed_distance: is asked without gradients, once for each sample.
        origins: of the rays.
        directions: of unit length.
        t: samples to begin with.
        beta: of the density that is rendered.
        num_samples: drawn from the rendering weights in the end.
        num_extra: of the samples that led there, to be rendered as well.
        tolerance: of the opacity.
        max_iterations: that the signed distances are asked in.
        bisections: of the search for each ray's beta.
        perturb: draws at random instead of evenly.

    Returns:
        The samples with the first and the last of `t`, sorted.
    """
    result = t.new_empty(len(t), num_samples + num_extra + 2)
    rays = torch.arange(len(t), device=t.device)
    count, ends = t.shape[1], t[:, [0, -1]]
    ray_beta = sufficient_beta(t, tolerance)
    new, order, distances = t, None, t[:, :0]
    for iteration in range(max_iterations):
        points = origins[rays, None] + directions[rays, None] * new[..., None]
        distances = torch.cat([distances, signed_distance(points)[..., 0].to(t)], dim=-1)
        distances = distances if order is None else distances.gather(-1, order)
        ray_beta = _smallest_beta(distances, t, beta, ray_beta, tolerance, bisections)
        done = ray_beta[:, 0] <= beta
        if iteration == max_iterations - 1:
            done = torch.ones_like(done)
        final = _final_samples(distances[done], t[done], ray_beta[done], num_samples, num_extra, perturb)
        result[rays[done]] = torch.cat([final, ends[rays[done]]], dim=-1)
        if done.all():
            break
        going = ~done
        rays, t, distances, ray_beta = rays[going], t[going], distances[going], ray_beta[going]
        bound = opacity_error_bound(distances, t, ray_beta)
        quantiles = torch.linspace(0, 1, count, device=t.device, dtype=t.dtype)
        new = inverse_transform(t, bound, quantiles.expand(len(t), -1))
        t, order = torch.cat([t, new], dim=-1).sort(dim=-1)
    return result.sort(dim=-1)[0]


def _smallest_beta(
    signed_distance: Tensor, t: Tensor, beta: Tensor, sufficient: Tensor, tolerance: float, bisections: int
) -> Tensor:
    """Of each ray, `beta` itself where its error bound allows it, else the smallest that does, from above."""

    def allowed(candidate: Tensor) -> Tensor:
        return opacity_error_bound(signed_distance, t, candidate).amax(-1, keepdim=True) <= tolerance

    low = beta.expand_as(sufficient)
    high = torch.where(allowed(low), low, torch.maximum(sufficient, low))
    for _ in range(bisections):
        middle = (low + high) / 2
        fits = allowed(middle)
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return high


def _final_samples(
    signed_distance: Tensor, t: Tensor, beta: Tensor, num_samples: int, num_extra: int, perturb: bool
) -> Tensor:
    density = laplace_density(signed_distance[:, :-1], beta)
    weights = volume_rendering_weights(density, t, torch.ones_like(t[:, :1]))
    if perturb:
        quantiles = torch.rand(len(t), num_samples, device=t.device, dtype=t.dtype)
        extra = torch.rand_like(t).argsort(dim=-1)[:, :num_extra]
    else:
        quantiles = torch.linspace(0, 1, num_samples, device=t.device, dtype=t.dtype).expand(len(t), -1)
        extra = torch.linspace(0, t.shape[1] - 1, num_extra, device=t.device).long().expand(len(t), -1)
    return torch.cat([inverse_transform(t, weights, quantiles), t.gather(-1, extra)], dim=-1)
