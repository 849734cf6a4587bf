"""NeuS as published, on nerfstudio's trainer, with any norm in both of its networks.

Source: Totoro97/NeuS (models/renderer.py, exp_runner.py, confs/wmask.conf and womask.conf). Deviations are listed in
docs/PARITY.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor
from torch.nn import Parameter, functional

from crossnorm_ns.fields.background_field import BackgroundField
from crossnorm_ns.fields.sdf_field import SDFField, SDFFieldConfig, norms_set_aside
from crossnorm_ns.functional.metrics import psnr, ssim
from crossnorm_ns.functional.rendering import composite
from crossnorm_ns.functional.surface_rendering import (
    annealed_slope,
    eikonal_errors,
    even_samples,
    outside_samples,
    rendering_weights,
    section_fenceposts,
    section_opacity,
    sphere_bounds,
    upsample,
)
from crossnorm_ns.models.whole_batch import share_of_ratio
from crossnorm_ns.norms import NormChoice

ANNEAL_WITHOUT_MASKS = 50_000  # womask.conf; wmask.conf has 0


@dataclass
class NeuSModelConfig(ModelConfig):
    """NeuS with a choice of norms; the defaults are those of its wmask.conf."""

    _target: type = field(default_factory=lambda: NeuSModel)
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
    norm_momentum: float = 0.05
    """Of the moving average of the norms' statistics, which the render pass alone updates."""
    norm_initialization: Literal["identity", "default"] = "identity"
    """Start of the norms in the signed distance's network: so that they leave the initial sphere as it is, on the first
    batch as if seen from all sides; or with scale 1 and shift 0, which destroys it."""
    norm_coupled_gradients: bool = False
    """Keeps the terms between samples in the normals, for comparison."""
    num_samples: int = 64
    """Evenly spaced samples along each ray."""
    num_importance: int = 64
    """Samples near the surface that up-sampling adds."""
    up_sample_steps: int = 4
    """Steps of up-sampling, each with twice the sharpness of the one before; num_importance is a multiple of it."""
    num_samples_outside: int = 0
    """Samples of each ray outside of the unit sphere, of a NeRF++ background; NeuS has 32 of them where it trains
    without masks, and 0 means no such background."""
    background: Literal["none", "white", "black"] = "none"
    """Colour behind the object. White and black also replace what the pictures show outside of the masks where whole
    pictures are compared; the loss looks inside the masks alone."""
    eikonal_loss_mult: float = 0.1
    """Weight of the eikonal loss, over points less than 1.2 from the centre."""
    mask_loss_mult: float = 0.1
    """Weight of the binary cross-entropy between accumulated weights and masks; 0 trains without masks, on whole
    pictures."""
    anneal_end: int | None = None
    """Steps over which sections that leave the surface are kept alive; None: 0 with masks, 50,000 without, as in
    NeuS."""
    enable_collider: bool = False
    """Unused: the unit sphere bounds the rays."""
    eval_num_rays_per_chunk: int = 512
    """Rays rendered at a time; the picture does not depend on it."""


class NeuSModel(Model):
    """A signed distance field whose surface is rendered with weights that peak where it is met first."""

    config: NeuSModelConfig
    field: SDFField

    def populate_modules(self) -> None:
        """Builds the field, and the background's where samples are asked for.

        Raises:
            ValueError: the up-sampling steps do not divide the samples that they add.
        """
        super().populate_modules()
        config = self.config
        if config.up_sample_steps < 1 or config.num_importance % config.up_sample_steps:
            raise ValueError(
                f"num_importance {config.num_importance} is no multiple of up_sample_steps {config.up_sample_steps}"
            )
        self.field = config.sdf_field.setup(
            sdf_norm=config.sdf_norm,
            color_norm=config.color_norm,
            norm_options={
                "variant": config.norm_variant,
                "statistics": config.norm_statistics,
                "momentum": config.norm_momentum,
                "coupled_gradients": config.norm_coupled_gradients,
            },
        )
        if config.norm_initialization == "default":
            self.field.norms_initialized.fill_(True)
        self.background_field = BackgroundField() if config.num_samples_outside > 0 else None
        self.step = 0

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """One group: all networks and the variance."""
        background = [] if self.background_field is None else list(self.background_field.parameters())
        return {"fields": [*self.field.parameters(), *background]}

    def update_to_step(self, step: int) -> None:
        """Sets the step that the annealing of the slopes depends on."""
        self.step = step

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Notes each step before it is taken."""
        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.update_to_step)]

    @property
    def anneal_ratio(self) -> float:
        """0 at the start and 1 from `anneal_end` on."""
        end = self.config.anneal_end
        if end is None:
            end = 0 if self.uses_masks else ANNEAL_WITHOUT_MASKS
        return min(1.0, self.step / end) if end > 0 else 1.0

    @property
    def uses_masks(self) -> bool:
        """Whether training and metrics look at masks."""
        return self.config.mask_loss_mult > 0

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        """Renders rays; bounds that a bundle has narrow those of the sphere.

        Returns:
            Of each ray: rgb (rays, 3), accumulation and depth (rays, 1; along unit directions), normals (rays, 3; the
            weighted sum of gradients within the unit sphere), normals_vis (normals in [0, 1]), and, for the eikonal
            loss, eikonal_error and eikonal_points (rays, 1), sums over the ray.
        """
        config, origins, directions = self.config, ray_bundle.origins, ray_bundle.directions
        near, far = _bounds(ray_bundle)
        t = even_samples(near, far, config.num_samples, self.training)
        spacing = (far - near) / config.num_samples
        t_outside = t[:, :0]
        if self.background_field is not None:
            offset = 1 / config.num_samples
            t_outside = outside_samples(far, config.num_samples_outside, offset, self.training)
        t = self._upsampled(origins, directions, t, spacing)
        return self._render(origins, directions, t, t_outside, spacing)

    def _upsampled(self, origins: Tensor, directions: Tensor, t: Tensor, spacing: Tensor) -> Tensor:
        def add_samples() -> Tensor:
            config = self.config
            steps = config.up_sample_steps
            return upsample(self.field.signed_distance, origins, directions, t, config.num_importance, steps)

        if not (self.training and torch.is_grad_enabled()) or self.field.norms_initialized:
            return add_samples()
        with norms_set_aside(self.field):  # the norms are about to begin as the identity
            new_t = add_samples()
        points = _sections(origins, directions, section_fenceposts(new_t, spacing))[0]
        self.field.initialize_norms(_turned(points))
        return new_t

    def _render(
        self, origins: Tensor, directions: Tensor, t: Tensor, t_outside: Tensor, spacing: Tensor
    ) -> dict[str, Tensor]:
        points, views, lengths = _sections(origins, directions, section_fenceposts(t, spacing))
        signed_distance, gradients, features = self.field.geometry(points)
        colors = self.field.colors(points, views, gradients, features)
        slope = annealed_slope((views * gradients).sum(-1), self.anneal_ratio)
        opacity = section_opacity(signed_distance[..., 0], slope, lengths, self.field.sharpness())
        inside = (points.norm(dim=-1) < 1).to(opacity)
        fenceposts = section_fenceposts(torch.cat([t, t_outside], dim=-1), spacing)
        if self.background_field is not None:
            outer_points, outer_views, outer_lengths = _sections(origins, directions, fenceposts)
            density, outer_colors = self.background_field(outer_points, outer_views)
            outer_opacity = -torch.expm1(-density[..., 0] * outer_lengths)
            opacity = _behind(inside, opacity, outer_opacity)
            colors = _behind(inside[..., None], colors, outer_colors)
        weights = rendering_weights(opacity)
        rgb, accumulation, depth = composite(weights, colors, fenceposts, self._background_level)
        normals = ((weights[:, : t.shape[1]] * inside)[..., None].detach() * gradients.detach()).sum(-2)
        eikonal_error, eikonal_points = eikonal_errors(gradients, points)
        return {
            "rgb": rgb,
            "accumulation": accumulation,
            "depth": depth,
            "normals": normals,
            "normals_vis": (functional.normalize(normals, dim=-1) + 1) / 2,
            "eikonal_error": eikonal_error,
            "eikonal_points": eikonal_points,
        }

    @property
    def _background_level(self) -> float:
        return 1.0 if self.config.background == "white" else 0.0

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight-alpha RGBA of an output, the background taken out; `ns-render` and `ns-export` ask for it."""
        opacity = outputs[output_name.replace("rgb", "accumulation")]
        colors = (outputs[output_name] - self._background_level * (1 - opacity)) / opacity.clamp_min(1e-10)
        return torch.cat([colors.clamp(0, 1), opacity.clamp(0, 1)], dim=-1)

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR in dB of the rays at hand, all and inside the mask, and the width of the density, 1 / s.

        That is `inv_s` as in nerfstudio's neus; Totoro97/NeuS gives this name to s itself.
        """
        with torch.no_grad():
            target, mask = self._target_and_mask(batch)
            metrics = {"psnr": psnr(outputs["rgb"], target), "inv_s": 1 / self.field.sharpness()}
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
                "the data has no masks: take the dataparser dtu-cn, or train without them "
                "(--pipeline.model.mask-loss-mult 0 --pipeline.model.num-samples-outside 32)"
            )
        mask = (batch["mask"].to(self.device) > 0.5).to(target)
        if self.config.background == "none":
            return target, mask
        return target * mask + self._background_level * (1 - mask), mask


def _bounds(rays: RayBundle) -> tuple[Tensor, Tensor]:
    near, far = sphere_bounds(rays.origins, rays.directions)
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


def _sections(origins: Tensor, directions: Tensor, fenceposts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middle points (rays, sections, 3), view directions (rays, sections, 3) and lengths (rays, sections)."""
    middles = (fenceposts[:, 1:] + fenceposts[:, :-1]) / 2
    points = origins[:, None] + directions[:, None] * middles[..., None]
    return points, directions[:, None].expand_as(points), fenceposts.diff(dim=-1)


def _behind(inside: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """The inner values within the unit sphere, the outer ones elsewhere and behind the inner samples."""
    count = inner.shape[1]
    return torch.cat([inner * inside + outer[:, :count] * (1 - inside), outer[:, count:]], dim=1)
