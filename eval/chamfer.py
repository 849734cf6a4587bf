"""The chamfer distance of DTU: jzhangbs/DTUeval-python at 45b4fec, whose numbers the field quotes, as pure functions.

Everything is in millimetres of DTU's world space and in float64, but for the bounding box, which that tool rounds to
float32. Its results depend on a random order of points; here a seed decides it, and `numpy.random.default_rng(seed)`
given to that tool's shuffle gives the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.spatial import KDTree

from eval.errors import EvaluationError

Points = Float64[np.ndarray, "points 3"]

SPACING = 0.2
"""Of the points on triangles and of the points that remain, millimetres."""
MARGINS = (60, 120)
"""Below and above the bounding box of the observed volume, millimetres: not the same on both sides, as there."""
MAX_DISTANCE = 20.0
"""Distances from here on do not count, millimetres."""
MOST_POINTS = 100_000_000
"""On the triangles of a mesh: more are taken for a mistake in its units."""
LARGEST_UNIT_COORDINATE = 2.0
"""Surfaces within the cube of this half size are taken to be in the unit sphere's coordinates."""
NUM_STAGES = 3
"""Stages that `compare` tells of."""

_BLOCK = 4_000_000
"""Grid positions on triangles held at a time."""
_FIRST_BATCH = 1024
"""Points thinned first, in one go; every further batch holds three times the points of all before it."""
_MOST_PAIRS = 2**24
"""Of near points looked at in one go: 256 MiB."""
_ROUNDS = 64
"""In a random order a few are enough."""
_CELL = 1.0
"""Edge of the cells whose points are brought together, millimetres."""


@dataclass(frozen=True)
class Reference:
    """What one scan is compared with."""

    points: Points
    """Of the structured-light scanner."""
    observed: Bool[np.ndarray, "x y z"]
    """ObsMask: the part of space that the scanner has seen."""
    bounding_box: Float32[np.ndarray, "2 3"]
    """BB: lowest and highest corner of `observed`."""
    resolution: float
    """Res: edge of a cell of `observed`."""
    plane: Float64[np.ndarray, " 4"]
    """P: points with [x, 1] . plane > 0 lie above the table."""


class Measured(NamedTuple):
    """Points of one side and how far each is from the other side."""

    points: Points
    distances: Float64[np.ndarray, " points"]
    """NaN: the protocol leaves the point out. Infinite: 20 mm or more, so that it does not count."""

    @property
    def counted(self) -> Float64[np.ndarray, " counted"]:
        """The distances that enter mean and median."""
        return self.distances[self.distances < MAX_DISTANCE]

    @property
    def mean(self) -> float:
        """Of the distances that count."""
        return float(self.counted.mean())

    @property
    def median(self) -> float:
        """Of the distances that count."""
        return float(np.median(self.counted))


@dataclass(frozen=True)
class Comparison:
    """A surface beside the reference."""

    data: Measured
    """Thinned points of the surface: accuracy."""
    reference: Measured
    """Points of the scanner: completeness."""
    num_points: dict[str, int]
    """Points after each rule, by its name."""

    @property
    def accuracy(self) -> float:
        """Mean distance from the surface to the reference (d2s)."""
        return self.data.mean

    @property
    def completeness(self) -> float:
        """Mean distance from the reference to the surface (s2d)."""
        return self.reference.mean

    @property
    def overall(self) -> float:
        """The chamfer distance: half the sum of accuracy and completeness."""
        return (self.accuracy + self.completeness) / 2

    @property
    def overall_median(self) -> float:
        """Half the sum of both sides' medians."""
        return (self.data.median + self.reference.median) / 2


def compare(
    points: Points, reference: Reference, seed: int = 0, on_stage: Callable[[str], None] | None = None
) -> Comparison:
    """Compares the points of a surface with the reference.

    Args:
        points: Of the surface: `sample_triangles`, or a point cloud.
        reference: Of the same scan.
        seed: Of the order in which points are thinned.
        on_stage: Told what is done next, `NUM_STAGES` times.

    Raises:
        EvaluationError: one of the two means would be over no points.
    """
    tell = on_stage or (lambda stage: None)
    tell("thinning the points")
    with ThreadPoolExecutor(1) as executor:
        building = executor.submit(_sorted_tree, reference.points)
        shuffled = points[np.random.default_rng(seed).permutation(len(points))]
        thinned = shuffled[thin(shuffled)]
        inbound = is_inbound(thinned, reference)
        if not inbound.any():
            raise EvaluationError(
                f"none of {len(thinned)} points lies in the scan's bounding box {_box(reference)} with its margins, "
                f"but in {_extent(thinned)}: is this another scan's surface, or not in world millimetres?"
            )
        observed = is_observed(thinned, reference) & inbound
        if not observed.any():
            raise EvaluationError(
                f"none of {int(inbound.sum())} points lies where the scanner has seen anything (ObsMask): is this "
                "another scan's surface?"
            )
        scanned, targets = building.result()

    tell("measuring the accuracy")
    data_distances = np.full(len(thinned), np.nan)
    data_distances[observed] = _nearest(thinned[observed], targets, MAX_DISTANCE)

    tell("measuring the completeness")
    above = is_above_plane(scanned, reference)
    if not above.any():
        raise EvaluationError("no reference point lies above the plane of the table: do Plane and stl files match?")
    reference_distances = np.full(len(scanned), np.nan)
    reference_distances[above] = _nearest(scanned[above], _tree(thinned[inbound]), MAX_DISTANCE)

    num_points = {
        "sampled": len(points),
        "thinned": len(thinned),
        "inbound": int(inbound.sum()),
        "observed": int(observed.sum()),
        "reference": len(scanned),
        "reference_above_plane": int(above.sum()),
    }
    comparison = Comparison(Measured(thinned, data_distances), Measured(scanned, reference_distances), num_points)
    for side, name in ((comparison.data, "point"), (comparison.reference, "reference point")):
        if not len(side.counted):
            raise EvaluationError(
                f"no {name} is nearer than {MAX_DISTANCE:g} mm to the other side: is this another scan's surface?"
            )
    return comparison


def check_world_space(points: Points, reference: Reference) -> None:
    """Refuses a surface that lies in the unit sphere while the reference reaches more than 10 mm from the origin.

    Raises:
        EvaluationError: it does.
    """
    if np.abs(points).max() < LARGEST_UNIT_COORDINATE and np.abs(reference.points).max() > 10:
        raise EvaluationError(
            f"the surface lies in {_extent(points)}, in the unit sphere's coordinates, but the scan in "
            f"{_extent(reference.points)} mm: did you forget the world transform, "
            "v * scale_mat_0[0, 0] + scale_mat_0[:3, 3]? --space unit --data SCENE applies it."
        )


def to_world(points: Points, scale_mat: Float64[np.ndarray, "4 4"]) -> Points:
    """Takes points from unit-sphere coordinates to the world.

    Args:
        points: In coordinates in which the object lies in the unit sphere.
        scale_mat: A uniform scale and a translation, `scale_mat_0` of the scan.

    Raises:
        EvaluationError: the points do not lie about the unit sphere.
    """
    if np.abs(points).max() >= LARGEST_UNIT_COORDINATE:
        raise EvaluationError(
            f"the surface lies in {_extent(points)}, not in the unit sphere's coordinates: leave out --space unit."
        )
    return points * scale_mat[0, 0] + scale_mat[:3, 3]


def sample_triangles(
    vertices: Float64[np.ndarray, "vertices 3"], faces: Int64[np.ndarray, "faces 3"], spacing: float = SPACING
) -> Points:
    """All vertices, then points on a grid over each triangle that has an area, in the triangles' order.

    The grid lies along two edges and is as dense as `spacing` asks for if these are at right angles; memory beside the
    result is that of a block of triangles, or of the largest triangle.

    Raises:
        EvaluationError: there would be more than `MOST_POINTS`.
    """
    corners = vertices[faces[:, 0]]
    edge1, edge2 = vertices[faces[:, 1]] - corners, vertices[faces[:, 2]] - corners
    length1, length2 = np.linalg.norm(edge1, axis=-1), np.linalg.norm(edge2, axis=-1)
    area2 = np.linalg.norm(np.cross(edge1, edge2), axis=-1)
    solid = area2 > 0
    corners, edge1, edge2 = corners[solid], edge1[solid], edge2[solid]
    length1, length2, area2 = length1[solid], length2[solid], area2[solid]
    step = spacing * np.sqrt(length1 * length2 / area2)
    steps1, steps2 = np.floor(length1 / step), np.floor(length2 / step)

    expected = len(vertices) + float(((steps1 + 1) * (steps2 + 1)).sum()) / 2
    if expected > MOST_POINTS:
        raise EvaluationError(
            f"the triangles would hold about {expected:.0e} points {spacing:g} mm apart: is the mesh, which lies in "
            f"{_extent(vertices)}, in world millimetres?"
        )
    points = [vertices]
    for block in _blocks(((steps1 + 1) * (steps2 + 1)).astype(np.int64)):
        triangle, u, v = _grid(steps1[block], steps2[block])
        triangle += block.start
        points.append(edge1[triangle] * u[:, None] + edge2[triangle] * v[:, None] + corners[triangle])
    return np.concatenate(points)


def _blocks(counts: Int64[np.ndarray, " triangles"]) -> Iterator[slice]:
    """Runs of triangles with about `_BLOCK` grid positions in all."""
    ends = np.searchsorted(np.cumsum(counts), np.arange(_BLOCK, counts.sum() + _BLOCK, _BLOCK), side="left") + 1
    start = 0
    for end in np.unique(ends.clip(max=len(counts))):
        yield slice(start, int(end))
        start = int(end)


def _grid(
    steps1: Float64[np.ndarray, " triangles"], steps2: Float64[np.ndarray, " triangles"]
) -> tuple[Int64[np.ndarray, " points"], Float64[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
    """For each grid position within its triangle: the triangle's number, and the shares of both edges."""
    rows, columns = steps1.astype(np.int64) + 1, steps2.astype(np.int64) + 1
    counts = rows * columns
    triangle = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(triangle)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(position, columns[triangle])
    u = (row + 0.5) / np.maximum(steps1, 1e-7)[triangle]
    v = (column + 0.5) / np.maximum(steps2, 1e-7)[triangle]
    within = u + v < 1
    return triangle[within], u[within], v[within]


def thin(points: Points, radius: float = SPACING) -> Int64[np.ndarray, " kept"]:
    """Goes through the points in order and keeps each that has no kept point within the radius (or at it).

    The result is that of this loop, but it is found in growing batches: points near to kept ones of the batches
    before are dropped by one query of a tree, and pairs of near points are looked up among the rest alone. In a random
    order the rest has few of them (Blelloch, Fineman and Shun, "Greedy sequential maximal independent set and matching
    are parallel on average", 2012), so that memory is bounded by a few numbers a point, however dense the points are.
    In an order that is not random a batch with more than `_MOST_PAIRS` is halved.

    Returns:
        Numbers of the kept points, neighbours in space near to one another.
    """
    order = _spatial_order(points)
    points = points[order]
    kept = np.zeros(len(points), dtype=bool)
    start, stop = 0, _FIRST_BATCH
    while start < len(points):
        batch = np.flatnonzero((order >= start) & (order < stop))
        if start:
            batch = batch[np.isinf(_nearest(points[batch], _tree(points[kept]), np.nextafter(radius, np.inf)))]
        tree = _tree(points[batch])
        while len(batch) ** 2 > 2 * _MOST_PAIRS and tree.count_neighbors(tree, radius) > 2 * _MOST_PAIRS:
            stop = (start + stop) // 2
            batch = batch[order[batch] < stop]
            tree = _tree(points[batch])
        pairs = tree.query_pairs(radius, output_type="ndarray")
        kept[batch[_first_come(order[batch], pairs)]] = True
        start, stop = stop, 4 * stop
    return order[kept]


def _first_come(
    turns: Int64[np.ndarray, " points"], pairs: Int64[np.ndarray, "pairs 2"]
) -> Bool[np.ndarray, " points"]:
    """Which points stay, if the one whose turn is first drops all its partners that are not dropped yet.

    A point that is nobody's later partner stays for certain: so in every round those drop theirs. What `_ROUNDS` leave
    (a long row of points, each the next one's only partner) is gone through pair by pair.
    """
    swapped = turns[pairs[:, 0]] > turns[pairs[:, 1]]
    earlier = np.where(swapped, pairs[:, 1], pairs[:, 0])
    later = np.where(swapped, pairs[:, 0], pairs[:, 1])
    stays = np.ones(len(turns), dtype=bool)
    for _ in range(_ROUNDS):
        certain = np.ones(len(turns), dtype=bool)
        certain[later] = False
        stays[later[certain[earlier]]] = False
        open_pairs = stays[earlier] & stays[later]
        earlier, later = earlier[open_pairs], later[open_pairs]
        if not len(earlier):
            return stays
    turn = np.argsort(turns[later])
    for first, second in zip(earlier[turn].tolist(), later[turn].tolist(), strict=True):
        stays[second] &= not stays[first]
    return stays


def is_inbound(points: Points, reference: Reference) -> Bool[np.ndarray, " points"]:
    """Which points lie in the bounding box with its margins: 60 mm below, 120 mm above."""
    lower, upper = reference.bounding_box
    return ((points >= lower - MARGINS[0]) & (points < upper + MARGINS[1])).all(axis=-1)


def is_observed(points: Points, reference: Reference) -> Bool[np.ndarray, " points"]:
    """Which points lie in a cell that the scanner has seen; the nearest cell centre counts, halves go to even."""
    cells = np.around((points - reference.bounding_box[0]) / reference.resolution)
    inside = ((cells >= 0) & (cells < reference.observed.shape)).all(axis=-1)
    seen = np.zeros(len(points), dtype=bool)
    seen[inside] = reference.observed[tuple(cells[inside].astype(np.int64).T)]
    return seen


def is_above_plane(points: Points, reference: Reference) -> Bool[np.ndarray, " points"]:
    """Which points lie above the table."""
    return points @ reference.plane[:3] + reference.plane[3] > 0


def _nearest(points: Float[np.ndarray, "points 3"], targets: KDTree, limit: float) -> Float64[np.ndarray, " points"]:
    """Distance of each point to its nearest target, infinite from the limit on."""
    return targets.query(points, distance_upper_bound=limit, workers=-1)[0]


def _tree(points: Float[np.ndarray, "points 3"]) -> KDTree:
    """Without the median's balance: faster to build, as fast to query where points spread over a surface."""
    return KDTree(points, leafsize=20, balanced_tree=False)


def _sorted_tree(points: Float[np.ndarray, "points 3"]) -> tuple[Float[np.ndarray, "points 3"], KDTree]:
    """The points, neighbours near to one another, and a tree in which equal ones that fill a leaf are one.

    A query would be compared with each of them.
    """
    points = points[_spatial_order(points)]
    tree = _tree(points)
    leaves = points[tree.indices]
    repeated = (leaves[1:] == leaves[:-1]).all(axis=-1)
    return points, _tree(leaves[np.append(True, ~repeated)]) if repeated.any() else tree


def _spatial_order(points: Float[np.ndarray, "points 3"]) -> Int64[np.ndarray, " points"]:
    """An order in which neighbours in space are near in memory: trees built and queried in it are several times faster.

    Cell by cell; cells are made larger where their numbers would not fit an int64.
    """
    lower = points.min(axis=0)
    extent = points.max(axis=0) - lower
    cells = ((points - lower) / max(_CELL, extent.max() / 1e6)).astype(np.int64)
    _, columns, layers = cells.max(axis=0) + 1
    return np.argsort((cells[:, 0] * columns + cells[:, 1]) * layers + cells[:, 2])


def _extent(points: Float[np.ndarray, "points 3"]) -> str:
    return _span(points.min(axis=0), points.max(axis=0))


def _box(reference: Reference) -> str:
    return _span(*reference.bounding_box)


def _span(lower: Float[np.ndarray, " 3"], upper: Float[np.ndarray, " 3"]) -> str:
    return " x ".join(f"[{low:.4g}, {high:.4g}]" for low, high in zip(lower, upper, strict=True))
