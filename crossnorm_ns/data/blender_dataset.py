"""nerfstudio dataset that reads pictures as google/mipnerf does."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from crossnorm_ns.data.blender_scene import composite_on_white, load_image
from crossnorm_ns.data.errors import DataError


class BlenderDataset(InputDataset):
    """Pictures of our Blender dataparser; with any other dataparser it is an `InputDataset`.

    Args:
        dataparser_outputs: What to read. `metadata["downscale_factor"]` marks the outputs of our dataparser.
        scale_factor: nerfstudio's `camera_res_scale_factor`.

    Raises:
        DataError: scale_factor is not 1 for pictures of our dataparser.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0):
        self.downscale_factor: int | None = dataparser_outputs.metadata.get("downscale_factor")
        if self.downscale_factor is not None and scale_factor != 1:
            raise DataError(
                f"camera_res_scale_factor is {scale_factor}, but this data is made smaller by area averages only: "
                "leave it at 1 and set the dataparser's downscale_factor."
            )
        super().__init__(dataparser_outputs, scale_factor)

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width channels"]:
        """Straight-alpha RGBA at the downscaled size, rounded to 8 bits."""
        if self.downscale_factor is None:
            return super().get_numpy_image(image_idx)
        return np.rint(255 * self._load(image_idx, self.downscale_factor)).astype(np.uint8)

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "height width channels"]:
        """RGB on white in [0, 1], never rounded to 8 bits after averaging."""
        if self.downscale_factor is None:
            return super().get_image_float32(image_idx)
        return torch.from_numpy(composite_on_white(self._load(image_idx, self.downscale_factor)))

    def _load(self, image_idx: int, downscale_factor: int) -> Float[np.ndarray, "height width 4"]:
        return load_image(self.image_filenames[image_idx], downscale_factor)
