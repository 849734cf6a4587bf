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
_NUMBER = rb"[ \t]+[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[nN]a[nN]|[iI]nf(?:inity)?)"
_CORNER = rb"[ \t]+-?[1-9]\d*(?:/-?\d*){0,2}"
_OTHER_WORDS = rb"""vn vt vp o g s mg l p usemtl mtllib usemap maplib deg bmat step cstype curv curv2 surf parm trim
hole scrv sp end con bevel c_interp d_interp lod shadow_obj trace_obj ctech stech"""
_NO_LINE_OF_OBJ = re.compile(
    rb"^(?![ \t]*(?:(?:v(?:%s){3,7}|f(?:%s){3,256}|(?:%s)(?:[ \t].*)?)[ \t\r\f\v]*|[\r\f\v][ \t\r\f\v]*)?(?:#.*)?$)"
    % (_NUMBER, _CORNER, rb"|".join(_OTHER_WORDS.split())),
    re.MULTILINE,
)
_TYPE = rb"(?:char|uchar|short|ushort|u?int|float|double|u?int(?:8|16|32)|float(?:32|64))"
_LINE_OF_PLY = re.compile(
    rb"(?:(?:comment|obj_info).*|format (?:ascii|binary_little_endian|binary_big_endian) 1\.0|element \w+ \d+|"
    rb"property (?:list %s )?%s \w+)[ \t\r]*" % (_TYPE, _TYPE)
)
_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_HEADER = 2**16
"""Bytes of a PLY's header."""
_COUNTS = {
    ".ply": {"vertices": rb"^element vertex (\d+)", "faces": rb"^element face (\d+)"},
    ".off": {"vertices": rb"\A[A-Z0-9]*OFF\s+(\d+)", "faces": rb"\A[A-Z0-9]*OFF\s+\d+\s+(\d+)"},
}
"""How headers tell of their vertices and faces."""


def read_mesh(path: Path, formats: Sequence[str] = MESH_FORMATS) -> Any:
    """A mesh or point cloud as it lies in its file: nothing merged, no materials, and no other files that it names.

    Args:
        path: the file.
        formats: suffixes that are read.

    Returns:
        A `trimesh.Trimesh`, `PointCloud`, or what else trimesh makes of the file; triangles know their vertices.

    Raises:
        FileError: there is no such file, or it cannot be read, or holds less than it says.
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
        if suffix == ".obj":
            _check_lines(content)
        elif suffix == ".ply":
            _check_header(content)
        stream = io.BytesIO(content)  # has no folder, where trimesh would look for the files that it names
        mesh: Any = trimesh.load(stream, file_type=suffix[1:], process=False)
        if isinstance(mesh, trimesh.Scene) and mesh.geometry:
            mesh = mesh.to_mesh()
        _check_counts(content, suffix, mesh)
    except Exception as error:  # trimesh has no class of its own for files that it cannot read
        raise FileError(f"{path} cannot be read as a mesh ({first_line(error)}): write or copy it again") from error
    return mesh


def _check_lines(content: bytes) -> None:
    """Refuses an OBJ with lines that readers pass over, since they cannot make anything of them."""
    found = _NO_LINE_OF_OBJ.search(content.replace(b"\\\r\n", b" ").replace(b"\\\n", b" "))
    if found is not None:
        number = content[: found.start()].count(b"\n") + 1
        raise ValueError(f"its line {number} is none of OBJ")


def _check_header(content: bytes) -> None:
    """Refuses a PLY with a header that readers understand in part."""
    header, end, _ = content[:_LONGEST_HEADER].partition(b"end_header")
    lines = header.splitlines()
    if not end or lines[:1] != [b"ply"] or sum(line.startswith(b"format ") for line in lines) != 1:
        raise ValueError("it has no header of PLY")
    for line in lines[1:]:
        if not _LINE_OF_PLY.fullmatch(line):
            raise ValueError(f"its header says {line[:40].decode(errors='replace')!r}, which is none of PLY")


def _check_counts(content: bytes, suffix: str, mesh: Any) -> None:
    """Refuses a mesh that has less than its header says, triangles of vertices that it has not, or huge numbers."""
    faces, vertices = (np.asarray(getattr(mesh, name, ())) for name in ("faces", "vertices"))
    header = content.partition(b"end_header")[0]
    for name, pattern in _COUNTS.get(suffix, {}).items():
        there, found = len(getattr(mesh, name, ())), re.search(pattern, header, re.MULTILINE)
        if found is not None and int(found[1]) > there:
            raise ValueError(f"its header tells of {int(found[1])} {name}, but there are {there}")
    if faces.size and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise ValueError(f"triangles of vertices {faces.min()} to {faces.max()}, but {len(vertices)} vertices")
    if _LARGEST < np.nanmax(np.abs(vertices), initial=0) < np.inf:
        raise ValueError("its coordinates are beyond single precision")
