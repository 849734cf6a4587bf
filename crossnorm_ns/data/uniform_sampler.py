"""nerfstudio pixel sampler that draws inside and outside of masks alike, from one picture a batch or from all."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from crossnorm_ns.limits import Batch


@dataclass
class UniformPixelSamplerConfig(PixelSamplerConfig):
    """Pixels drawn uniformly, whatever the masks say."""

    _target: type = field(default_factory=lambda: UniformPixelSampler)
    """Class to instantiate."""
    num_rays_per_batch: Batch = 512
    """Number of rays of a batch."""
    single_image: bool = True
    """All rays of a batch from one picture, as in NeuS; or each from any picture, which gives norms statistics of the
    whole scene."""


class UniformPixelSampler(PixelSampler):
    """Draws pictures, then their pixels uniformly with replacement, inside and outside of the mask alike.

    With one picture a batch as `Dataset.gen_random_rays_at` of Totoro97/NeuS, but the picture is drawn anew for each
    batch, where NeuS goes through a shuffled order: so nothing but the state of the random generator decides the next
    batch.
    """

    config: UniformPixelSamplerConfig

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
        num_draws = 1 if self.config.single_image else batch_size
        image = torch.randint(num_images, (num_draws,), device=device).expand(batch_size)
        row = torch.randint(image_height, (batch_size,), device=device)
        column = torch.randint(image_width, (batch_size,), device=device)
        return torch.stack([image, row, column], dim=-1)
