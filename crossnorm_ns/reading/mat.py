"""MATLAB's files of arrays: .mat of versions 5 to 7.

Real arrays of numbers alone are read. (scipy's reader, made for all that such files hold, takes memory for whatever
sizes they tell of, and ends the process on kinds of numbers that there are not.)
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from crossnorm_ns.reading.errors import MOST_BYTES, FileError, first_line
from crossnorm_ns.reading.plain import check_plain

_HEADER, _ARRAY, _PACKED, _COMPLEX = 128, 14, 15, 0x800
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of numbers as they lie in the file, by their code."""
_CLASSES = dict(enumerate(("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"), start=6))
"""Types of numbers as they are meant: whole ones may be stored in fewer bytes."""
_MOST_PARTS = 5
"""Of an array that are looked at: flags, sides, name, numbers, and what should not be there."""
_MOST_SIDES, _LONGEST_NAME = 32, 63
"""Those of numpy and MATLAB."""
_OTHER_CLASSES = {1: "cells", 2: "structures", 3: "objects", 4: "text", 5: "a sparse array"}


def read_mat(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays with these names in a .mat file.

    Raises:
        FileError: it cannot be read, lacks one of them, holds something else than real numbers under its name, or takes
            more than `MOST_BYTES` in memory.
    """
    try:
        arrays = _arrays(path, names)
    except (OSError, ValueError, zlib.error) as error:
        raise FileError(f"{path} cannot be read as a .mat file ({first_line(error)}): copy it again.") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        there = ", ".join(arrays) or "nothing"
        raise FileError(f"{path} lacks {' and '.join(missing)}, and holds {there}: is it DTU's own file?")
    return {name: arrays[name] for name in names}


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays by name; empty ones for those that nobody asks for."""
    check_plain(path, MOST_BYTES)
    content = path.read_bytes()
    left = MOST_BYTES - len(content)
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if order is None or struct.unpack_from(f"{order}H", content, _HEADER - 4) != (0x100,):
        raise ValueError("it is none of versions 5 to 7")
    arrays = {}
    for kind, data in _elements(content, order, _HEADER):
        if kind == _PACKED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(data, left + 1)
            left -= len(unpacked)
            if left < 0 or not unpacker.eof:
                raise ValueError(f"it is cut off, or takes more than {MOST_BYTES:,} bytes in memory")
            kind, data = next(_elements(unpacked, order), (0, b""))  # noqa: PLW2901
        if kind == _ARRAY:
            parts = list(itertools.islice(_elements(data, order), _MOST_PARTS))
            if len(parts) < 3:
                raise ValueError("one of its arrays is cut off")
            if len(parts[2][1]) > _LONGEST_NAME or len(parts[1][1]) > 4 * _MOST_SIDES:
                raise ValueError("one of its arrays has a longer name or more sides than there can be")
            name = bytes(parts[2][1]).decode("ascii")
            arrays[name] = _array(name, parts, order) if name in names else np.empty(0)
    return arrays


def _elements(data: bytes | memoryview, order: str, start: int = 0) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of the elements that stand one after the other."""
    view = memoryview(data)
    while start < len(view):
        if len(view) - start < 8:
            raise ValueError("it is cut off")
        kind, size = struct.unpack_from(f"{order}II", view, start)
        begin = start + 8
        if kind >> 16:  # a small element: its size beside its kind, its content in place of the size
            kind, size, begin = kind & 0xFFFF, kind >> 16, start + 4
            start += 8
        else:
            start = begin + size + (0 if kind == _PACKED else -size % 8)
        if begin + size > min(len(view), start):
            raise ValueError(f"it tells of {size:,} bytes that are not there")
        yield kind, view[begin : begin + size]


def _array(name: str, parts: Sequence[tuple[int, memoryview]], order: str) -> np.ndarray:
    (_, flags), (_, sides), _, *values = parts
    (word,) = struct.unpack_from(f"{order}I", bytes(flags[:4]).ljust(4, b"\0"))
    shape = tuple(np.frombuffer(bytes(sides), f"{order}i4").tolist())
    meant = _CLASSES.get(word & 0xFF)
    if meant is None or word & _COMPLEX or len(values) != 1:
        what = _OTHER_CLASSES.get(word & 0xFF, "complex numbers" if word & _COMPLEX else "of an unknown kind")
        raise ValueError(f"{name} is {what}, but real numbers are read")
    kind, data = values[0]
    stored = np.dtype(order + _STORED.get(kind, "V1"))
    number = math.prod(shape)
    if min(shape, default=-1) < 0 or stored.kind == "V" or number * stored.itemsize != len(data):
        raise ValueError(f"{name} tells of {_times(shape)} numbers of kind {kind}, but {len(data):,} bytes follow")
    if number * np.dtype(meant).itemsize > MOST_BYTES:
        raise ValueError(f"{name} takes more than {MOST_BYTES:,} bytes in memory")
    numbers = np.frombuffer(data, stored).astype(meant)
    return numbers.reshape(shape, order="F")


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:4])) + ("..." if len(shape) > 4 else "")
