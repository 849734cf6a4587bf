"""nerfstudio dataparser for scenes in the Blender format of NeRF, with the choices of google/mipnerf."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE

from crossnorm_ns.data.blender_scene import check_scene, has_split, read_split
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.official_blender import official_scene
from crossnorm_ns.limits import PictureSide


@dataclass
class BlenderCNDataParserConfig(DataParserConfig):
    """Scenes in Blender format (nerf_synthetic), read as google/mipnerf does."""

    _target: type = field(default_factory=lambda: BlenderCNDataParser)
    """Class to instantiate."""
    data: Path = Path("data/blender/lego")
    """Folder of one scene, with transforms_train.json, transforms_test.json and the pictures they list."""
    downscale_factor: PictureSide = 1
    """How many times smaller the pictures become (2: the 400x400 protocol), by averaging straight-alpha RGBA."""
    allow_outside: bool = False
    """Reads pictures outside of the scene's folder where its json files name such."""

    def check_data(self) -> None:
        """Checks everything that training and evaluation will read, before anything is written.

        Raises:
            DataError: names the file and the frame, and says what to do.
        """
        splits = dict.fromkeys(available_split(self.data, split) for split in ("train", "val", "test"))
        check_scene(self.data, splits, whole_number(self.downscale_factor), self.allow_outside)


@dataclass
class BlenderCNDataParser(DataParser):
    """Reads one split of a scene; poses and their scale stay as they are, so that t means what it means in mip-NeRF."""

    config: BlenderCNDataParserConfig

    def __init__(self, config: BlenderCNDataParserConfig):
        super().__init__(config=config)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """Cameras and picture files of a split.

        `Cameras.metadata["pixel_spacing"]`, (num_cameras, 1), is the distance of neighbouring pixels at z = -1: it
        reaches every ray bundle, where mip-NeRF makes the cone's radius of it.
        """
        scene, factor = self.config.data, whole_number(self.config.downscale_factor)
        split = available_split(scene, split)
        cameras = read_split(scene, split, factor, self.config.allow_outside)
        if split == "test" and official_scene(cameras.image_paths) is None:
            _say_once(f"{scene}: test images are not the official ones: numbers are not comparable with published ones")
        num_cameras = len(cameras.image_paths)
        return DataparserOutputs(
            image_filenames=list(cameras.image_paths),
            cameras=Cameras(
                camera_to_worlds=torch.from_numpy(cameras.camera_to_worlds),
                fx=cameras.focal,
                fy=cameras.focal,
                cx=0.5 * cameras.width,
                cy=0.5 * cameras.height,
                width=cameras.width,
                height=cameras.height,
                camera_type=CameraType.PERSPECTIVE,
                metadata={"pixel_spacing": torch.full((num_cameras, 1), 1 / cameras.focal)},
            ),
            alpha_color=torch.ones(3),
            scene_box=SceneBox(aabb=torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])),
            metadata={"downscale_factor": factor},
        )


def available_split(scene: Path, split: str) -> str:
    """The split itself, or `test` for a scene that comes without `transforms_val.json` (said once)."""
    if split == "val" and not has_split(scene, "val") and has_split(scene, "test"):
        _say_once(f"{scene} has no transforms_val.json: the test split stands in for validation")
        return "test"
    return split


def whole_number(downscale_factor: int | float) -> int:
    """The factor as an int: `ns-render dataset` sets a float.

    Raises:
        DataError: it is not a whole number.
    """
    if downscale_factor != int(downscale_factor):
        raise DataError(f"downscale_factor is {downscale_factor}, but must be a whole number: 1, 2, 4, ...")
    return int(downscale_factor)


@cache
def _say_once(message: str) -> None:
    CONSOLE.print(f"[bold yellow]Note: {message}.")
