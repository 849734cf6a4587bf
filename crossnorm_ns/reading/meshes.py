"""Files of triangle meshes and point clouds."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossnorm_ns.reading.errors import MOST_BYTES, FileError, first_line

MESH_FORMATS = (".ply", ".obj", ".stl", ".off", ".glb")
"""Suffixes of files that consist of themselves alone."""


def read_mesh(path: Path, formats: Sequence[str] = MESH_FORMATS, **options: Any) -> Any:
    """A mesh or point cloud as it lies in its file: no materials, and no other files that it names.

    Args:
        path: the file.
        formats: suffixes that are read.
        options: of `trimesh.load`.

    Returns:
        A `trimesh.Trimesh`, `PointCloud`, or what else trimesh makes of the file; triangles know their vertices.

    Raises:
        FileError: there is no such file, or it cannot be read.
    """
    import trimesh

    if not path.is_file():
        raise FileError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise FileError(f"{path} cannot be read as a mesh: its name ends in none of {', '.join(formats)}")
    if path.stat().st_size > MOST_BYTES:
        raise FileError(f"{path} has {path.stat().st_size:,} bytes, but at most {MOST_BYTES:,} are read")
    try:
        content = path.read_bytes()
        stream = io.BytesIO(content)  # has no folder, where trimesh would look for the files that it names
        mesh: Any = trimesh.load(stream, file_type=suffix[1:], **options)
    except Exception as error:  # trimesh has no class of its own for files that it cannot read
        raise FileError(f"{path} cannot be read as a mesh ({first_line(error)}): write or copy it again") from error
    if isinstance(mesh, trimesh.Scene) and mesh.geometry:
        mesh = mesh.to_mesh()
    faces, vertices = (np.asarray(getattr(mesh, name, ())) for name in ("faces", "vertices"))
    header = content.partition(b"end_header")[0] if suffix == ".ply" else b""
    if not faces.size and re.search(rb"^element face [1-9]", header, re.MULTILINE):  # trimesh makes points of it
        raise FileError(f"{path} tells of faces, but ends before the first of them: write or copy it again")
    if faces.size and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise FileError(
            f"{path} has triangles of vertices {faces.min()} to {faces.max()}, but {len(vertices)} vertices: "
            "write or copy it again"
        )
    return mesh
