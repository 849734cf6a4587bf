"""What surface models share: a signed distance field with norms, the start of its norms, losses, metrics, pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor

from crossnorm_ns.fields.sdf_field import SDFField, SDFFieldConfig, norms_set_aside
from crossnorm_ns.functional.metrics import psnr, ssim
from crossnorm_ns.limits import Batch, NotNegative, PositiveShare, check_fields
from crossnorm_ns.models.whole_batch import share_of_ratio
from crossnorm_ns.norms import NormChoice


@dataclass
class SurfaceModelConfig(ModelConfig):
    """A signed distance field with a choice of norms, and how it is compared with pictures."""

    _target: type = field(default_factory=lambda: SurfaceModel)
    sdf_field: SDFFieldConfig = field(default_factory=SDFFieldConfig)
    """Size and start of the networks."""
    sdf_norm: NormChoice = "cn"
    """Norm before each Softplus of the signed distance's network: none, batch, layer, global or cross normalization.
    Learning rates: the full-size methods keep the published 5e-4 (--optimizers.fields.optimizer.lr), not tuned for
    norms; the tiny preset has 2e-3, the best of four for both sides (docs/RESULTS.md)."""
    color_norm: NormChoice = "cn"
    """Norm before each ReLU of the colour's network."""
    norm_variant: Literal["paper", "released"] = "paper"
    """Form of the cross normalization in both networks. The released form cannot start from the sphere exactly: its
    denominator holds a variance of each sample."""
    norm_statistics: Literal["renorm", "batch"] = "renorm"
    """Training statistics: the moving average's values with the batch's gradients, so that samplers and the render
    pass see one surface; or the batch's."""
    norm_momentum: PositiveShare = 0.05
    """Of the moving average of the norms' statistics, which the render pass alone updates."""
    norm_initialization: Literal["identity", "default"] = "identity"
    """Start of the norms in the signed distance's network: so that they leave the initial sphere as it is, on the first
    batch as if seen from all sides; or with scale 1 and shift 0, which destroys it."""
    norm_coupled_gradients: bool = False
    """Keeps the terms between samples in the normals, for comparison."""
    background: Literal["none", "white", "black"] = "none"
    """Colour behind the object. White and black also replace what the pictures show outside of the masks where whole
    pictures are compared; the loss looks inside the masks alone."""
    eikonal_loss_mult: NotNegative = 0.1
    """Weight of the eikonal loss, over points less than 1.2 from the centre."""
    mask_loss_mult: NotNegative = 0.1
    """Weight of the binary cross-entropy between accumulated weights and masks; 0 trains without masks, on whole
    pictures."""
    enable_collider: bool = False
    """Unused: the unit sphere bounds the rays."""
    loss_coefficients: dict[str, float] = to_immutable_dict({"rgb_loss_coarse": 1.0, "rgb_loss_fine": 1.0})
    """Unused: see eikonal_loss_mult and mask_loss_mult."""
    prompt: str | None = None
    """Unused."""
    eval_num_rays_per_chunk: Batch = 512
    """Rays rendered at a time; the picture does not depend on it."""


class SurfaceModel(Model):
    """A signed distance field that subclasses render.

    Their `get_outputs` gives, of each ray, rgb and normals (rays, 3), accumulation (rays, 1), and for the eikonal loss
    eikonal_error and eikonal_points (rays, 1), sums over the ray.
    """

    config: SurfaceModelConfig
    field: SDFField
    learns_sharpness = False
    """Whether the field has the sharpness of a logistic density."""
    without_masks = "--pipeline.model.mask-loss-mult 0"
    """Options that train on whole pictures."""

    def populate_modules(self) -> None:
        """Builds the field.

        Raises:
            LimitError: a value that the configuration cannot have.
        """
        super().populate_modules()
        config = self.config
        check_fields(config)
        self.field = config.sdf_field.setup(
            sdf_norm=config.sdf_norm,
            color_norm=config.color_norm,
            norm_options={
                "variant": config.norm_variant,
                "statistics": config.norm_statistics,
                "momentum": config.norm_momentum,
                "coupled_gradients": config.norm_coupled_gradients,
            },
            learns_sharpness=self.learns_sharpness,
        )
        if config.norm_initialization == "default":
            self.field.norms_initialized.fill_(True)

    @property
    def uses_masks(self) -> bool:
        """Whether training and metrics look at masks."""
        return self.config.mask_loss_mult > 0

    def density_metrics(self) -> dict[str, Tensor]:
        """What says how narrow the density around the surface is."""
        raise NotImplementedError  # each density has its own

    def _beginning_norms(self, draw: Callable[[], Tensor], points_at: Callable[[Tensor], Tensor]) -> Tensor:
        """Samples that `draw` draws without gradients; the first of all in training also begin the norms.

        They begin as the identity on the points at these samples (rays, samples, 3).
        """
        if not (self.training and torch.is_grad_enabled()) or self.field.norms_initialized:
            return draw()
        with norms_set_aside(self.field):  # the norms are about to begin as the identity
            t = draw()
        self.field.initialize_norms(_turned(points_at(t)))
        return t

    @property
    def _background_level(self) -> float:
        return 1.0 if self.config.background == "white" else 0.0

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight-alpha RGBA of an output, the background taken out; `ns-render` and `ns-export` ask for it."""
        opacity = outputs[output_name.replace("rgb", "accumulation")]
        colors = (outputs[output_name] - self._background_level * (1 - opacity)) / opacity.clamp_min(1e-10)
        return torch.cat([colors.clamp(0, 1), opacity.clamp(0, 1)], dim=-1)

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR in dB of the rays at hand, all and inside the mask, and the width of the density."""
        with torch.no_grad():
            target, mask = self._target_and_mask(batch)
            metrics = {"psnr": psnr(outputs["rgb"], target), **self.density_metrics()}
            inside = mask[..., 0] > 0
            if self.uses_masks and inside.any():
                metrics["psnr_mask"] = psnr(outputs["rgb"][inside], target[inside])
            return metrics

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Absolute error of the colours inside the mask, eikonal loss, and cross-entropy of the mask.

        Of several processes, each one's shares of them.
        """
        target, mask = self._target_and_mask(batch)
        color_error = share_of_ratio(((outputs["rgb"] - target).abs() * mask).sum(), mask.sum(), eps=1e-5)
        eikonal = share_of_ratio(outputs["eikonal_error"].sum(), outputs["eikonal_points"].sum(), eps=1e-5)
        losses = {"rgb_loss": color_error, "eikonal_loss": self.config.eikonal_loss_mult * eikonal}
        if self.uses_masks:
            opacity = outputs["accumulation"].to(mask).clamp(1e-3, 1 - 1e-3)
            entropy = -(mask * opacity.log() + (1 - mask) * (1 - opacity).log()).sum()  # torch's own refuses NaN
            losses["mask_loss"] = self.config.mask_loss_mult * share_of_ratio(entropy, mask.numel())
        return losses

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR (whole image and inside the mask), SSIM, overlap with the mask; truth beside render, depth, normals."""
        target, mask = self._target_and_mask(batch)
        metrics = {name: float(value) for name, value in self.get_metrics_dict(outputs, batch).items()}
        metrics["ssim"] = float(ssim(outputs["rgb"], target))
        accumulation = outputs["accumulation"]
        if self.uses_masks:
            shown, wanted = accumulation > 0.5, mask > 0
            metrics["mask_iou"] = float((shown & wanted).sum() / (shown | wanted).sum())
        pictures = {
            "img": torch.cat([target, outputs["rgb"]], dim=1),
            "accumulation": colormaps.apply_colormap(accumulation.clamp(0, 1)),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=accumulation),
            "normals": outputs["normals_vis"] * accumulation,
        }
        return metrics, pictures

    def _target_and_mask(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """True colours, and 1 where they count (everywhere, where training does without masks)."""
        target = batch["image"].to(self.device)[..., :3]
        if not self.uses_masks:
            return target, torch.ones_like(target[..., :1])
        if "mask" not in batch:
            raise ValueError(
                f"the data has no masks: take the dataparser dtu-cn, or train without them ({self.without_masks})"
            )
        mask = (batch["mask"].to(self.device) > 0.5).to(target)
        if self.config.background == "none":
            return target, mask
        return target * mask + self._background_level * (1 - mask), mask


def narrowed_bounds(rays: RayBundle, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays begin and end, narrowed by the bounds that a bundle has."""
    if rays.nears is None or rays.fars is None:
        return near, far
    near = torch.maximum(near, rays.nears).minimum(far)
    return near, torch.minimum(far, rays.fars).maximum(near)


def _turned(points: Tensor) -> Tensor:
    """Points (rays, samples, 3), those of each ray turned around the centre at random: as if seen from all sides.

    The initial surface, a sphere, looks the same from there; the statistics of a batch from one picture would not.
    """
    turns = torch.linalg.qr(torch.randn(len(points), 3, 3, device=points.device))[0]
    return points @ turns.to(points)
