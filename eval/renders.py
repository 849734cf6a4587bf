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
from crossnorm_ns.reading import FileError, check_picture, read_picture
from eval.errors import EvaluationError
from eval.files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Files with other endings are not looked at."""
COLOUR_FOLDERS = ("rgb", "rgba", "rgb_fine")
"""Where `ns-render dataset` puts a model's final colours."""
TRUTH_TOLERANCE = 2 / 255
"""Largest mean difference that 8 bits explain between a true image and a copy of it."""
_OTHER_KIND = re.compile(
    r"(?<![a-z])(depths?|disp|disparity|distance|normals?|acc|accumulation|alpha|opacity|masks?|gt|truth|errors?|diff)(?![a-z])",
    re.IGNORECASE,
)
_OTHER_FOLDER = re.compile(
    r"(gt|truth|accumulation|acc|disp|disparity)([-_].+)?|(.+_)?(depths?|normals?)(_.+)?|alpha|opacity|masks?|errors?|diff"
    r"|rgb_coarse|renderonly_path_.+",
    re.IGNORECASE,
)
_DIGITS_AT_END = re.compile(r"([0-9]+)([^0-9]*)$")


def match_renders(folder: Path, names: Sequence[str], every: int = 1) -> list[Path]:
    """Finds the render of every `every`-th frame, by the frame's name or by its number, as in 000.png or rgb_000.png.

    The number is the last group of digits of a name. Frames whose own names have no numbers, or not different ones,
    are counted from 0. Where `folder` has no pictures of its own, the colours that `ns-render dataset` wrote below it
    are taken: `test/rgb`, `test/rgba` or `test/rgb_fine`, with or without `test`. Whatever leaves a doubt is refused.

    Args:
        folder: Folder with one picture per frame and no other pictures; pictures of skipped frames may be there.
        names: Names of all frames of the split, in order.
        every: Frames 0, every, 2 * every, ... are wanted.

    Returns:
        One file per wanted frame, in order.

    Raises:
        EvaluationError: a wanted frame has no picture or several, a picture belongs to no frame or does not show
            colours, or it is not certain which picture belongs to which frame.
    """
    folder, files = _pictures(folder)
    _check_colours(folder, files, names)
    if len(set(names)) == len(names) and all(file.stem in names for file in files):
        index_of = {name: index for index, name in enumerate(names)}
        found = [index_of[file.stem] for file in files]
    else:
        found = _indices_by_number(folder, files, names)
    candidates: dict[int, list[Path]] = defaultdict(list)
    for index, file in zip(found, files, strict=True):
        candidates[index].append(file)
    for index, same in candidates.items():
        if len(same) > 1:
            raise EvaluationError(
                f"{folder}: {_some([file.name for file in same])} all have the number of frame {names[index]}. "
                "Keep one kind of picture in the folder."
            )
    wanted = range(0, len(names), every)
    missing = [names[index] for index in wanted if index not in candidates]
    if missing:
        raise EvaluationError(
            f"{folder}: no render for {len(missing)} of {len(wanted)} frames ({_some(missing)}). A name must hold the "
            f"frame's number, as in r_0.png or 000.png; {_known_numbers(names)}{_skipping(files, len(names))}."
        )
    return [candidates[index][0] for index in wanted]


def check_renders(files: Iterable[Path], width: int, height: int) -> None:
    """Checks each picture's checksums, kind and size without decoding it.

    Raises:
        EvaluationError: a file is damaged, no colour picture, or neither of the size of the true images nor (with the
            truth to its left, see `without_truth`) twice as wide.
    """
    for file in files:
        try:
            size, mode = check_picture(file)
        except FileError as error:
            raise EvaluationError(str(error)) from error
        if mode not in ("RGB", "RGBA", "P"):
            raise EvaluationError(f"{file} is not a colour picture (mode {mode}): give RGB or RGBA renders.")
        if size not in ((width, height), (2 * width, height)):
            raise EvaluationError(
                f"{file} is {size[0]}x{size[1]}, but the true images are {width}x{height}: "
                "give the --downscale-factor that was rendered, or render at that size."
            )


def load_render(file: Path) -> Float[np.ndarray, "height width 3"]:
    """Reads a picture of 8 or 16 bits as float32 in [0, 1]; one with (straight) alpha is laid on white.

    Raises:
        EvaluationError: the file is damaged or no colour picture.
    """
    try:
        read_picture(file)  # OpenCV, which reads 16 bits of colour, tells of damage on standard error alone
    except FileError as error:
        raise EvaluationError(str(error)) from error
    picture = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)  # imread crashes over names not in UTF-8
    if picture is None:
        raise EvaluationError(f"{file} cannot be read as a picture: it may be truncated, render it again.")
    if picture.ndim != 3 or picture.dtype not in (np.uint8, np.uint16):
        raise EvaluationError(f"{file} is not a colour picture of 8 or 16 bits: give RGB or RGBA renders.")
    scaled = picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    if scaled.shape[-1] == 4:
        return composite_on_white(cv2.cvtColor(scaled, cv2.COLOR_BGRA2RGBA))
    return cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB)


def without_truth(
    file: Path, picture: Float[np.ndarray, "height width 3"], truth: Float[np.ndarray, "height true_width 3"]
) -> Float[np.ndarray, "height true_width 3"]:
    """The right half of a picture that is twice as wide as the truth, which Plenoxels writes to the left of renders.

    Raises:
        EvaluationError: the left half is not the truth.
    """
    width = truth.shape[1]
    if picture.shape[1] != 2 * width:
        return picture
    if np.abs(picture[:, :width] - truth).mean() > TRUTH_TOLERANCE:
        raise EvaluationError(
            f"{file} is twice as wide as the true images, but its left half is not the true one: give pictures that "
            "show the render alone."
        )
    return picture[:, width:]


def save_render(file: Path, image: Float[np.ndarray, "height width 3"]) -> None:
    """Writes colours in [0, 1] as an 8-bit PNG, rounded; replaces an old file atomically."""
    contents = io.BytesIO()
    Image.fromarray(np.rint(255 * image.clip(0, 1)).astype(np.uint8)).save(contents, format="png")
    write_atomically(file, contents.getvalue())


def _pictures(folder: Path) -> tuple[Path, list[Path]]:
    """The folder that holds the colours, and its pictures."""
    if not folder.is_dir():
        raise EvaluationError(f"No folder {folder.absolute()}: give the folder that holds the renders.")
    if files := _pictures_in(folder):
        return folder, files
    below = [place / name for place in (folder / "test", folder) for name in COLOUR_FOLDERS]
    found = [place for place in below if _pictures_in(place)]
    if len(found) > 1:
        listed = " and ".join(str(place.relative_to(folder)) for place in found)
        raise EvaluationError(f"{folder.absolute()} has renders in {listed}: give one of these folders.")
    if found:
        return found[0], _pictures_in(found[0])
    inside = sorted({file.parent.name for suffix in SUFFIXES for file in folder.glob(f"*/*{suffix}")})
    hint = f" There are some in {_some(inside)}: give that folder." if inside else ""
    raise EvaluationError(f"No pictures ({', '.join(SUFFIXES)}) in {folder.absolute()}.{hint}")


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(files)


def _check_colours(folder: Path, files: Sequence[Path], names: Sequence[str]) -> None:
    """Refuses what systems write beside colours: depth, normals, opacity, errors, true images."""
    if _OTHER_FOLDER.fullmatch(folder.name):
        raise EvaluationError(
            f"{folder} holds no rendered colours of test frames by its name: give the folder of the colours (rgb)."
        )
    others = [file.name for file in files if _OTHER_KIND.search(file.stem) and file.stem not in names]
    if others:
        raise EvaluationError(
            f"{folder}: {_some(others)} by the name shows depth, normals, opacity, an error or the truth, not rendered "
            "colours. Move all such pictures elsewhere."
        )


def _indices_by_number(folder: Path, files: Sequence[Path], names: Sequence[str]) -> list[int]:
    """The frame that each picture shows."""
    index_of = _index_of_number(names)
    frame_numbers = [number for number in index_of if number is not None]
    known = _known_numbers(names)
    if frame_numbers != sorted(frame_numbers):
        raise EvaluationError(
            f"{folder}: the frames of this scene are not in the order of their numbers ({_some(names)}), so "
            f"{files[0].name} may be meant by number or by place. Name the pictures as the frames: {names[0]}.png."
        )
    numbers = [_number(file.stem) for file in files]
    found = [index_of.get(number) for number in numbers]
    strangers = [file.name for file, index in zip(files, found, strict=True) if index is None]
    by_one = {number + 1 for number in frame_numbers}
    if strangers and by_one.issuperset(number for number in numbers if number is not None) and None not in numbers:
        raise EvaluationError(
            f"{folder}: {_some(strangers)} is one too many, {known}. Are the pictures counted from "
            f"{min(frame_numbers) + 1}? Rename them to the frames' numbers."
        )
    if strangers:
        raise EvaluationError(
            f"{folder}: no test frame belongs to {_some(strangers)}; {known}. "
            "Move these pictures elsewhere, or give the scene that was rendered."
        )
    kinds = {_DIGITS_AT_END.sub(r"#\2", file.stem): file.name for file in reversed(files)}
    if len(kinds) > 1:
        raise EvaluationError(
            f"{folder}: names of different kinds, {_some(sorted(kinds.values()))}. Keep one kind of picture in it."
        )
    return [index for index in found if index is not None]


def _skipping(files: Sequence[Path], num_frames: int) -> str:
    """A hint where pictures seem to count only the frames that a system has rendered, as nerf-pytorch's --testskip."""
    numbers = sorted(number for file in files if (number := _number(file.stem)) is not None)
    if numbers == list(range(len(files))):
        for skip in range(2, num_frames):
            if len(files) == -(-num_frames // skip):
                return (
                    f". These {len(files)} pictures, counted from 0, may be every {skip}th frame: render all of them "
                    "(nerf-pytorch: --testskip 1)"
                )
    return ""


def _known_numbers(names: Sequence[str]) -> str:
    numbers = [number for number in _index_of_number(names) if number is not None]
    return f"the numbers of this scene's frames are {min(numbers)} to {max(numbers)}"


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
