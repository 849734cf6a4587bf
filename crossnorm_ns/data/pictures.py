"""Checks of picture files that all kinds of scenes share."""

from pathlib import Path

from PIL import Image

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.reading import FileError, check_picture, first_line, read_picture


def size_and_mode(path: Path, where: str) -> tuple[tuple[int, int], str]:
    """Width and height in pixels and Pillow's mode of an intact picture, from its header and checksums.

    Args:
        path: of the picture.
        where: names it in errors.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return check_picture(path)
    except FileError as error:
        raise DataError(_named(where, path, error)) from error


def decoded(path: Path) -> Image.Image:
    """A picture.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_picture(path)
    except FileError as error:
        raise DataError(str(error)) from error


def check_inside(scene: Path, path: Path, where: str, allow_outside: bool) -> None:
    """Refuses a file that lies outside of the scene's folder, by its name or through a link.

    Raises:
        DataError: it does, and `allow_outside` is not set; or no file can have such a name.
    """
    try:
        inside = path.resolve().is_relative_to(scene.resolve()) or allow_outside
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{where} is no name of a file ({first_line(error)}).") from error
    if not inside:
        raise DataError(
            f"{where} lies outside of the scene's folder: copy it there, or allow it with --allow-outside if you trust "
            "the scene."
        )


def _named(where: str, path: Path, error: FileError) -> str:
    """The error with the longer name of what was read."""
    return str(error).replace(str(path), where, 1)


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
