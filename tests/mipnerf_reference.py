"""mip-NeRF's deterministic forward pass once more, in numpy and float64, from the paper and google/mipnerf.

An oracle for tests: plain formulas, one ray parameter t, directions that are not normalized, no nerfstudio.
"""

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Rays(NamedTuple):
    """Arrays of (rays, 3), (rays, 3) and (rays, 1)."""

    origins: Array
    directions: Array
    radii: Array


class Level(NamedTuple):
    """What one level renders: (rays, 3), (rays,), (rays,), and what it took: (rays, fenceposts), (rays, samples, F)."""

    color: Array
    accumulation: Array
    distance: Array
    t: Array
    encoded: Array


def camera_rays(pose: Array, focal: float, width: int, height: int) -> Rays:
    """All rays of a camera (OpenGL axes), row by row; the radius comes from the distance to the pixel below."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height + 1) + 0.5)
    in_camera = np.stack([(x - 0.5 * width) / focal, -(y - 0.5 * height) / focal, -np.ones_like(x)], -1)
    directions = in_camera @ pose[:3, :3].T
    spacing = np.linalg.norm(directions[1:] - directions[:-1], axis=-1).reshape(-1, 1)
    directions = directions[:-1].reshape(-1, 3)
    return Rays(np.broadcast_to(pose[:3, 3], directions.shape), directions, spacing * 2 / np.sqrt(12))


def encode_frustums(rays: Rays, t: Array, degrees: int) -> Array:
    """Integrated positional encoding of the conical frustums between fenceposts, by equations 7, 8, 13 and 14."""
    start, end = t[:, :-1, None], t[:, 1:, None]
    mid, half = (start + end) / 2, (end - start) / 2
    common = 3 * mid**2 + half**2
    t_mean = mid + 2 * mid * half**2 / common
    t_var = half**2 / 3 - 4 / 15 * half**4 * (12 * mid**2 - half**2) / common**2
    r_var = rays.radii[:, None] ** 2 * (mid**2 / 4 + 5 / 12 * half**2 - 4 / 15 * half**4 / common)
    axis = rays.directions[:, None]
    mean = rays.origins[:, None] + t_mean * axis
    variance = t_var * axis**2 + r_var * (1 - axis**2 / (axis**2).sum(-1, keepdims=True))
    sines, cosines = [], []
    for degree in range(degrees):
        fading = np.exp(-(4**degree) * variance / 2)
        sines.append(np.sin(2**degree * mean) * fading)
        cosines.append(np.cos(2**degree * mean) * fading)
    return np.concatenate(sines + cosines, -1)


def encode_views(directions: Array, degrees: int) -> Array:
    """Positional encoding of unit directions, identity first."""
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    sines = [np.sin(2**degree * unit) for degree in range(degrees)]
    cosines = [np.cos(2**degree * unit) for degree in range(degrees)]
    return np.concatenate([unit, *sines, *cosines], -1)


def network(weights: dict[str, Array], encoded: Array, views: Array, skip: int = 4) -> tuple[Array, Array]:
    """Colours (rays, samples, 3) and densities (rays, samples) of the published network without norms."""

    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = encoded
    for layer in range(sum(name.startswith("trunk.") and name.endswith(".weight") for name in weights)):
        x = np.maximum(linear(f"trunk.layers.{layer}", x), 0)
        if layer % skip == 0 and layer > 0:
            x = np.concatenate([x, encoded], -1)
    density = np.logaddexp(linear("density_layer", x)[..., 0] - 1, 0)
    views = np.broadcast_to(views[:, None], (*x.shape[:2], views.shape[-1]))
    x = np.concatenate([linear("bottleneck", x), views], -1)
    x = np.maximum(linear("head.layers.0", x), 0)
    return 1.002 / (1 + np.exp(-linear("rgb_layer", x))) - 0.001, density


def inverse_transform(t: Array, weights: Array, count: int) -> Array:
    """Even quantiles of the piecewise-constant density, ray by ray."""
    drawn = np.empty((len(t), count))
    for ray, (posts, share) in enumerate(zip(t, weights, strict=True)):
        cumulative = np.concatenate([[0], np.cumsum(share) / share.sum()])
        drawn[ray] = np.interp(np.linspace(0, 1 - np.finfo(np.float32).eps, count), cumulative, posts)
    return drawn


def render(
    weights: dict[str, Array],
    rays: Rays,
    num_samples: int,
    near: float = 2.0,
    far: float = 6.0,
    point_degrees: int = 16,
    view_degrees: int = 4,
) -> list[Level]:
    """Coarse and fine level on a white background."""
    views = encode_views(rays.directions, view_degrees)
    t = np.broadcast_to(np.linspace(near, far, num_samples + 1), (len(rays.directions), num_samples + 1))
    levels: list[Level] = []
    contribution = None
    for _ in range(2):
        if contribution is not None:
            padded = np.pad(contribution, ((0, 0), (1, 1)), mode="edge")
            maxima = np.maximum(padded[:, 1:], padded[:, :-1])
            t = inverse_transform(t, (maxima[:, 1:] + maxima[:, :-1]) / 2 + 0.01, num_samples + 1)
        encoded = encode_frustums(rays, t, point_degrees)
        colors, density = network(weights, encoded, views)
        opacity = 1 - np.exp(-density * np.diff(t) * np.linalg.norm(rays.directions, axis=-1, keepdims=True))
        through = np.cumprod(np.pad(1 - opacity, ((0, 0), (1, 0)), constant_values=1)[:, :-1], -1)
        contribution = through * opacity
        accumulation = contribution.sum(-1)
        color = (contribution[..., None] * colors).sum(1) + 1 - accumulation[:, None]
        middles = (t[:, 1:] + t[:, :-1]) / 2
        levels.append(Level(color, accumulation, (contribution * middles).sum(-1) / accumulation, t, encoded))
    return levels
