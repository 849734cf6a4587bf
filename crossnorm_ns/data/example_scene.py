"""A procedural test object, ray traced in numpy: thin posts and rings, fine textures, highlights and shadows.

Everything lies within 1.3 of the origin along each axis, z is up. Each solid answers three questions about rays and
points in world space, so that the renderer below is a loop over solids.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float

Rows3 = Float[np.ndarray, "num 3"]
Distances = Float[np.ndarray, " num"]
Texture = Callable[[Rows3], Rows3]
"""Linear RGB of surface points, given in the solid's own coordinates."""

LIGHT = np.array([0.48, -0.36, 0.8], dtype=np.float32)
"""Unit direction towards the light."""
SKIN = 1e-3
"""Distance in world units below which a ray counts as leaving the surface that it starts on."""


@dataclass(frozen=True, eq=False)
class Solid(ABC):
    """A textured body with an own frame: world = rotation @ own + centre."""

    texture: Texture
    """Colour of surface points."""
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Origin of the own frame."""
    rotation: Float[np.ndarray, "3 3"] | None = None
    """Own to world; None for unrotated solids."""
    gloss: float = 0.0
    """Weight of the highlight."""

    def to_own(self, points: Rows3) -> Rows3:
        """World points in the solid's own frame."""
        return self.turn_to_own(points - np.asarray(self.centre, dtype=np.float32))

    def turn_to_own(self, vectors: Rows3) -> Rows3:
        """World directions in the solid's own frame."""
        return vectors if self.rotation is None else vectors @ self.rotation

    def turn_to_world(self, vectors: Rows3) -> Rows3:
        """Own directions in the world frame."""
        return vectors if self.rotation is None else vectors @ self.rotation.T

    @abstractmethod
    def distance(self, origins: Rows3, directions: Rows3) -> Distances:
        """Where rays in the own frame (unit directions) enter or leave first, beyond SKIN; infinity where never."""

    @abstractmethod
    def normal(self, points: Rows3) -> Rows3:
        """Outward unit normals at surface points in the own frame."""


@dataclass(frozen=True, eq=False)
class Sphere(Solid):
    """A ball around the own origin."""

    radius: float = 1.0

    def distance(self, origins: Rows3, directions: Rows3) -> Distances:
        half_b = _dot(origins, directions)
        root = _root(half_b * half_b - _dot(origins, origins) + self.radius**2)
        return _first(-half_b - root, -half_b + root)

    def normal(self, points: Rows3) -> Rows3:
        return _unit(points)


@dataclass(frozen=True, eq=False)
class Box(Solid):
    """A cuboid around the own origin."""

    half_size: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def distance(self, origins: Rows3, directions: Rows3) -> Distances:
        half_size = np.asarray(self.half_size, dtype=np.float32)
        inverse = 1 / _away_from_zero(directions)
        middle, reach = -origins * inverse, half_size * np.abs(inverse)
        enter, leave = (middle - reach).max(axis=-1), (middle + reach).min(axis=-1)
        return np.where(enter <= leave, _first(enter, leave), np.inf)

    def normal(self, points: Rows3) -> Rows3:
        relative = points / np.asarray(self.half_size, dtype=np.float32)
        axis = np.abs(relative).argmax(axis=-1)
        rows = np.arange(len(points))
        normals = np.zeros_like(points)
        normals[rows, axis] = np.sign(relative[rows, axis])
        return normals


@dataclass(frozen=True, eq=False)
class Cone(Solid):
    """A straight-sided body of revolution around z, from z = -half_height to half_height: cone, rod or disc."""

    bottom_radius: float = 1.0
    top_radius: float = 1.0
    half_height: float = 1.0

    @property
    def slope(self) -> float:
        """Change of the radius with z."""
        return (self.top_radius - self.bottom_radius) / (2 * self.half_height)

    def distance(self, origins: Rows3, directions: Rows3) -> Distances:
        middle_radius = 0.5 * (self.top_radius + self.bottom_radius)
        ox, oy, oz = origins.T
        dx, dy, dz = directions.T
        radius, growth = middle_radius + self.slope * oz, self.slope * dz
        a = dx * dx + dy * dy - growth * growth
        half_b = ox * dx + oy * dy - radius * growth
        root = _root(half_b * half_b - a * (ox * ox + oy * oy - radius * radius))
        a = _away_from_zero(a)
        candidates = [np.full_like(ox, np.inf)]
        for t in ((-half_b - root) / a, (-half_b + root) / a):
            z = oz + t * dz
            on_side = (np.abs(z) <= self.half_height) & (middle_radius + self.slope * z >= 0) & (t > SKIN)
            candidates.append(np.where(on_side, t, np.inf))
        for z, cap_radius in ((self.half_height, self.top_radius), (-self.half_height, self.bottom_radius)):
            t = (z - oz) / _away_from_zero(dz)
            on_cap = ((ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= cap_radius**2) & (t > SKIN)
            candidates.append(np.where(on_cap, t, np.inf))
        return np.min(candidates, axis=0)

    def normal(self, points: Rows3) -> Rows3:
        x, y, z = points.T
        normals = _unit(np.stack([x, y, -self.slope * np.hypot(x, y)], axis=-1))
        on_cap = np.abs(np.abs(z) - self.half_height) < 0.1 * SKIN
        normals[on_cap] = np.stack([0 * z, 0 * z, np.sign(z)], axis=-1)[on_cap]
        return normals


@dataclass(frozen=True, eq=False)
class Torus(Solid):
    """A ring around z."""

    radius: float = 1.0
    """From the centre to the middle of the tube."""
    tube: float = 0.1
    """Radius of the tube."""

    def distance(self, origins: Rows3, directions: Rows3) -> Distances:
        """Sphere tracing: steps as long as the distance to the surface, inside the slab and ball around the ring."""
        half_b = _dot(origins, directions)
        ball = _root(half_b * half_b - _dot(origins, origins) + (self.radius + self.tube) ** 2)
        inverse = 1 / _away_from_zero(directions[:, 2])
        slab = self.tube * np.abs(inverse)
        enter = np.maximum(np.maximum(-half_b - ball, -origins[:, 2] * inverse - slab), 10 * SKIN)
        leave = np.minimum(-half_b + ball, -origins[:, 2] * inverse + slab)
        result = np.full_like(half_b, np.inf)
        rays = np.flatnonzero(enter < leave)
        t = enter[rays]
        for _ in range(64):
            gap = self._gap(origins[rays] + t[:, None] * directions[rays])
            arrived = gap < 0.02 * SKIN
            result[rays[arrived]] = t[arrived]
            t = t + gap
            going = ~arrived & (t < leave[rays])
            rays, t = rays[going], t[going]
        return result

    def _gap(self, points: Rows3) -> Distances:
        return np.hypot(np.hypot(points[:, 0], points[:, 1]) - self.radius, points[:, 2]) - self.tube

    def normal(self, points: Rows3) -> Rows3:
        x, y, z = points.T
        around = np.hypot(x, y)
        return _unit(np.stack([x - self.radius * x / around, y - self.radius * y / around, z], axis=-1))


def render(
    camera_to_world: Float[np.ndarray, "3 4"], focal: float, width: int, height: int, supersampling: int = 3
) -> Float[np.ndarray, "height width 4"]:
    """Renders the object as float32 RGBA with straight alpha; the background is transparent black.

    Each pixel is the mean of supersampling^2 rays: alpha is the share that hits, the colour is the mean over these,
    taken in display (sRGB) values, as area filters and alpha compositing of the finished pictures do.

    Args:
        camera_to_world: OpenGL camera, looking along -z.
        focal: Focal length in pixels; the principal point is the picture's centre.
        width: In pixels.
        height: In pixels.
        supersampling: Rays per pixel along each axis.
    """
    pose = camera_to_world.astype(np.float32)
    x = (np.arange(width * supersampling, dtype=np.float32) + 0.5) / supersampling - 0.5 * width
    rows_per_band = max(1, 200_000 // (width * supersampling**2))
    bands = []
    for top in range(0, height, rows_per_band):
        rows = min(rows_per_band, height - top)
        y = 0.5 * height - top - (np.arange(rows * supersampling, dtype=np.float32) + 0.5) / supersampling
        grid_x, grid_y = np.meshgrid(x / np.float32(focal), y / np.float32(focal))
        directions = _unit(np.stack([grid_x, grid_y, -np.ones_like(grid_x)], axis=-1).reshape(-1, 3) @ pose[:, :3].T)
        premultiplied = trace(np.broadcast_to(pose[:, 3], directions.shape), directions)
        blocks = premultiplied.reshape(rows, supersampling, width, supersampling, 4)
        bands.append(blocks.mean(axis=(1, 3)))
    rgba = np.concatenate(bands)
    rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
    return rgba


def trace(origins: Rows3, directions: Rows3) -> Float[np.ndarray, "num 4"]:
    """Display colour and opacity (1 or 0, then all is 0) seen along rays with unit directions."""
    nearest, hit = _nearest(origins, directions)
    rgba = np.zeros((len(origins), 4), dtype=np.float32)
    points = origins + np.where(np.isfinite(nearest), nearest, 0)[:, None] * directions
    for index, solid in enumerate(example_solids()):
        rows = np.flatnonzero(hit == index)
        if rows.size == 0:
            continue
        own = solid.to_own(points[rows])
        normals = solid.turn_to_world(solid.normal(own))
        linear = _shade(points[rows], normals, directions[rows], solid.texture(own), solid.gloss)
        rgba[rows, :3] = np.clip(linear, 0, 1) ** np.float32(1 / 2.2)
        rgba[rows, 3] = 1
    return rgba


def _nearest(origins: Rows3, directions: Rows3) -> tuple[Distances, np.ndarray]:
    """Distance to the first solid (infinity: none) and its index (-1: none)."""
    nearest = np.full(len(origins), np.inf, dtype=np.float32)
    hit = np.full(len(origins), -1)
    for index, solid in enumerate(example_solids()):
        distance = solid.distance(solid.to_own(origins), solid.turn_to_own(directions))
        closer = distance < nearest
        nearest[closer] = distance[closer]
        hit[closer] = index
    return nearest, hit


def _shade(points: Rows3, normals: Rows3, directions: Rows3, colour: Rows3, gloss: float) -> Rows3:
    """Light from the sky, a lamp with hard shadows and Phong highlights, and a view-dependent rim."""
    facing = normals @ LIGHT
    lit = np.zeros(len(points), dtype=np.float32)
    towards = np.flatnonzero(facing > 0)
    if towards.size:
        start = points[towards] + 2 * SKIN * normals[towards]
        lit[towards] = ~_in_shadow(start) * facing[towards]
    sky = 0.22 + 0.16 * normals[:, 2]
    mirrored = directions - 2 * _dot(directions, normals)[:, None] * normals
    highlight = np.where(lit > 0, np.maximum(mirrored @ LIGHT, 0) ** 24, 0)
    rim = (1 - np.abs(_dot(directions, normals))) ** 4
    return colour * (sky + 0.78 * lit)[:, None] + gloss * (0.7 * highlight + 0.12 * rim)[:, None]


def _in_shadow(points: Rows3) -> Bool[np.ndarray, " num"]:
    directions = np.broadcast_to(LIGHT, points.shape)
    return np.isfinite(_nearest(points, directions)[0])


@cache
def example_solids() -> tuple[Solid, ...]:
    """The object: a checkered disc under a ring on barber poles; on it a house, a globe in a ring, a hat."""
    posts = tuple(
        Cone(
            texture=_barber,
            centre=(0.98 * math.cos(angle), 0.98 * math.sin(angle), 0.04),
            gloss=0.3,
            bottom_radius=0.022,
            top_radius=0.022,
            half_height=0.67,
        )
        for angle in np.linspace(0, 2 * math.pi, 10, endpoint=False)
    )
    globe, house, hat = (0.36, -0.26, -0.22), (-0.4, 0.25, -0.29), (-0.3, -0.5, -0.35)
    return (
        Cone(
            texture=_floor, centre=(0.0, 0.0, -0.69), gloss=0.1, bottom_radius=1.09, top_radius=1.06, half_height=0.06
        ),
        *posts,
        Torus(texture=_ticks, centre=(0.0, 0.0, 0.71), gloss=0.6, radius=0.98, tube=0.035),
        Sphere(texture=_globe, centre=globe, gloss=0.7, radius=0.34),
        Torus(texture=_steel, centre=globe, rotation=_turned(0.5, 0.6), gloss=0.8, radius=0.48, tube=0.016),
        Box(texture=_bricks, centre=house, rotation=_turned(0.45), half_size=(0.3, 0.26, 0.34)),
        Cone(
            texture=_shingles,
            centre=(house[0], house[1], 0.29),
            gloss=0.1,
            bottom_radius=0.46,
            top_radius=0.0,
            half_height=0.24,
        ),
        Cone(texture=_stripes, centre=hat, gloss=0.4, bottom_radius=0.24, top_radius=0.06, half_height=0.28),
        Sphere(texture=_ball, centre=(hat[0], hat[1], 0.01), gloss=0.9, radius=0.1),
    )


def _floor(p: Rows3) -> Rows3:
    around, top = np.hypot(p[:, 0], p[:, 1]), p[:, 2] > 0.0599
    checker = _pick(_odd(p[:, 0] / 0.15) ^ _odd(p[:, 1] / 0.15), (0.75, 0.7, 0.6), (0.12, 0.2, 0.26))
    border = _pick(_odd(48 * _turn(p)), (0.62, 0.16, 0.1), (0.8, 0.75, 0.66))
    return np.where((top & (around < 0.9))[:, None], checker, border)


def _barber(p: Rows3) -> Rows3:
    return _pick(_odd(2 * _turn(p) + p[:, 2] / 0.08), (0.7, 0.05, 0.06), (0.85, 0.85, 0.82))


def _ticks(p: Rows3) -> Rows3:
    return _pick(_odd(72 * _turn(p)), (0.85, 0.55, 0.12), (0.3, 0.13, 0.03))


def _globe(p: Rows3) -> Rows3:
    latitude = np.arctan2(p[:, 2], np.hypot(p[:, 0], p[:, 1])) / math.pi
    phase = 2 * math.pi * (_turn(p)[:, None] + np.array([0, 1 / 3, 2 / 3], dtype=np.float32))
    hue = 0.42 + 0.38 * np.cos(phase)
    return np.where((_odd(24 * _turn(p)) ^ _odd(12 * latitude))[:, None], hue, 0.9 - 0.5 * hue).astype(np.float32)


def _steel(p: Rows3) -> Rows3:
    return np.broadcast_to(np.array([0.25, 0.33, 0.45], dtype=np.float32), p.shape)


def _bricks(p: Rows3) -> Rows3:
    along = np.where(np.abs(p[:, 0]) > 0.2999, p[:, 1], p[:, 0])
    course = (p[:, 2] + 0.34) / 0.085
    shifted = along / 0.17 + 0.5 * np.floor(course)
    mortar = (course % 1 < 0.16) | (shifted % 1 < 0.08)
    tint = 0.75 + 0.25 * np.sin(12.9898 * np.floor(shifted) + 78.233 * np.floor(course))
    brick = tint[:, None] * np.array([0.55, 0.2, 0.1], dtype=np.float32)
    return np.where(mortar[:, None], np.float32(0.72), brick).astype(np.float32)


def _shingles(p: Rows3) -> Rows3:
    row = (p[:, 2] + 0.24) / 0.06
    shade = 0.6 + 0.4 * (row % 1)
    colour = _pick(_odd(28 * _turn(p) + np.floor(row)), (0.1, 0.3, 0.34), (0.16, 0.42, 0.42))
    return (shade[:, None] * colour).astype(np.float32)


def _stripes(p: Rows3) -> Rows3:
    return _pick(_odd(p[:, 2] / 0.035), (0.85, 0.8, 0.2), (0.08, 0.1, 0.3))


def _ball(p: Rows3) -> Rows3:
    return np.broadcast_to(np.array([0.75, 0.1, 0.35], dtype=np.float32), p.shape)


def _pick(choice: Bool[np.ndarray, " num"], one: tuple[float, ...], other: tuple[float, ...]) -> Rows3:
    return np.where(choice[:, None], np.array(one, dtype=np.float32), np.array(other, dtype=np.float32))


def _odd(values: Distances) -> Bool[np.ndarray, " num"]:
    return np.floor(values) % 2 == 1


def _turn(p: Rows3) -> Distances:
    """Angle around z as a share of the full turn, in [-0.5, 0.5]."""
    return np.arctan2(p[:, 1], p[:, 0]) / np.float32(2 * math.pi)


def _turned(yaw: float, pitch: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """Rotation by pitch around x, then by yaw around z (radians)."""
    cos_y, sin_y, cos_p, sin_p = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    around_z = np.array([[cos_y, -sin_y, 0], [sin_y, cos_y, 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, cos_p, -sin_p], [0, sin_p, cos_p]])
    return (around_z @ around_x).astype(np.float32)


def _dot(a: Rows3, b: Rows3) -> Distances:
    return (a * b).sum(axis=-1)


def _unit(vectors: Rows3) -> Rows3:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _root(discriminant: Distances) -> Distances:
    """Square root, NaN (no intersection: every comparison fails) where negative."""
    return np.sqrt(np.where(discriminant >= 0, discriminant, np.nan))


def _first(enter: Distances, leave: Distances) -> Distances:
    """The first of two distances beyond SKIN, infinity where there is none."""
    return np.where(enter > SKIN, enter, np.where(leave > SKIN, leave, np.inf))


def _away_from_zero(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < 1e-9, np.float32(1e-9), values)
