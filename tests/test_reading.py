"""Files whose headers promise far more than they hold, and what is no file: refused in one line, before any harm."""

import io
import os
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossnorm_ns.reading import (
    MOST_BYTES,
    FileError,
    check_picture,
    read_arrays,
    read_json,
    read_mat,
    read_mesh,
    read_picture,
    read_tensors,
    read_text,
)

HUGE = 10**12


def picture(width: int, height: int) -> bytes:
    """A PNG of 2x2 pixels whose header, checksum included, tells of another size."""
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    content = stream.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def array(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(16)


def archive(size: int) -> bytes:
    """A .npz whose directory tells of another size of its one array."""
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(4, np.float32))
    content = bytearray(stream.getvalue())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, size)
    return bytes(content)


def mesh(kind: str, vertices: int, faces: int) -> bytes:
    lines = ["ply", f"format {kind} 1.0", f"element vertex {vertices}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"element face {faces}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(lines).encode() + bytes(12)


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("a.png", picture(100_000, 100_000), read_picture),
        ("a.png", picture(2**31 - 1, 2**31 - 1), check_picture),
        ("a.npy", array((HUGE,)), read_arrays),
        ("a.npy", array((2**40, 2**40)), read_arrays),
        ("a.npy", array((-1,)), read_arrays),
        ("a.npz", archive(2**32 - 2), read_arrays),
        ("a.npz", archive(MOST_BYTES + 1), read_arrays),
        ("a.ply", mesh("binary_little_endian", HUGE, 0), read_mesh),
        ("a.ply", mesh("binary_little_endian", 1, HUGE), read_mesh),
        ("a.ply", mesh("ascii", HUGE, HUGE), read_mesh),
    ],
)
def test_what_a_header_promises_is_not_allocated(
    tmp_path: Path, name: str, content: bytes, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=name) as refused:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert peak < 2**26


def test_the_same_files_with_honest_headers_are_read(tmp_path: Path) -> None:
    for name, content in (("a.png", picture(2, 2)), ("a.npy", array((4,))), ("a.npz", archive(144))):
        (tmp_path / name).write_bytes(content)
    assert check_picture(tmp_path / "a.png") == ((2, 2), "RGB")
    assert np.array_equal(read_arrays(tmp_path / "a.npy"), np.zeros(4))
    arrays = read_arrays(tmp_path / "a.npz")
    assert isinstance(arrays, dict) and np.array_equal(arrays["a"], np.zeros(4))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # such names are short


def make_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_pipe, "a named pipe"),
        (make_socket, "a socket"),
        (make_link_to_a_device, "a device"),
        (make_folder, "a folder"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [check_picture, read_arrays, read_json, lambda path: read_mat(path, ["P"]), read_picture, read_tensors, read_text],
)
def test_what_is_no_file_is_refused_without_being_opened(
    tmp_path: Path, monkeypatch: Any, read: Callable[[Path], Any], make: Callable[[Path], None], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "name"
    make(path)
    with pytest.raises(FileError, match=f"name cannot be read .*it is no file, but {what}"):
        read(path)


@pytest.mark.usefixtures("no_waiting")
def test_a_mesh_is_read_from_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ply")
    with pytest.raises(FileError, match="there is no file .*a.ply"):
        read_mesh(tmp_path / "a.ply")
