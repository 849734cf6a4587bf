"""Files of numpy arrays: .npy and .npz."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from crossnorm_ns.reading.errors import MOST_BYTES, FileError, first_line
from crossnorm_ns.reading.plain import check_plain

_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How arrays lie in an archive: zipfile unpacks the others without end."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or those of a .npz file by name, without running code from the file.

    What the file is follows from its content, not from its name.

    Raises:
        FileError: it is neither, is damaged, holds Python objects, or takes more than `MOST_BYTES` in memory.
    """
    try:
        check_plain(path, MOST_BYTES)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return _read_array(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_size(sum(member.file_size for member in members))
            if any(member.compress_type not in _KINDS for member in members):
                raise ValueError("its arrays are packed by other means than numpy's")
            arrays = {}
            for member in members:
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = _read_array(stream, member.file_size)
            return arrays
    except Exception as error:  # damaged files make numpy and the readers below it raise all sorts
        raise FileError(f"{path} cannot be read as .npy or .npz of plain arrays: {first_line(error)}") from error


def _read_array(stream: Any, size: int) -> np.ndarray:
    """The array of an open .npy file of this size, if its header tells of no other size."""
    _check_size(size)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"written in version {version} of the format")
    shape, fortran_order, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != size - stream.tell():
        raise ValueError(f"its header tells of {shape} values of type {dtype}, but {size - stream.tell()} bytes follow")
    data = np.frombuffer(bytearray(stream.read(expected)), dtype=dtype)
    return data.reshape(shape, order="F" if fortran_order else "C")


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"it takes {size:,} bytes in memory, but at most {MOST_BYTES:,} are read")
