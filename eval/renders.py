"""Pictures that any system has rendered: which file shows which frame, and reading it."""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from crossnorm_ns.data.blender_scene import composite_on_white
from eval.errors import EvaluationError
from eval.files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Files with other endings are not looked at."""


def match_renders(folder: Path, names: Sequence[str], every: int = 1) -> list[Path]:
    """Finds the render of every `every`-th frame by the number in its name, as in r_0.png, 000.png or rgb_000.png.

    The number is the last group of digits of a name. Frames whose own names have no numbers, or not different ones,
    are counted from 0. Sub-folders are not searched.

    Args:
        folder: Folder with one picture per frame and no other pictures; pictures of skipped frames may be there.
        names: Names of all frames of the split, in order.
        every: Frames 0, every, 2 * every, ... are wanted.

    Returns:
        One file per wanted frame, in order.

    Raises:
        EvaluationError: a wanted frame has no picture or several, or a picture belongs to no frame.
    """
    index_of_number = _index_of_number(names)
    candidates: dict[int, list[Path]] = defaultdict(list)
    strangers = []
    for file in _pictures(folder):
        index = index_of_number.get(_number(file.stem))
        if index is None:
            strangers.append(file.name)
        else:
            candidates[index].append(file)
    for index, files in candidates.items():
        if len(files) > 1:
            raise EvaluationError(
                f"{folder}: {_some([file.name for file in files])} all have the number of frame {names[index]}. "
                "Keep one kind of picture in the folder."
            )
    numbers = [number for number in index_of_number if number is not None]
    known = f"the numbers of this scene's frames are {min(numbers)} to {max(numbers)}"
    wanted = range(0, len(names), every)
    missing = [names[index] for index in wanted if index not in candidates]
    if missing:
        raise EvaluationError(
            f"{folder}: no render for {len(missing)} of {len(wanted)} frames ({_some(missing)}). "
            f"A name must hold the frame's number, as in r_0.png or 000.png; {known}."
        )
    if strangers:
        raise EvaluationError(
            f"{folder}: no test frame belongs to {_some(strangers)}; {known}. "
            "Move these pictures elsewhere, or give the scene that was rendered."
        )
    return [candidates[index][0] for index in wanted]


def check_renders(files: Iterable[Path], width: int, height: int) -> None:
    """Checks each picture's checksums, kind and size without decoding it.

    Raises:
        EvaluationError: a file is damaged, no colour picture, or not of the size of the true images.
    """
    for file in files:
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
                image.verify()
        except (OSError, SyntaxError) as error:
            raise EvaluationError(f"{file} cannot be read as a picture ({error}): render it again.") from error
        if mode not in ("RGB", "RGBA", "P"):
            raise EvaluationError(f"{file} is not a colour picture (mode {mode}): give RGB or RGBA renders.")
        if size != (width, height):
            raise EvaluationError(
                f"{file} is {size[0]}x{size[1]}, but the true images are {width}x{height}: "
                "give the --downscale-factor that was rendered, or render at that size."
            )


def load_render(file: Path) -> Float[np.ndarray, "height width 3"]:
    """Reads a picture of 8 or 16 bits as float32 in [0, 1]; one with (straight) alpha is laid on white.

    Raises:
        EvaluationError: the file is damaged or no colour picture.
    """
    picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise EvaluationError(f"{file} cannot be read as a picture: it may be truncated, render it again.")
    if picture.ndim != 3 or picture.dtype not in (np.uint8, np.uint16):
        raise EvaluationError(f"{file} is not a colour picture of 8 or 16 bits: give RGB or RGBA renders.")
    scaled = picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    if scaled.shape[-1] == 4:
        return composite_on_white(cv2.cvtColor(scaled, cv2.COLOR_BGRA2RGBA))
    return cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB)


def save_render(file: Path, image: Float[np.ndarray, "height width 3"]) -> None:
    """Writes colours in [0, 1] as an 8-bit PNG, rounded; replaces an old file atomically."""
    contents = io.BytesIO()
    Image.fromarray(np.rint(255 * image.clip(0, 1)).astype(np.uint8)).save(contents, format="png")
    write_atomically(file, contents.getvalue())


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise EvaluationError(f"No folder {folder.absolute()}: give the folder that holds the renders.")
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        inside = sorted({file.parent.name for suffix in SUFFIXES for file in folder.glob(f"*/*{suffix}")})
        hint = f" There are some in {_some(inside)}: give that folder." if inside else ""
        raise EvaluationError(f"No pictures ({', '.join(SUFFIXES)}) in {folder.absolute()}.{hint}")
    return files


def _index_of_number(names: Sequence[str]) -> dict[int | None, int]:
    numbers = [_number(name) for name in names]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(names)))
    return {number: index for index, number in enumerate(numbers)}


def _number(stem: str) -> int | None:
    groups = re.findall(r"[0-9]+", stem)
    return int(groups[-1]) if groups else None


def _some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names for a message of one line."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
