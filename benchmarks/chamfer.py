"""What DTU's chamfer distance costs beside its straightforward form: the table of docs/results/chamfer.md.

    python -m benchmarks.chamfer            # 500,000 triangles and 2,000,000 reference points
    python -m benchmarks.chamfer --check    # also fails if it is slower or larger than it may be
    python -m benchmarks.chamfer --quick    # a fiftieth of that: to try the benchmark

The straightforward form does as DTUeval-python does: a call for each triangle, all neighbours within 0.2 mm of all
points in memory, scikit-learn's trees (three are built). It samples in a plain loop; how long that takes on a pool of
processes, as in DTUeval-python, is measured beside it. Both sides start from arrays in memory, each in a process of its
own, whose largest resident memory (Linux's VmHWM) is read at its end. Ours runs before and after, and its times are the
means, so that a change of the machine's speed meets both. Run it on a machine that does nothing else; on a busy one the
processor time still tells.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console

from crossnorm_ns.provenance import machine, provenance
from eval.chamfer import Points, Reference, compare, is_above_plane, is_inbound, is_observed, sample_triangles

LEAST_SPEED_UP = 8.0
MOST_MEMORY = 2.0
"""GiB."""
MOST_DIFFERENCE = 5e-4
"""Between the results, relative."""
STAGES = ("sampling", "thinning", "accuracy", "completeness")
RADIUS = 70.0
"""Of the object at 500,000 triangles, millimetres; fewer triangles of the same size make a smaller one."""


@dataclass
class Options:
    """Measures the chamfer distance beside its straightforward form."""

    triangles: int = 500_000
    """About as many; what there are is printed."""
    points: int = 2_000_000
    """Of the reference."""
    quick: bool = False
    """A fiftieth of both: to try the benchmark. Name another folder for --docs."""
    check: bool = False
    """Exits with 1 if it is slower or larger than it may be, or the results differ."""
    docs: Path = Path("docs")
    """Where results/chamfer.md and .json go."""


@dataclass
class Measurement:
    """One side, run once."""

    accuracy: float = 0.0
    completeness: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""
    processor_seconds: float = 0.0
    """Of all stages and threads: what a machine that is busy with other things still measures."""
    memory: float = 0.0
    """Largest resident memory, GiB."""
    num_points: dict[str, int] = field(default_factory=dict)
    pool_seconds: float = 0.0
    """Of sampling on a pool of processes; the straightforward form alone."""

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a block."""
        start, processor_start = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.processor_seconds += time.process_time() - processor_start


def main(options: Options) -> None:
    """Measures, stores, prints and, on request, judges."""
    shrink = 50 if options.quick else 1
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("making the case") as status:
        path = Path(folder) / "case.npz"
        case = make_case(options.triangles // shrink, options.points // shrink)
        np.savez(path, **case)
        measurements: dict[str, list[Measurement]] = {"ours": [], "straightforward": []}
        for side in ("ours", "straightforward", "ours"):
            status.update(f"measuring: {side}")
            measurements[side].append(_in_own_process(side, path))
        ours, theirs = _mean(measurements["ours"]), measurements["straightforward"][0]
    conditions = f"{len(case['faces']):,} triangles; {_conditions(load)}"
    table = report(ours, theirs, conditions)
    results = options.docs / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "chamfer.md").write_text(table + "\n")
    stored = {"conditions": conditions, "seed": 0, **provenance(), "ours": vars(ours), "straightforward": vars(theirs)}
    (results / "chamfer.json").write_text(json.dumps(stored, indent=1) + "\n")
    print(table)
    if options.check and (found := complaints(ours, theirs)):
        sys.exit("\n".join(found))  # status 1


def make_case(num_triangles: int, num_points: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A bumpy sphere as marching cubes mesh it, and noisy points on it, at the size and place of DTU's objects."""
    from skimage.measure import marching_cubes

    radius = RADIUS * math.sqrt(num_triangles / 500_000)
    spacing = math.sqrt(12 * math.pi * radius**2 / num_triangles)
    axis = np.arange(-1.2 * radius - 3, 1.2 * radius + 3, spacing, dtype=np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    distance = np.sqrt(x**2 + y**2 + z**2) - radius + 3 * np.sin(x / 9) * np.sin(y / 7) * np.sin(z / 8)
    vertices, faces, _, _ = marching_cubes(distance, 0, spacing=(spacing,) * 3)
    centre = np.array([-30.0, 20.0, 620.0])
    vertices = vertices.astype(np.float64) + axis[0] + centre
    rng = np.random.default_rng(seed)
    corners = vertices[faces[rng.integers(len(faces), size=num_points)]]
    points = np.einsum("nk,nkd->nd", rng.dirichlet([1, 1, 1], size=num_points), corners)
    observed = rng.random((60, 60, 60)) < 0.9
    return {
        "vertices": vertices,
        "faces": faces.astype(np.int64),
        "points": points + rng.normal(0, 0.1, points.shape),
        "observed": observed.repeat(3, 0).repeat(3, 1).repeat(3, 2),
        "bounding_box": np.stack([centre - 85, centre + 95]).astype(np.float32),
        "plane": np.array([0, -1, 0, centre[1] + 0.7 * radius]),
    }


def measure(side: Literal["ours", "straightforward"], path: Path) -> Measurement:
    """Runs one side on a stored case."""
    with np.load(path) as case:
        mesh = case["vertices"], case["faces"]
        reference = Reference(case["points"], case["observed"], case["bounding_box"], 1.0, case["plane"])
    measured = (ours if side == "ours" else straightforward)(*mesh, reference)
    measured.memory = _largest_memory()
    if side == "straightforward":
        start = time.perf_counter()
        sample_straightforwardly(*mesh, pool=True)
        measured.pool_seconds = time.perf_counter() - start
    return measured


def ours(vertices: Points, faces: np.ndarray, reference: Reference, seed: int = 0) -> Measurement:
    """The project's own functions."""
    measured = Measurement()
    with measured.stage("sampling"):
        points = sample_triangles(vertices, faces)
    starts = []
    with measured.stage("comparison"):
        comparison = compare(points, reference, seed, lambda stage: starts.append(time.perf_counter()))
    ends = [*starts[1:], starts[0] + measured.seconds.pop("comparison")]
    measured.seconds |= {name: end - start for name, start, end in zip(STAGES[1:], starts, ends, strict=True)}
    measured.accuracy, measured.completeness = comparison.accuracy, comparison.completeness
    measured.num_points = comparison.num_points
    return measured


def straightforward(vertices: Points, faces: np.ndarray, reference: Reference, seed: int = 0) -> Measurement:
    """The same numbers in the straightforward way."""
    from sklearn.neighbors import NearestNeighbors

    measured = Measurement()
    with measured.stage("sampling"):
        points = sample_straightforwardly(vertices, faces)
    with measured.stage("thinning"):
        np.random.default_rng(seed).shuffle(points, axis=0)
        tree = NearestNeighbors(n_neighbors=1, radius=0.2, algorithm="kd_tree", n_jobs=-1).fit(points)
        neighbours = tree.radius_neighbors(points, return_distance=False)
        kept = np.ones(len(points), dtype=bool)
        for number, near in enumerate(neighbours):
            if kept[number]:
                kept[near] = False
                kept[number] = True
        thinned = points[kept]
    with measured.stage("accuracy"):
        inbound = thinned[is_inbound(thinned, reference)]
        observed = inbound[is_observed(inbound, reference)]
        distances, _ = tree.fit(reference.points).kneighbors(observed)
        measured.accuracy = float(distances[distances < 20].mean())
    with measured.stage("completeness"):
        above = reference.points[is_above_plane(reference.points, reference)]
        distances, _ = tree.fit(inbound).kneighbors(above)
        measured.completeness = float(distances[distances < 20].mean())
    return measured


def sample_straightforwardly(vertices: Points, faces: np.ndarray, pool: bool = False) -> Points:
    """All vertices, and a call of `_sample_triangle` for each triangle, in this process or on a pool."""
    corners = vertices[faces]
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    length1, length2 = (np.linalg.norm(edge, axis=-1) for edge in (edge1, edge2))
    area2 = np.linalg.norm(np.cross(edge1, edge2), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = 0.2 * np.sqrt(length1 * length2 / area2)
        steps1, steps2 = np.floor(length1 / step), np.floor(length2 / step)
    jobs = ((int(steps1[i]), int(steps2[i]), edge1[i], edge2[i], corners[i, 0]) for i in np.flatnonzero(area2 > 0))
    if pool:
        with multiprocessing.get_context("fork").Pool() as processes:
            sampled = processes.map(_sample_triangle, jobs, chunksize=1024)
    else:
        sampled = [_sample_triangle(job) for job in jobs]
    return np.concatenate([vertices, *sampled])


def _sample_triangle(job: tuple[int, int, np.ndarray, np.ndarray, np.ndarray]) -> Points:
    steps1, steps2, edge1, edge2, corner = job
    u, v = (np.mgrid[: steps1 + 1, : steps2 + 1] + 0.5) / np.array([steps1, steps2]).clip(1e-7)[:, None, None]
    within = u + v < 1
    return u[within][:, None] * edge1 + v[within][:, None] * edge2 + corner


def report(ours: Measurement, theirs: Measurement, conditions: str) -> str:
    """The table, and a line of conditions, counts and agreement."""
    lines = ["| stage | straightforward (s) | ours (s) | times faster |", "| --- | --- | --- | --- |"]
    for name in STAGES:
        mine, other = ours.seconds[name], theirs.seconds[name]
        lines.append(f"| {name} | {other:.2f} | {mine:.2f} | {other / mine:.1f} |")
    lines.append(f"| **all** | **{theirs.total:.2f}** | **{ours.total:.2f}** | **{theirs.total / ours.total:.1f}** |")
    pooled = theirs.total - theirs.seconds["sampling"] + theirs.pool_seconds
    lines.append(f"| all, straightforward sampling on a pool | {pooled:.2f} | | {pooled / ours.total:.1f} |")
    mine, other = ours.processor_seconds, theirs.processor_seconds
    lines.append(f"| all, processor time of all threads | {other:.2f} | {mine:.2f} | {other / mine:.1f} |")
    lines.append(f"| largest memory (GiB) | {theirs.memory:.2f} | {ours.memory:.2f} | |")
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in ours.num_points.items())
    return (
        f"{conditions}.\n\nPoints: {counts}. Largest relative difference of accuracy and completeness: "
        f"{_difference(ours, theirs):.1e}.\n\n" + "\n".join(lines)
    )


def complaints(ours: Measurement, theirs: Measurement) -> list[str]:
    """A line for each figure that is worse than it must be."""
    figures = (
        ("times faster", -theirs.total / ours.total, -LEAST_SPEED_UP),
        ("largest memory in GiB", ours.memory, MOST_MEMORY),
        ("relative difference of results", _difference(ours, theirs), MOST_DIFFERENCE),
    )
    return [
        f"worse than it must be: {name}: {abs(found):.3g}, not {abs(must):.3g}"
        for name, found, must in figures
        if not found <= must
    ]


def _difference(ours: Measurement, theirs: Measurement) -> float:
    pairs = ((ours.accuracy, theirs.accuracy), (ours.completeness, theirs.completeness))
    return max(abs(mine / other - 1) for mine, other in pairs)


def _mean(runs: list[Measurement]) -> Measurement:
    """Times are means, memory is the larger; the results are equal."""
    first = runs[0]
    assert all((run.accuracy, run.completeness) == (first.accuracy, first.completeness) for run in runs)
    seconds = {name: sum(run.seconds[name] for run in runs) / len(runs) for name in STAGES}
    return replace(
        first,
        seconds=seconds,
        processor_seconds=sum(run.processor_seconds for run in runs) / len(runs),
        memory=max(run.memory for run in runs),
    )


def _in_own_process(side: str, path: Path) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(measure, side, path).result()  # type: ignore[arg-type]


def _largest_memory() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("this system's /proc does not tell the largest resident memory (VmHWM)")


def _conditions(load: float) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn"))
    return f"{machine()}, load of other work {load:.1f}, {packages}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
