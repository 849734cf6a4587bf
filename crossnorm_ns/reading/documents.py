"""Files of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossnorm_ns.reading.errors import FileError, first_line
from crossnorm_ns.reading.plain import check_plain

MOST_TEXT = 2**24
"""Bytes of one text: its values take up to thirty times as many in memory."""


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A text in UTF-8.

    Raises:
        FileError: it cannot be read, is none, or has more than `most` bytes.
    """
    try:
        check_plain(path)
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it has more than the {most:,} bytes that are read")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read as text ({first_line(error)}): copy it again.") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileError: it cannot be read, is no JSON, or has more than `MOST_TEXT` bytes.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid json ({first_line(error)}): copy or export it again.") from error
