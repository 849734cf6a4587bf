"""Sampling along rays and alpha compositing, as in mip-NeRF.

`t` are fenceposts: num_samples + 1 increasing ray parameters that bound num_samples intervals.
Source: google/mipnerf, internal/mip.py and internal/math.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def stratified_fenceposts(
    near: float, far: float, num_rays: int, num_samples: int, perturb: bool, like: Tensor
) -> Float[Tensor, "rays fenceposts"]:
    """Evenly spaced fenceposts from near to far, each moved at random within its stratum where `perturb`."""
    t = torch.linspace(near, far, num_samples + 1, device=like.device, dtype=like.dtype).expand(num_rays, -1)
    if not perturb:
        return t
    middles = (t[:, 1:] + t[:, :-1]) / 2
    lower = torch.cat([t[:, :1], middles], dim=-1)
    upper = torch.cat([middles, t[:, -1:]], dim=-1)
    return lower + (upper - lower) * torch.rand_like(t)


def blur_weights(weights: Float[Tensor, "rays samples"], padding: float) -> Float[Tensor, "rays samples"]:
    """Maximum of neighbours, then average of neighbours, plus a constant (mip-NeRF, equation 18)."""
    padded = torch.cat([weights[:, :1], weights, weights[:, -1:]], dim=-1)
    maxima = torch.maximum(padded[:, :-1], padded[:, 1:])
    return (maxima[:, :-1] + maxima[:, 1:]) / 2 + padding


def resample_fenceposts(
    t: Float[Tensor, "rays fenceposts"],
    weights: Float[Tensor, "rays samples"],
    num_fenceposts: int,
    perturb: bool,
) -> Float[Tensor, "rays new_fenceposts"]:
    """Draws sorted fenceposts from the piecewise-constant density that `weights` describe over the intervals of `t`.

    Inverse transform sampling, stratified where `perturb`, else at even quantiles from 0 to 1.
    """
    smallest = 1e-5
    total = weights.sum(-1, keepdim=True)
    missing = (smallest - total).clamp_min(0)
    probabilities = (weights + missing / weights.shape[-1]) / (total + missing)
    cumulative = probabilities[:, :-1].cumsum(-1).clamp_max(1)
    zeros = torch.zeros_like(cumulative[:, :1])
    cumulative = torch.cat([zeros, cumulative, zeros + 1], dim=-1)
    below_one = 1 - torch.finfo(t.dtype).eps
    if perturb:
        step = 1 / num_fenceposts
        quantiles = torch.arange(num_fenceposts, device=t.device, dtype=t.dtype) * step
        jitter = torch.rand(t.shape[0], num_fenceposts, device=t.device, dtype=t.dtype)
        quantiles = (quantiles + jitter * (step - torch.finfo(t.dtype).eps)).clamp_max(below_one)
    else:
        quantiles = torch.linspace(0, below_one, num_fenceposts, device=t.device, dtype=t.dtype)
        quantiles = quantiles.expand(t.shape[0], -1).contiguous()
    upper = torch.searchsorted(cumulative, quantiles, right=True).clamp(1, t.shape[-1] - 1)
    lower = upper - 1
    low, high = cumulative.gather(-1, lower), cumulative.gather(-1, upper)
    fraction = ((quantiles - low) / (high - low).clamp_min(torch.finfo(t.dtype).tiny)).clamp(0, 1)
    start, end = t.gather(-1, lower), t.gather(-1, upper)
    return start + fraction * (end - start)


def volume_rendering_weights(
    density: Float[Tensor, "rays samples"],
    t: Float[Tensor, "rays fenceposts"],
    direction_norms: Float[Tensor, "rays 1"],
) -> Float[Tensor, "rays samples"]:
    """Share of each interval in the colour of its ray: opacity times the transmittance up to it.

    Args:
        density: per unit of world length, constant over each interval.
        t: fenceposts; an interval's length in the world is its length in t times `direction_norms`.
        direction_norms: length of the ray directions.
    """
    optical_depth = density * (t[:, 1:] - t[:, :-1]) * direction_norms
    before = torch.cat([torch.zeros_like(optical_depth[:, :1]), optical_depth[:, :-1].cumsum(-1)], dim=-1)
    return -torch.expm1(-optical_depth) * torch.exp(-before)


def composite(
    weights: Float[Tensor, "rays samples"],
    colors: Float[Tensor, "rays samples channels"],
    t: Float[Tensor, "rays fenceposts"],
    background: float,
) -> tuple[Float[Tensor, "rays channels"], Float[Tensor, "rays 1"], Float[Tensor, "rays 1"]]:
    """Colour over the background, accumulated opacity, and expected t (the last fencepost where nothing was met)."""
    accumulation = weights.sum(-1, keepdim=True)
    color = (weights[..., None] * colors).sum(-2) + background * (1 - accumulation)
    middles = (t[:, 1:] + t[:, :-1]) / 2
    expected = (weights * middles).sum(-1, keepdim=True) / accumulation
    expected = expected.nan_to_num(torch.inf).clamp(t[:, :1], t[:, -1:])
    return color, accumulation, expected
