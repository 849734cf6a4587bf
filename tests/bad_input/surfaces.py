"""Surfaces and DTU's reference files, as eval.dtu_chamfer reads them."""

import io
import json
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from chamfer_files import square, write_reference
from damage import Damage, zeros_compressed
from fits import damaged_obj, damaged_ply
from independent import read_obj, read_ply
from kinds import Kind
from scipy.io import loadmat, savemat

import eval.dtu_chamfer
from eval.dtu_files import load_mesh, load_reference

MASK, PLANE, POINTS = "dtu/ObsMask/ObsMask24_10.mat", "dtu/ObsMask/Plane24.mat", "dtu/Points/stl/stl024_total.ply"


def _make(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_reference(folder / "dtu")
        square(0.5).export(folder / f"mesh{suffix}")

    return make


def _measure(suffix: str) -> None:
    words = ["--mesh", f"mesh{suffix}", "--dataset-dir", "dtu", "--scan", "24", "--output", "results/chamfer.json"]
    sys.argv = ["eval.dtu_chamfer", *words]
    eval.dtu_chamfer.run()
    assert math.isfinite(json.loads(Path("results/chamfer.json").read_text())["overall"])


def _measure_mesh(suffix: str) -> Callable[[], dict[str, Any]]:
    def measure() -> dict[str, Any]:
        _measure(suffix)
        return {"triangles": np.asarray(load_mesh(Path(f"mesh{suffix}")).triangles)}

    return measure


def _measure_reference() -> dict[str, Any]:
    _measure(".ply")
    reference = load_reference(Path("dtu"), 24)
    return {
        "points": reference.points,
        "observed": reference.observed,
        "box": reference.bounding_box,
        "resolution": reference.resolution,
        "plane": reference.plane,
    }


def _true_mesh_ply(folder: Path) -> dict[str, Any]:
    vertices, faces = read_ply(folder / "mesh.ply")
    return {"triangles": vertices[faces]}


def _true_mesh_obj(folder: Path) -> dict[str, Any]:
    vertices, faces = read_obj((folder / "mesh.obj").read_text(errors="replace"))
    return {"triangles": vertices[faces]}


def _true_reference(folder: Path) -> dict[str, Any]:
    mask, plane = _numbers((folder / MASK).read_bytes()), _numbers((folder / PLANE).read_bytes())
    points, _ = read_ply(folder / POINTS)
    return {
        "points": points,
        "observed": mask["ObsMask"] != 0,
        "box": mask["BB"],
        "resolution": mask["Res"].item(),
        "plane": plane["P"].ravel(),
    }


def _damaged_surface(content: bytes) -> Iterator[Damage]:
    yield from damaged_ply(content)
    head, mark, body = content.partition(b"end_header\n")
    for title, value, refused in (
        ("NaN", np.nan, True),
        ("infinity", np.inf, True),
        ("the largest number", 3.4e38, True),
        ("10^18 mm", 1e18, True),
        ("10 km", 1e7, True),
    ):
        yield Damage(f"a vertex of {title}", head + mark + struct.pack("<f", value) + body[4:], refused)
    corners = np.frombuffer(body, np.float32, 12).reshape(4, 3)
    for title, moved in {
        "another scan's place": corners + 5000,
        "the unit sphere": corners / 1000,
        "no extent": corners * 0 + corners[:1],
        "a line": corners * np.float32([1, 0, 0]) + corners[0] * np.float32([0, 1, 1]),
    }.items():
        yield Damage(f"a surface with {title}", head + mark + moved.astype(np.float32).tobytes() + body[48:])
    lists = body[48:]
    yield Damage(
        "a face of a vertex that is not there", head + mark + body[:48] + lists[:1] + b"\x09" + lists[2:], True
    )
    yield Damage("a face of 255 corners", head + mark + body[:48] + b"\xff" + lists[1:], True)


def _damaged_points(content: bytes) -> Iterator[Damage]:
    head, mark, body = content.partition(b"end_header\n")
    count = int(head.split(b"element vertex")[1].split()[0])
    for title, number in {"10^12": 10**12, "one more": count + 1, "no": 0}.items():
        changed = head.replace(b"vertex %d" % count, b"vertex %d" % number)
        yield Damage(f"{title} points", changed + mark + body, refused=True)
    size = len(body) // count
    for title, value, refused in (("NaN", np.nan, True), ("infinity", np.inf, True), ("3e38", 3e38, False)):
        yield Damage(f"a point of {title}", head + mark + struct.pack("<f", value) + body[4:], refused)
    far = np.frombuffer(body, np.uint8).reshape(count, size).copy()
    far[:, :12] = np.frombuffer(np.full((count, 3), 1e6, np.float32).tobytes(), np.uint8).reshape(count, 12)
    yield Damage("all points elsewhere", head + mark + far.tobytes(), refused=True)


def _numbers(content: bytes) -> dict[str, np.ndarray]:
    """By scipy, which is not safe for files that are not valid."""
    return {name: array for name, array in loadmat(io.BytesIO(content)).items() if not name.startswith("__")}


def _element(kind: int, data: bytes) -> bytes:
    """Of a version 5 .mat file."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _matrix(name: str, shape: tuple[int, ...], data: bytes, flags: int = 9, kind: int = 2) -> bytes:
    """An array with a header that says what it likes: by default of bytes."""
    parts = [_element(6, struct.pack("<II", flags, 0)), _element(5, struct.pack(f"<{len(shape)}i", *shape))]
    return _element(14, b"".join([*parts, _element(1, name.encode()), _element(kind, data)]))


def _packed(element: bytes) -> bytes:
    data = zlib.compress(element)
    return struct.pack("<II", 15, len(data)) + data


def _saved(arrays: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, arrays, **options)
    return stream.getvalue()


def _damaged_mat(content: bytes, name: str, arrays: dict[str, np.ndarray]) -> Iterator[Damage]:
    """Version 5 files whose array of this name is not as it should be."""
    head = content[:128]
    rest = b"".join(_saved({other: array})[128:] for other, array in arrays.items() if other != name)
    for title, element in {
        "2 billion a side": _matrix(name, (2**31 - 1,) * 3, bytes(64)),
        "2^62 numbers": _matrix(name, (2**31 - 1, 2**31 - 1), bytes(64)),
        "-1 a side": _matrix(name, (-1, -1, -1), bytes(64)),
        "no sides": _matrix(name, (), bytes(64)),
        "1,000 axes": _matrix(name, (1,) * 1000, bytes(8)),
        "100,000 axes": _matrix(name, (2**31 - 1,) * 10**5, bytes(8)),
        "a million parts": _element(14, _element(6, bytes(8)) * 10**6),
        "no numbers": _matrix(name, (0, 0), b""),
        "fewer numbers than it has": _matrix(name, (100, 100, 100), bytes(64)),
        "4 GiB of numbers": _matrix(name, (8, 8), b"")[:-8] + struct.pack("<II", 2, 2**32 - 1),
        "a class that there is not": _matrix(name, (8, 8), bytes(64), flags=99),
        "cells": _matrix(name, (8, 8), bytes(64), flags=1),
        "a structure": _matrix(name, (1, 1), bytes(64), flags=2),
        "an object": _matrix(name, (1, 1), bytes(64), flags=3),
        "text": _matrix(name, (1, 4), b"text", flags=4, kind=16),
        "a sparse array": _matrix(name, (8, 8), bytes(64), flags=5),
        "numbers of an unknown kind": _matrix(name, (8, 8), bytes(64), kind=77),
        "a name of 1 MB": _matrix(name * 2**19, (8, 8), bytes(64)),
    }.items():
        yield Damage(f"{name} of {title}", head + element + rest, refused=True)
        yield Damage(f"{name} of {title}, packed", head + _packed(element) + rest, refused=True)
    bomb = zeros_compressed(2**30)
    yield Damage("1 GiB of zeros", head + struct.pack("<II", 15, len(bomb)) + bomb + rest, refused=True)
    yield Damage("an element of 4 GiB", head + struct.pack("<II", 14, 2**32 - 1) + bytes(64) + rest, refused=True)
    deep, cell = b"", _element(6, struct.pack("<II", 1, 0)) + _element(5, struct.pack("<2i", 1, 1)) + _element(1, b"")
    for _ in range(2000):
        deep = _element(14, cell + deep)
    yield Damage("2,000 cells in cells", head + deep + rest, refused=True)
    yield Damage("packed cells in cells", head + _packed(deep) + rest, refused=True)
    yield Damage(
        "version 7.3", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM\x89HDF\r\n\x1a\n" + bytes(400), refused=True
    )
    yield Damage("version 9", head[:124] + b"\x00\x09IM" + content[128:], refused=True)
    yield Damage("the other byte order", head[:126] + b"MI" + content[128:], refused=True)
    yield Damage("other names", _saved({f"a{other}": array for other, array in arrays.items()}), refused=True)
    yield Damage("packed", _saved(arrays, do_compression=True))
    yield Damage("another array beside", _saved(arrays | {"other": np.ones(3)}))


def _damaged_mask(content: bytes) -> Iterator[Damage]:
    arrays = _numbers(content)
    yield from _damaged_mat(content, "ObsMask", arrays)
    box = arrays["BB"]
    for title, changed, refused in (
        ("a box of NaN", {"BB": box * np.nan}, True),
        ("a box without end", {"BB": np.array([[-np.inf] * 3, [np.inf] * 3])}, True),
        ("a box upside down", {"BB": box[::-1]}, True),
        ("a box of a point", {"BB": box[:1]}, True),
        ("a box beyond single precision", {"BB": box * 1e300}, True),
        ("a box elsewhere", {"BB": box + 1e6}, True),
        ("cells of no size", {"Res": np.array([[0.0]])}, True),
        ("cells of negative size", {"Res": np.array([[-1.0]])}, True),
        ("cells of NaN", {"Res": np.array([[np.nan]])}, True),
        ("cells without end", {"Res": np.array([[np.inf]])}, True),
        ("cells of 1e-300", {"Res": np.array([[1e-300]])}, True),
        ("several sizes of cells", {"Res": np.ones((1, 2))}, True),
        ("nothing seen", {"ObsMask": arrays["ObsMask"] * 0}, True),
        ("a mask of one cell", {"ObsMask": arrays["ObsMask"][:1, :1, :1]}, True),
        ("a flat mask", {"ObsMask": arrays["ObsMask"][0]}, True),
        ("a mask of truth values", {"ObsMask": arrays["ObsMask"] > 0}, False),
        ("a mask of complex numbers", {"ObsMask": arrays["ObsMask"] * 1j}, True),
        ("a mask of NaN", {"ObsMask": arrays["ObsMask"] * np.nan}, True),
        ("a mask of infinity", {"ObsMask": arrays["ObsMask"] * np.inf}, True),
        ("a box of texts", {"BB": np.array([["a", "b", "c"], ["d", "e", "f"]])}, True),
    ):
        yield Damage(title, _saved(arrays | changed), refused)


def _damaged_plane(content: bytes) -> Iterator[Damage]:
    arrays = _numbers(content)
    yield from _damaged_mat(content, "P", arrays)
    for title, plane, refused in (
        ("NaN", np.full((4, 1), np.nan), True),
        ("infinity", np.full((4, 1), np.inf), True),
        ("zeros", np.zeros((4, 1)), True),
        ("three numbers", np.ones((3, 1)), True),
        ("complex numbers", np.ones((4, 1)) * 1j, True),
        ("the other side", -arrays["P"], True),
        ("numbers beyond single precision", arrays["P"] * 1e300, True),
        ("a row", arrays["P"].T, False),
    ):
        yield Damage(f"a plane of {title}", _saved({"P": plane}), refused)


KINDS = [
    Kind("PLY, eval.dtu_chamfer", "mesh.ply", _make(".ply"), _measure_mesh(".ply"), _true_mesh_ply, _damaged_surface),
    Kind("OBJ, eval.dtu_chamfer", "mesh.obj", _make(".obj"), _measure_mesh(".obj"), _true_mesh_obj, damaged_obj),
    Kind("points of a scan (.ply)", POINTS, _make(".ply"), _measure_reference, _true_reference, _damaged_points),
    Kind("ObsMask (.mat)", MASK, _make(".ply"), _measure_reference, _true_reference, _damaged_mask),
    Kind("Plane (.mat)", PLANE, _make(".ply"), _measure_reference, _true_reference, _damaged_plane),
]
