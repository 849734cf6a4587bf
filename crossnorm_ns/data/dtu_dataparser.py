"""nerfstudio dataparser for scenes in the layout of IDR and NeuS, in the coordinates of the unit sphere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.dataparsers_utils import get_train_eval_split_all, get_train_eval_split_interval
from nerfstudio.utils.rich_utils import CONSOLE

from crossnorm_ns.data.blender_dataparser import whole_number
from crossnorm_ns.data.dtu_scene import DTUScene, read_scene
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.limits import Count, PictureSide


@dataclass
class DTUCNDataParserConfig(DataParserConfig):
    """Scenes in the layout of IDR and NeuS (image/*.png, mask/*.png, cameras_sphere.npz), such as its DTU scans."""

    _target: type = field(default_factory=lambda: DTUCNDataParser)
    """Class to instantiate."""
    data: Path = Path("data/dtu/dtu_scan24")
    """Folder of one scan, with image, mask and cameras_sphere.npz."""
    downscale_factor: PictureSide = 1
    """How many times smaller pictures and masks become, by averaging; it must divide width and height. Leave it at 1
    for methods of nerfstudio's own, which would read pictures at full size."""
    eval_mode: Literal["all", "interval"] = "all"
    """Which views are kept from training. all: none, as NeuS trains and as published chamfer distances are made;
    evaluation then renders views that were trained on. interval: views 0, eval_interval, 2 * eval_interval, ... are
    held out and are the ones that evaluation renders; choose it wherever PSNR is to say something about new views."""
    eval_interval: Count = 8
    """With eval_mode interval: every how many views one is held out."""

    allow_outside: bool = False
    """Reads pictures, masks and cameras outside of the scene's folder where links in it lead there."""

    def check_data(self) -> None:
        """Checks everything that training and evaluation will read, before anything is written.

        Raises:
            DataError: names the file and the view, and says what to do.
        """
        views = read_scene(self.data, whole_number(self.downscale_factor), self.allow_outside)
        for split in ("train", "test"):
            split_views(self, views, split)


@dataclass
class DTUCNDataParser(DataParser):
    """Reads one split of a scan; cameras stay in the coordinates in which the object lies in the unit sphere."""

    config: DTUCNDataParserConfig

    def __init__(self, config: DTUCNDataParserConfig):
        super().__init__(config=config)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """Cameras, pictures and masks of a split.

        `dataparser_transform` and `dataparser_scale` take the world (millimetres in DTU) to the unit sphere:
        p_unit = scale * (transform @ p_world); `metadata["scale_mat"]`, (4, 4) float64, is the way back.
        """
        factor = whole_number(self.config.downscale_factor)
        scene = read_scene(self.config.data, factor, self.config.allow_outside)
        views = split_views(self.config, scene, split)
        if split != "train" and self.config.eval_mode == "all":
            CONSOLE.print(
                "[bold yellow]Note: evaluation renders views that training sees (eval_mode all): "
                "its numbers are not those of held-out views."
            )
        intrinsics = torch.from_numpy(scene.intrinsics[views])
        camera_to_worlds = torch.from_numpy(scene.camera_to_worlds[views])
        camera_to_worlds[:, :, 1:3] *= -1  # OpenCV's axes to OpenGL's
        scale_mat = torch.from_numpy(scene.scale_mat)
        return DataparserOutputs(
            image_filenames=[scene.image_paths[view] for view in views],
            mask_filenames=[scene.mask_paths[view] for view in views],
            cameras=Cameras(
                camera_to_worlds=camera_to_worlds.float(),
                fx=intrinsics[:, 0, 0, None].float(),
                fy=intrinsics[:, 1, 1, None].float(),
                cx=intrinsics[:, 0, 2, None].float() + 0.5,  # nerfstudio's pixel centres are at halves
                cy=intrinsics[:, 1, 2, None].float() + 0.5,
                width=scene.width,
                height=scene.height,
                camera_type=CameraType.PERSPECTIVE,
            ),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            metadata={"scale_mat": scale_mat, "area_average_factor": factor},
            dataparser_transform=torch.cat([torch.eye(3), -scale_mat[:3, 3:].float()], dim=1),
            dataparser_scale=1 / float(scale_mat[0, 0]),
        )


def split_views(config: DTUCNDataParserConfig, scene: DTUScene, split: str) -> Int[np.ndarray, " views"]:
    """Indices of the views that a split has: `train`, or those of evaluation for any other.

    Raises:
        DataError: training or evaluation would have no view.
    """
    paths = list(scene.image_paths)
    if config.eval_mode == "all":
        train, evaluation = get_train_eval_split_all(paths)
    elif 2 <= config.eval_interval and len(paths) >= 2:
        train, evaluation = get_train_eval_split_interval(paths, config.eval_interval)
    else:
        raise DataError(
            f"{scene.folder} has {len(paths)} views, of which eval_interval {config.eval_interval} leaves none to "
            "train on: choose an interval of 2 or more, or eval_mode all."
        )
    return train if split == "train" else evaluation
