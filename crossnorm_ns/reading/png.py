"""What PNG promises of its lines of pixels, beyond the checksums of its chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the kind of colour."""
_PASSES = ((8, 8, 0, 0), (8, 8, 4, 0), (4, 8, 0, 4), (4, 4, 2, 0), (2, 4, 0, 2), (2, 2, 1, 0), (1, 2, 0, 1))
"""Of interlaced pictures: steps and first pixel, along width and height."""
_FILTERS = 5


def check_png_lines(path: Path) -> None:
    """Unpacks the lines of a PNG whose chunks are intact: all of them must be there, each with a filter that there is.

    Takes as much memory as the pixels.

    Raises:
        ValueError: lines are missing, too many, or of an unknown filter.
        zlib.error: they are no stream of zlib.
    """
    with path.open("rb") as file:
        chunks = _chunks(file)
        _, header = next(chunks)
        width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
        bits = depth * _CHANNELS[color]
        sizes = _sizes(width, height) if interlaced else [(width, height)]
        lines = [(1 + (columns * bits + 7) // 8, rows) for columns, rows in sizes if columns and rows]
        expected = sum(length * rows for length, rows in lines)
        packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(packed, expected + 1)
    if len(found) != expected or not unpacker.eof:
        raise ValueError("its lines are not as many as its header says")
    start = 0
    for length, rows in lines:
        if max(found[start : start + length * rows : length]) >= _FILTERS:
            raise ValueError("its lines have a filter that there is not")
        start += length * rows


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of header and lines."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IHDR", b"IDAT"):
            yield kind, file.read(length)
            length = 0
        file.seek(length + 4, 1)


def _sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Width and height of each pass of an interlaced picture."""
    return [(-(-(width - x) // dx), -(-(height - y) // dy)) for dx, dy, x, y in _PASSES]
