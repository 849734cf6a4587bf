"""nerfstudio dataset that gives pictures and masks of scenes in the layout of IDR and NeuS."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from crossnorm_ns.data.dtu_scene import load_image, load_mask
from crossnorm_ns.data.errors import DataError


class DTUDataset(InputDataset):
    """Pictures and masks of our DTU dataparser; with any other dataparser it is an `InputDataset`.

    Args:
        dataparser_outputs: What to read. `metadata["area_average_factor"]` marks the outputs of our dataparser.
        scale_factor: nerfstudio's `camera_res_scale_factor`.

    Raises:
        DataError: scale_factor is not 1 for pictures of our dataparser.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0):
        self.downscale_factor: int | None = dataparser_outputs.metadata.get("area_average_factor")
        if self.downscale_factor is not None and scale_factor != 1:
            raise DataError(
                f"camera_res_scale_factor is {scale_factor}, but this data is made smaller by area averages only: "
                "leave it at 1 and set the dataparser's downscale_factor."
            )
        super().__init__(dataparser_outputs, scale_factor)

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict:
        """Picture, index and mask, (height, width, 1) float32: the share of the pixel that the object covers."""
        if self.downscale_factor is None:
            return super().get_data(image_idx, image_type)
        image = self.get_image_float32(image_idx) if image_type == "float32" else self.get_image_uint8(image_idx)
        assert self._dataparser_outputs.mask_filenames is not None
        mask = load_mask(self._dataparser_outputs.mask_filenames[image_idx], self.downscale_factor)
        return {"image_idx": image_idx, "image": image, "mask": torch.from_numpy(mask)[..., None]}

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width channels"]:
        """RGB at the downscaled size, rounded to 8 bits."""
        if self.downscale_factor is None:
            return super().get_numpy_image(image_idx)
        return np.rint(255 * load_image(self.image_filenames[image_idx], self.downscale_factor)).astype(np.uint8)

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "height width channels"]:
        """RGB in [0, 1], never rounded to 8 bits after averaging."""
        if self.downscale_factor is None:
            return super().get_image_float32(image_idx)
        return torch.from_numpy(load_image(self.image_filenames[image_idx], self.downscale_factor))
