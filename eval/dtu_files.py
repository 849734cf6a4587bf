"""Reading what the chamfer distance compares: meshes, point clouds, and DTU's reference files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eval.errors import EvaluationError

if TYPE_CHECKING:
    import trimesh

    from eval.chamfer import Points, Reference

Mode = Literal["mesh", "pointcloud"]
Space = Literal["world", "unit"]

DTU_SCANS = (24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 106, 110, 114, 118, 122)
"""The 15 scans of DTU on which surfaces from neural fields are compared."""
LAYOUT = "Points/stl/stl024_total.ply, ObsMask/ObsMask24_10.mat and ObsMask/Plane24.mat"
"""What a folder holds for scan 24."""
FORMATS = (".ply", ".obj")
"""Suffixes of surfaces."""


def load_mesh(path: Path) -> "trimesh.Trimesh":
    """Reads a PLY or OBJ mesh as it is: no vertex is merged or moved.

    Raises:
        EvaluationError: the file is missing or unreadable, has no triangles, or a vertex that is not finite.
    """
    import trimesh

    mesh = _load(path)
    if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
        raise EvaluationError(f"{path} has no triangles: an empty surface, or a point cloud (--mode pointcloud)?")
    check_finite(np.asarray(mesh.vertices), str(path))
    return mesh


def load_points(path: Path) -> "Points":
    """Reads the points of a PLY or OBJ file.

    Raises:
        EvaluationError: the file is missing, unreadable or empty, or a point is not finite.
    """
    points = np.array(getattr(_load(path), "vertices", ()), dtype=np.float64)
    if not len(points):
        raise EvaluationError(f"{path} holds no points.")
    check_finite(points, str(path))
    return points


def load_reference(dataset_dir: Path, scan: int) -> "Reference":
    """Reads the reference of one scan.

    Args:
        dataset_dir: Folder of DTU's evaluation files, laid out as in `LAYOUT`.
        scan: Number of the scan.

    Raises:
        EvaluationError: a file is missing or unreadable, or does not hold what it should.
    """
    from eval.chamfer import Reference, is_above_plane, is_observed

    points_path, mask_path, plane_path = check_reference(dataset_dir, scan)
    mask = _load_mat(mask_path, ("ObsMask", "BB", "Res"))
    observed, box, resolution = np.asarray(mask["ObsMask"]), np.asarray(mask["BB"]), np.asarray(mask["Res"])
    plane = np.asarray(_load_mat(plane_path, ("P",))["P"], dtype=np.float64)
    for path, key, array, fits, wanted in (
        (mask_path, "ObsMask", observed, observed.ndim == 3 and observed.any(), "a 3-D grid that is not all 0"),
        (mask_path, "BB", box, box.shape == (2, 3) and (box[0] < box[1]).all(), "two corners, the lowest first"),
        (mask_path, "Res", resolution, resolution.size == 1 and (resolution > 0).all(), "one length"),
        (plane_path, "P", plane, plane.size == 4, "the 4 numbers of a plane"),
    ):
        if not fits or not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise EvaluationError(f"{path}: {key} of shape {array.shape} is not {wanted}: copy the file again.")
    reference = Reference(
        points=load_points(points_path),
        observed=observed.astype(bool),
        bounding_box=box.astype(np.float32),
        resolution=float(resolution.item()),
        plane=plane.reshape(4),
    )
    if not is_observed(reference.points, reference).any():
        raise EvaluationError(f"no point of {points_path} lies where the scanner has seen anything by {mask_path}.")
    if not is_above_plane(reference.points, reference).any():
        raise EvaluationError(f"no point of {points_path} lies above the plane of the table in {plane_path}.")
    return reference


def check_reference(dataset_dir: Path, scan: int) -> tuple[Path, Path, Path]:
    """The files of one scan: points, observed volume and plane.

    Raises:
        EvaluationError: one is missing.
    """
    files = (
        dataset_dir / "Points" / "stl" / f"stl{scan:03}_total.ply",
        dataset_dir / "ObsMask" / f"ObsMask{scan}_10.mat",
        dataset_dir / "ObsMask" / f"Plane{scan}.mat",
    )
    missing = [str(file.relative_to(dataset_dir)) for file in files if not file.is_file()]
    if missing:
        there = _scans_there(dataset_dir)
        hint = f"it has scans {there}" if there else f"it should hold {LAYOUT}, and so on for other scans"
        raise EvaluationError(f"--dataset-dir {dataset_dir} lacks {' and '.join(missing)} of scan {scan}: {hint}.")
    return files


def find_scans(folder: Path, scans: Sequence[int]) -> dict[int, Path]:
    """Finds one surface for each scan below a folder: a .ply or .obj file, or where there are none a run's config.yml.

    A file belongs to scan 24 if its name, or else the name of the nearest folder that names a scan, has `scan24` or
    `scan024` in it, or is like `dtu_24` and `dtu_fixed_cameras_24` of VolSDF and IDR. Of files in one folder that are
    named by numbers alone, the steps of NeuS, the last counts. Files that start with `vis_` are the command's own.

    Raises:
        EvaluationError: there is no surface, or there are two for one scan.
    """
    if not folder.is_dir():
        raise EvaluationError(f"--all {folder} is no folder.")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("vis_"))
    meshes = [file for file in files if file.suffix.lower() in FORMATS]
    found: dict[int, Path] = {}
    for file in meshes or [file for file in files if file.name == "config.yml"]:
        scan = scan_of(file.relative_to(folder))
        if scan is None or scan not in scans:
            continue
        other = found.get(scan, file)
        if other != file and not _are_steps(file, other):
            raise EvaluationError(f"{folder} has two surfaces for scan {scan}, {other} and {file}: leave one.")
        found[scan] = file if other == file else max(file, other, key=lambda path: int(path.stem))
    if not found:
        raise EvaluationError(f"No scan24.ply, dtu_scan24/mesh.ply or the like below {folder} for any of the 15 scans.")
    return dict(sorted(found.items()))


def check_finite(vertices: np.ndarray, source: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        EvaluationError: a vertex is not finite.
    """
    broken = ~np.isfinite(vertices).all(axis=-1)
    if broken.any():
        raise EvaluationError(
            f"{source}: {int(broken.sum())} of {len(vertices)} vertices are NaN or infinite, the first is number "
            f"{int(broken.argmax())}: has the network diverged?"
        )


def scan_of(path: Path) -> int | None:
    """The scan that a file or folder is of by its name or a parent's; see `find_scans`."""
    for name in reversed(path.parts):
        for pattern in (r"scan_?0*(\d+)(?!\d)", r"^dtu(?:_[a-z_]+)?_0*(\d+)$"):
            if match := re.search(pattern, name, re.IGNORECASE):
                return int(match[1])
    return None


def _are_steps(file: Path, other: Path) -> bool:
    return file.parent == other.parent and file.stem.isdecimal() and other.stem.isdecimal()


def _scans_there(dataset_dir: Path) -> str:
    names = (file.name for file in (dataset_dir / "Points" / "stl").glob("stl*_total.ply"))
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"stl(\d+)_total\.ply", name)))
    return ", ".join(map(str, numbers))


def _load(path: Path) -> Any:
    from crossnorm_ns.reading import FileError, read_mesh

    try:
        return read_mesh(path, FORMATS)
    except FileError as error:
        raise EvaluationError(str(error)) from error


def _load_mat(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    from crossnorm_ns.reading import FileError, read_mat

    try:
        return read_mat(path, keys)
    except FileError as error:
        raise EvaluationError(str(error)) from error
