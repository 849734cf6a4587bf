"""MATLAB's files of arrays: .mat up to version 7."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossnorm_ns.reading.errors import MOST_BYTES, FileError, first_line

_NUMERIC = {"double", "single", "logical", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_HEADER, _COMPRESSED = 128, 15


def read_mat(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays with these names in a .mat file.

    Raises:
        FileError: it cannot be read, lacks one of them, holds something else than numbers under its name, or takes more
            than `MOST_BYTES` in memory.
    """
    from scipy.io import loadmat, whosmat

    try:
        _check_unpacked_size(path)
        found = {name: (shape, kind) for name, shape, kind in whosmat(path, appendmat=False)}
    except Exception as error:  # damaged files make scipy's reader raise all sorts
        raise FileError(f"{path} cannot be read as a .mat file ({first_line(error)}): copy it again.") from error
    missing = [name for name in names if name not in found]
    if missing:
        there = ", ".join(found) or "nothing"
        raise FileError(f"{path} lacks {' and '.join(missing)}, and holds {there}: is it DTU's own file?")
    for name in names:
        shape, kind = found[name]
        if kind not in _NUMERIC or min(shape, default=0) < 0 or 8 * math.prod(shape) > 8 * MOST_BYTES:
            raise FileError(f"{path}: {name} is {kind} of shape {shape}, which is no array of numbers that is read.")
    try:
        contents = loadmat(path, appendmat=False, variable_names=list(names))
        return {name: np.asarray(contents[name]) for name in names}
    except Exception as error:
        raise FileError(f"{path} cannot be read as a .mat file ({first_line(error)}): copy it again.") from error


def _check_unpacked_size(path: Path) -> None:
    """Unpacks the compressed elements of a version 5 file piece by piece, and keeps nothing."""
    total = path.stat().st_size
    with path.open("rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(_HEADER)[-2:])
        while order and total <= MOST_BYTES and len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            if kind != _COMPRESSED:
                file.seek(size, 1)
                continue
            unpacker, end = zlib.decompressobj(), file.tell() + size
            while not unpacker.eof and total <= MOST_BYTES and (block := file.read(min(2**16, end - file.tell()))):
                while block and total <= MOST_BYTES:
                    total += len(unpacker.decompress(block, 2**20))
                    block = unpacker.unconsumed_tail
            file.seek(end)
    if total > MOST_BYTES:
        raise ValueError(f"it takes more than {MOST_BYTES:,} bytes in memory")
