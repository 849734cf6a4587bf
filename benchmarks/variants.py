"""Variants of the mip-NeRF model that exist to be compared with it."""

from __future__ import annotations

from torch import nn

from crossnorm_ns.models.mipnerf import MipNeRFModel
from crossnorm_ns.norms import NormalizedLinear

__all__ = ["FirstLayerPlain", "MipNeRFModel", "SharedStatistics", "TrunkOnly", "TrunkWithoutFirst"]


class SharedStatistics(MipNeRFModel):
    """One set of stored statistics for both levels."""

    def level_domain(self, level: str) -> str:
        """The same for all."""
        return "shared"


def _remove_norm(model: MipNeRFModel, layer: nn.Module) -> None:
    assert isinstance(layer, NormalizedLinear)
    layer.norm = nn.Identity()
    layer.weight.data.div_(model.config.normed_weight_scale)


class FirstLayerPlain(MipNeRFModel):
    """Norms in the trunk but its first layer, and in the view head."""

    def populate_modules(self) -> None:
        """Takes the first norm out."""
        super().populate_modules()
        _remove_norm(self, self.field.trunk.layers[0])


class TrunkOnly(MipNeRFModel):
    """Norms in the trunk, none in the view head."""

    def populate_modules(self) -> None:
        """Takes the head's norm out."""
        super().populate_modules()
        _remove_norm(self, self.field.head.layers[0])


class TrunkWithoutFirst(TrunkOnly):
    """Norms in the trunk but its first layer, none in the view head."""

    def populate_modules(self) -> None:
        """Takes the first norm out, too."""
        super().populate_modules()
        _remove_norm(self, self.field.trunk.layers[0])
