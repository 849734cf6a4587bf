"""Readers that share nothing with those of the package: they read what is entirely right, and raise otherwise."""

import struct
import zlib

import numpy as np

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
    found = bytearray(row)
    for i, value in enumerate(row):
        a = found[i - channels] if i >= channels else 0
        b, c = above[i], above[i - channels] if i >= channels else 0
        nearest = min((a, b, c), key=lambda x: abs(a + b - c - x))
        found[i] = (value + (0, a, b, (a + b) // 2, nearest)[kind]) % 256
    return bytes(found)
