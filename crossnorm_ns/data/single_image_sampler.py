"""nerfstudio pixel sampler whose batches come from one picture each, as in NeuS."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor


@dataclass
class SingleImagePixelSamplerConfig(PixelSamplerConfig):
    """Pixels of one random picture a batch."""

    _target: type = field(default_factory=lambda: SingleImagePixelSampler)
    """Class to instantiate."""
    num_rays_per_batch: int = 512
    """Number of rays of a batch."""


class SingleImagePixelSampler(PixelSampler):
    """Draws one picture, then its pixels uniformly with replacement, inside and outside of the mask alike.

    As `Dataset.gen_random_rays_at` of Totoro97/NeuS, but the picture is drawn anew for each batch, where NeuS goes
    through a shuffled order: so nothing but the state of the random generator decides the next batch.
    """

    def sample_method(
        self,
        batch_size: int,
        num_images: int,
        image_height: int,
        image_width: int,
        mask: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Int[Tensor, "batch_size 3"]:
        """Picture, row and column of each sample; the mask is not looked at."""
        image = torch.randint(num_images, (1,), device=device).expand(batch_size)
        row = torch.randint(image_height, (batch_size,), device=device)
        column = torch.randint(image_width, (batch_size,), device=device)
        return torch.stack([image, row, column], dim=-1)
