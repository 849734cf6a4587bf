"""Readers that share nothing with those of the package: they read what is entirely right, and raise otherwise."""

import struct
import zlib
from pathlib import Path

import numpy as np
from plyfile import PlyData

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Of PNG's kinds of colour without a palette."""


def read_png(content: bytes) -> np.ndarray:
    """Pixels, (height, width, channels) uint8, of a PNG of 8 bits that is not interlaced."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, []
    while not chunks or chunks[-1][0] != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        assert len(data) == length and checksum == zlib.crc32(kind + data)
        assert kind in (b"IHDR", b"IDAT", b"IEND") or kind[0:1].islower()
        chunks.append((kind, data))
        place += 12 + length
    width, height, depth, color, *others = struct.unpack(">IIBBBBB", chunks[0][1])
    assert chunks[0][0] == b"IHDR" and depth == 8 and others == [0, 0, 0]
    unpacker = zlib.decompressobj()
    channels = _CHANNELS[color]
    row_size = 1 + width * channels
    lines = unpacker.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"), height * row_size + 1)
    assert unpacker.eof and len(lines) == height * row_size
    rows, previous = [], bytes(row_size - 1)
    for start in range(0, len(lines), row_size):
        previous = _unfiltered(lines[start], lines[start + 1 : start + row_size], previous, channels)
        rows.append(previous)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(height, width, channels)


def _unfiltered(kind: int, row: bytes, above: bytes, channels: int) -> bytes:
    assert kind <= 4
    if kind == 0:
        return row
    found = bytearray(row)
    for i, value in enumerate(row):
        a = found[i - channels] if i >= channels else 0
        b, c = above[i], above[i - channels] if i >= channels else 0
        nearest = min((a, b, c), key=lambda x: abs(a + b - c - x))
        found[i] = (value + (0, a, b, (a + b) // 2, nearest)[kind]) % 256
    return bytes(found)


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices, (n, 3), and triangles, (m, 3), of a PLY that holds nothing else."""
    found = PlyData.read(path)
    vertices = np.stack([found["vertex"][axis] for axis in "xyz"], axis=-1).astype(float)
    faces = [list(face) for face in found["face"]["vertex_indices"]] if "face" in found else []
    return vertices, _triangles(faces, len(vertices))


def read_obj(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of an OBJ whose faces are triangles."""
    vertices, faces = [], []
    for words in (line.split() for line in text.splitlines()):
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
        elif words[0] == "f":
            faces.append([int(word.split("/")[0]) - 1 for word in words[1:]])
        else:
            assert words[0] in {"vn", "vt", "vp", "o", "g", "s", "l", "p", "usemtl", "mtllib"}
    return np.array(vertices), _triangles(faces, len(vertices))


def _triangles(faces: list[list[int]], count: int) -> np.ndarray:
    assert all(len(face) == 3 and 0 <= min(face) and max(face) < count for face in faces)
    return np.array(faces)
