"""Checks of picture files that all kinds of scenes share."""

from pathlib import Path

from PIL import Image

from crossnorm_ns.data.errors import DataError


def size_and_mode(path: Path, where: str) -> tuple[tuple[int, int], str]:
    """Width and height in pixels and Pillow's mode of an intact picture, from its header and checksums.

    Args:
        path: of the picture.
        where: names it in errors.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
            image.verify()
    except (OSError, SyntaxError) as error:
        raise unreadable(where, error) from error
    return size, mode


def unreadable(where: str, error: Exception) -> DataError:
    """What to raise for a picture that cannot be read."""
    return DataError(f"{where} cannot be read as a picture ({error}): it may be truncated, copy it again.")


def downscaled_size(where: str, size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Width and height after averaging over squares of `factor` pixels.

    Raises:
        DataError: the factor does not divide the size.
    """
    if factor < 1 or size[0] % factor or size[1] % factor:
        raise DataError(
            f"{where} is {size[0]}x{size[1]}, which downscale_factor {factor} does not divide: "
            "choose a factor that divides width and height (1 keeps the size)."
        )
    return size[0] // factor, size[1] // factor
