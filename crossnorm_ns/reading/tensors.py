"""Files of torch: tensors and plain values."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossnorm_ns.reading.errors import FileError, first_line
from crossnorm_ns.reading.plain import check_plain


def read_tensors(path: Path, safe: Sequence[Any] = ()) -> dict[Any, Any]:
    """The dictionary of tensors and plain values in a file of `torch.save`, on the CPU, without running code from it.

    Its checksums are compared, which torch leaves out.

    Args:
        path: the file.
        safe: further classes and functions that it may name, as `torch.serialization.safe_globals` takes them.

    Raises:
        FileError: it cannot be read, is damaged, holds more than such values, or no dictionary.
    """
    import torch

    try:
        check_plain(path)
        _check_archive(path)
        with torch.serialization.safe_globals(list(safe)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} holds more than tensors and numbers, so it is not loaded ({first_line(error)})"
        ) from error
    except Exception as error:  # what torch raises depends on what is wrong
        raise FileError(f"{path} cannot be read as saved tensors ({first_line(error)}): copy it again") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no dictionary of tensors, but {type(content).__name__}")
    return content


def _check_archive(path: Path) -> None:
    """Refuses what has been altered, and what would take more memory than the file has bytes."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its records are packed")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its records are larger than the file")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its record {damaged} is altered")
