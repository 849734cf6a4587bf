"""nerfstudio's models without the download that some of them begin with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from nerfstudio.models.base_model import Model
from torch import Tensor, nn
from torchmetrics.image import lpip


class OptionalLPIPS(Model):
    """Stands before a model of nerfstudio's that measures LPIPS: only where its config's `eval_lpips` asks for it.

    Such models load the weights of LPIPS from the network as soon as they are built, to train as well.
    """

    config: Any

    def populate_modules(self) -> None:
        """Builds the model, without LPIPS unless it is asked for."""
        with contextlib.nullcontext() if self.config.eval_lpips else _without_lpips():
            super().populate_modules()

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The model's, without a figure that was not measured."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        measured = {name: value for name, value in metrics.items() if self.config.eval_lpips or "lpips" not in name}
        return measured, images


class _NotMeasured(nn.Module):
    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, *_: Tensor) -> Tensor:
        return torch.tensor(math.nan)


@contextlib.contextmanager
def _without_lpips() -> Iterator[None]:
    """Within it, models find a stand-in for LPIPS, which they import as they are built."""
    original = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = _NotMeasured
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = original
