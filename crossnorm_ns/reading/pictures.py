"""Files of pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH

from crossnorm_ns.reading.errors import MOST_BYTES, FileError, first_line
from crossnorm_ns.reading.jpeg import check_jpeg_scans
from crossnorm_ns.reading.plain import check_plain
from crossnorm_ns.reading.png import check_png_lines

MOST_PIXELS = 2**25
"""Of one picture: 8192 x 4096."""
PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
"""As Pillow calls them: what is decoded within Pillow, without other programs."""


def check_picture(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height in pixels and Pillow's mode of a picture, from its header and checksums.

    Of a PNG also the lines are checked, which Pillow and OpenCV leave as they are where some are missing, of a JPEG the
    number of its scans.

    Raises:
        FileError: it cannot be read, or has more than `MOST_PIXELS` or `MOST_BYTES`.
    """
    try:
        with _open(path) as picture:
            size, mode = picture.size, picture.mode
            picture.verify()
            kind = picture.format
        if kind == "PNG":
            check_png_lines(path)
        elif kind in ("JPEG", "MPO"):
            check_jpeg_scans(path)
    except Exception as error:  # damaged files make Pillow's readers raise all sorts
        raise _unreadable(path, error) from error
    return size, mode


def read_picture(path: Path) -> Image.Image:
    """A picture, decoded.

    Raises:
        FileError: it cannot be read, or has more than `MOST_PIXELS` or `MOST_BYTES`.
    """
    check_picture(path)
    try:
        with _open(path) as picture:
            picture.load()
            return picture
    except Exception as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> Image.Image:
    check_plain(path, MOST_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        picture = Image.open(path, formats=PICTURE_FORMATS)
    for what, (width, height) in {"": picture.size, "tiles of ": _tile_size(picture)}.items():
        if width * height > MOST_PIXELS:
            picture.close()
            raise ValueError(f"{what}{width}x{height} pixels, but at most {MOST_PIXELS:,} are read")
    return picture


def _tile_size(picture: Image.Image) -> tuple[int, int]:
    """Of a TIFF in tiles, which are decoded as a whole, however small the picture is."""
    tags = getattr(picture, "tag_v2", {})
    return int(tags.get(TILEWIDTH, 0)), int(tags.get(TILELENGTH, 0))


def _unreadable(path: Path, error: Exception) -> FileError:
    return FileError(f"{path} cannot be read as a picture ({first_line(error)}): it may be damaged, copy it again.")
