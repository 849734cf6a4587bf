"""Files of torch: tensors and plain values."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from crossnorm_ns.reading.errors import FileError, first_line
from crossnorm_ns.reading.plain import check_plain

_KINDS = ("BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat", "Double", "Float", "Half", "Int", "Long")
_NAMED = {
    "collections.Counter",  # in the states of torch's schedules
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{kind}Storage" for kind in (*_KINDS, "Short")),
}
"""What dictionaries of tensors name. torch takes more, of which some make arrays of a size that the file tells."""


def read_tensors(path: Path, safe: Mapping[str, Any] = MappingProxyType({})) -> dict[Any, Any]:
    """The dictionary of tensors and plain values in a file of `torch.save`, on the CPU, without running code from it.

    Its checksums are compared, which torch leaves out.

    Args:
        path: the file.
        safe: further classes and functions that it may name, by the names that it has for them.

    Raises:
        FileError: it cannot be read, is damaged, holds more than such values, or no dictionary.
    """
    import torch

    try:
        check_plain(path)
        with path.open("rb") as file:
            _check_archive(file, path.stat().st_size)
            _check_names(torch._C.PyTorchFileReader(file).get_record("data.pkl"), _NAMED | safe.keys())
            file.seek(0)
            with torch.serialization.safe_globals([(value, name) for name, value in safe.items()]):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} holds more than tensors and numbers, so it is not loaded ({first_line(error)})"
        ) from error
    except Exception as error:  # what torch raises depends on what is wrong
        raise FileError(f"{path} cannot be read as saved tensors ({first_line(error)}): copy it again") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no dictionary of tensors, but {type(content).__name__}")
    return content


def _check_archive(file: BinaryIO, size: int) -> None:
    """Refuses what has been altered, and what would take more memory than the file has bytes."""
    if file.read(4) != b"PK\x03\x04":
        raise ValueError("it is no archive of torch 1.6 or later")  # though one may be appended
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its records are packed")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its records are larger than the file")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its record {damaged} is altered")
    file.seek(0)


def _check_names(program: bytes, known: set[str]) -> None:
    """Refuses a pickle that names other classes or functions than these."""
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL" and (name := str(argument).replace(" ", ".", 1)) not in known:
            raise pickle.UnpicklingError(f"it names {name}")
