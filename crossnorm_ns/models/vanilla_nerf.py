"""nerfstudio's vanilla NeRF with a norm before each hidden ReLU: the example of docs/YOUR_FIELD.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig

from crossnorm_ns.models.optional_lpips import OptionalLPIPS
from crossnorm_ns.norms import NormChoice, insert_norms


@dataclass
class VanillaNeRFCNModelConfig(VanillaModelConfig):
    """nerfstudio's vanilla NeRF with a choice of norm; all else is its own."""

    _target: type = field(default_factory=lambda: VanillaNeRFCNModel)
    norm: NormChoice = "cn"
    """Norm before each hidden ReLU of both fields: none (nerfstudio's model as it is), batch, layer, global or cross
    normalization."""
    norm_variant: Literal["released", "paper"] = "released"
    """Form of the cross normalization: that of the released code, or that of the paper's section 4.3."""
    norm_statistics: Literal["batch", "renorm"] = "batch"
    """Training statistics: the batch's, or the moving average's values with the batch's gradients."""
    eval_lpips: bool = False
    """Reports LPIPS too, whose weights nerfstudio loads from the network before the training."""


class VanillaNeRFCNModel(OptionalLPIPS, NeRFModel):
    """The coarse and the fine level have a field each, so each norm has one call site and needs no domains."""

    config: VanillaNeRFCNModelConfig

    def populate_modules(self) -> None:
        """Builds nerfstudio's model, then puts the norms in."""
        super().populate_modules()
        config = self.config
        for nerf in (self.field_coarse, self.field_fine):
            assert nerf is not None
            insert_norms(nerf, config.norm, variant=config.norm_variant, statistics=config.norm_statistics)
