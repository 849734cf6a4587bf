"""Files whose headers promise far more than they hold, and what is no file: refused in one line, before any harm."""

import io
import os
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrices(parts: bytes) -> bytes:
    """A .mat file with one packed array of these parts."""
    packed = zlib.compress(element(14, parts))
    return b"MATLAB 5.0".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(packed)) + packed


def read_p(path: Path) -> Any:
    return read_mat(path, ["P"])


FLAGS, NAME, NUMBER = element(6, struct.pack("<II", 6, 0)), element(1, b"P"), element(9, struct.pack("<d", 1.0))


def tiles(side: int) -> bytes:
    """A TIFF of 16x16 pixels in one packed tile that is larger."""
    packed = zlib.compress(bytes(4 * 64**2))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


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
        ("a.mat", matrices(FLAGS + element(5, b"\xff\xff\xff\x7f" * 10**6) + NAME + NUMBER), read_p),
        ("a.mat", matrices(FLAGS * 10**6), read_p),
        ("a.png", tiles(32_000), check_picture),
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
    for name, content in {
        "a.png": picture(2, 2),
        "a.npy": array((4,)),
        "a.npz": archive(144),
        "a.mat": matrices(FLAGS + element(5, struct.pack("<ii", 1, 1)) + NAME + NUMBER),
        "a.tif": tiles(64),
    }.items():
        (tmp_path / name).write_bytes(content)
    assert read_p(tmp_path / "a.mat")["P"].tolist() == [[1.0]]
    assert read_picture(tmp_path / "a.tif").size == (16, 16)
    assert check_picture(tmp_path / "a.png") == ((2, 2), "RGB")
    assert np.array_equal(read_arrays(tmp_path / "a.npy"), np.zeros(4))
    arrays = read_arrays(tmp_path / "a.npz")
    assert isinstance(arrays, dict) and np.array_equal(arrays["a"], np.zeros(4))


def tensors(program: bytes) -> bytes:
    """A file of torch with this pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in {"data.pkl": program, "version": b"3\n", "byteorder": b"little"}.items():
            file.writestr(f"archive/{name}", content)
    return stream.getvalue()


def calling(name: str, *arguments: bytes) -> bytes:
    """A pickle of {"a": what this class or function makes}."""
    module, _, function = name.rpartition(".")
    return b"\x80\x02}X\x01\0\0\0ac%s\n%s\n(%stRs." % (module.encode(), function.encode(), b"".join(arguments))


MUCH = b"\x8a\x05" + (2**29).to_bytes(5, "little")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("builtins.bytearray", [MUCH]),
        ("__builtin__.bytearray", [MUCH]),
        ("torch.Tensor", [MUCH]),
        ("torch.FloatTensor", [MUCH]),
        ("torch.storage.UntypedStorage", [MUCH]),
    ],
)
def test_a_file_of_tensors_makes_none_of_a_size_that_it_only_tells(
    tmp_path: Path, name: str, arguments: list[bytes]
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(tensors(calling(name, *arguments)))
    with pytest.raises(FileError, match=f"a.pt holds more than tensors and numbers, .*it names {name}"):
        read_tensors(path)
    path.write_bytes(tensors(calling("collections.OrderedDict")))
    assert read_tensors(path) == {"a": {}}


def test_an_archive_behind_a_pickle_does_not_hide_it(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream, _use_new_zipfile_serialization=False)
    path = tmp_path / "a.pt"
    path.write_bytes(stream.getvalue() + tensors(calling("collections.OrderedDict")))
    with pytest.raises(FileError, match="no archive of torch"):
        read_tensors(path)


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
    [check_picture, read_arrays, read_json, read_p, read_picture, read_tensors, read_text],
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


@pytest.mark.parametrize("read", [check_picture, read_arrays, read_mesh, read_p, read_picture])
def test_files_are_refused_by_their_size_before_they_are_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.ply"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(FileError, match="a.ply .*536,870,913 bytes.* at most 536,870,912 are read"):
        read(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_are_read_only_as_numpy_packs_them(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a.npz"
    for packed, fine in ((zipfile.ZIP_STORED, True), (zipfile.ZIP_DEFLATED, True), (kind, False)):
        with zipfile.ZipFile(path, "w", packed) as file:
            file.writestr("a.npy", array((4,)))
        if fine:
            assert np.array_equal(read_arrays(path)["a"], np.zeros(4))  # pyright: ignore
        else:
            with pytest.raises(FileError, match="a.npz cannot be read .*packed"):
                read_arrays(path)


@pytest.mark.parametrize("line", [b"%sx", b"%sv 1 2x", b"v 1 2 3%sx", b"f 1 2 3%s4x", b"v%sx"])
def test_lines_of_blanks_take_a_time_that_grows_with_their_length(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.obj"
    path.write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n" + line % (b" \t" * 100_000) + b"\n")
    with pytest.raises(FileError, match="its line 5 is none of OBJ"):
        read_mesh(path)


@pytest.mark.parametrize("line", [b"\t v 0 0 1 \r\f # a", b" \f\v \t#", b" #v", b"  ", b" f 1/2 2// 3/1/2\t"])
def test_lines_of_obj_may_have_blanks_around_them(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.obj"
    path.write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\n" + line + b"\nf 1 2 3\n")
    assert len(read_mesh(path).vertices) >= 3


@pytest.mark.parametrize(("value", "fine"), [("3.4e38", True), ("-1e39", False), ("1e160", False), ("1e308", False)])
def test_coordinates_beyond_single_precision_are_refused(tmp_path: Path, value: str, fine: bool) -> None:
    path = tmp_path / "a.obj"
    path.write_text(f"v 0 0 0\nv 0 {value} 0\nv 0 1 0\nf 1 2 3\n")
    if fine:
        assert np.abs(read_mesh(path).vertices).max() == float(value)
    else:
        with pytest.raises(FileError, match="a.obj .*beyond single precision"):
            read_mesh(path)


def jpeg(**options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def with_scans(content: bytes, count: int) -> bytes:
    """A progressive JPEG with its last scan so many times more."""
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + count * last + content[-2:]


def test_a_jpeg_has_no_more_scans_than_anybody_writes(tmp_path: Path) -> None:
    """Each costs the time of all pixels, however few bytes it has."""
    progressive, path = jpeg(progressive=True), tmp_path / "a.jpg"
    path.write_bytes(with_scans(progressive, 80))
    assert read_picture(path).size == (64, 48)
    path.write_bytes(with_scans(progressive, 100))
    for read in (check_picture, read_picture):
        with pytest.raises(FileError, match="a.jpg cannot be read .*more than the 100 scans"):
            read(path)


def test_scans_that_are_not_the_pictures_own_do_not_count(tmp_path: Path) -> None:
    """Those of small pictures in its notes, and of others behind its end."""
    many = with_scans(jpeg(progressive=True), 100)
    note = many.replace(b"\xff\xd8", b"", 1)[-60_000:]
    content, path = jpeg(), tmp_path / "a.jpg"
    path.write_bytes(content[:2] + b"\xff\xe5" + struct.pack(">H", len(note) + 2) + note + content[2:] + many)
    assert note.count(b"\xff\xda") > 100
    assert np.array_equal(read_picture(path), Image.open(io.BytesIO(content)))
