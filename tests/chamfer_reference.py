"""The chamfer distance of DTU by loops over single triangles and points, straight from its rules: an oracle."""

from __future__ import annotations

import math

import numpy as np

from eval.chamfer import Reference


def sample_triangles(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """All vertices, then for each triangle its grid."""
    points = [np.array(vertex) for vertex in vertices]
    for a, b, c in vertices[faces]:
        edge1, edge2 = b - a, c - a
        area2 = np.linalg.norm(np.cross(edge1, edge2))
        if not area2 > 0:
            continue
        length1, length2 = np.linalg.norm(edge1), np.linalg.norm(edge2)
        step = 0.2 * math.sqrt(length1 * length2 / area2)
        steps1, steps2 = math.floor(length1 / step), math.floor(length2 / step)
        for i in range(steps1 + 1):
            for j in range(steps2 + 1):
                u, v = (i + 0.5) / max(steps1, 1e-7), (j + 0.5) / max(steps2, 1e-7)
                if u + v < 1:
                    points.append(edge1 * u + edge2 * v + a)
    return np.array(points)


def thin(points: np.ndarray, radius: float = 0.2) -> list[int]:
    """Numbers of the points that have no earlier kept point within the radius."""
    kept: list[int] = []
    for number, point in enumerate(points):
        if not kept or ((points[kept] - point) ** 2).sum(axis=-1).min() > radius * radius:
            kept.append(number)
    return kept


def chamfer(vertices: np.ndarray, faces: np.ndarray, reference: Reference, seed: int) -> dict[str, float]:
    """Accuracy, completeness, their medians, and how many points there are after each rule."""
    points = sample_triangles(vertices, faces)
    sampled = len(points)
    np.random.default_rng(seed).shuffle(points, axis=0)
    points = points[thin(points)]
    lower, upper = reference.bounding_box
    inbound = [p for p in points if all(p >= lower - 60) and all(p < upper + 120)]
    observed = []
    for point in inbound:
        cell = tuple(round(x) for x in ((point - lower) / reference.resolution).tolist())
        if all(0 <= c < n for c, n in zip(cell, reference.observed.shape, strict=True)) and reference.observed[cell]:
            observed.append(point)
    above = [p for p in reference.points if np.dot(np.append(p, 1.0), reference.plane) > 0]
    accuracy, completeness = _distances(observed, reference.points), _distances(above, np.array(inbound))
    return {
        "accuracy": float(np.mean(accuracy)),
        "completeness": float(np.mean(completeness)),
        "accuracy_median": float(np.median(accuracy)),
        "completeness_median": float(np.median(completeness)),
        "sampled": sampled,
        "thinned": len(points),
        "inbound": len(inbound),
        "observed": len(observed),
        "reference_above_plane": len(above),
    }


def _distances(points: list[np.ndarray], targets: np.ndarray) -> list[float]:
    """Below 20 mm."""
    nearest = [float(np.sqrt(((targets - point) ** 2).sum(axis=-1)).min()) for point in points]
    return [distance for distance in nearest if distance < 20]
