"""What a JPEG may ask of its reader, which goes through all pixels once for each scan."""

from __future__ import annotations

import re
from pathlib import Path

MOST_SCANS = 100
"""Of one picture, as in libtiff: progressive ones have about ten."""
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
"""What is followed by a length: not a byte of the pixels, and none of the marks that stand alone."""
_SCAN, _END = 0xDA, 0xD9


def check_jpeg_scans(path: Path) -> None:
    """Counts the scans of a JPEG.

    Raises:
        ValueError: there are more than `MOST_SCANS`.
    """
    content = path.read_bytes()
    scans = place = 0
    while (found := _MARKER.search(content, place)) and found[1][0] != _END:
        scans += found[1][0] == _SCAN
        if scans > MOST_SCANS:
            raise ValueError(f"it has more than the {MOST_SCANS} scans that are read")
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
