"""Small scenes and runs on disk for the tests of `eval`."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16
"""Width and height of the scene's pictures."""


def write_scene(folder: Path, names: list[str] | None = None) -> Path:
    """A scene in Blender format; test pictures are `picture(0)`, `picture(1)`, ..., other splits have others."""
    names = names or [f"r_{index}" for index in range(4)]
    for number, split in enumerate(("test", "train", "val")):
        (folder / split).mkdir(parents=True)
        frames = []
        for index, name in enumerate(names):
            Image.fromarray(picture(100 * number + index)).save(folder / split / f"{name}.png")
            matrix = [[1, 0, 0, 0.1 * index], [0, 1, 0, 0.2 * number], [0, 0, 1, 4], [0, 0, 0, 1]]
            frames.append({"file_path": f"./{split}/{name}", "transform_matrix": matrix})
        contents = {"camera_angle_x": 0.7, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(contents))
    return folder


def picture(seed: int) -> np.ndarray:
    """Opaque uint8 RGBA with colours in [51, 153]."""
    rgba = np.random.default_rng(seed).integers(51, 154, (SIZE, SIZE, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    return rgba


def write_renders(folder: Path, pattern: str = "r_{}.png", count: int = 4, offset: int = 26) -> Path:
    """The scene's test pictures, made brighter by `offset` of 255 and saved without alpha."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(picture(index)[..., :3] + np.uint8(offset)).save(folder / pattern.format(index))
    return folder
