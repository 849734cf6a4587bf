"""mip-NeRF as published, on nerfstudio's trainer, with any norm in its network.

Source: google/mipnerf @ 84c969e (internal/models.py, internal/mip.py, configs/blender.gin). Deviations are listed in
docs/PARITY.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor
from torch.nn import Parameter, functional

from crossnorm_ns.fields.mipnerf_field import MipNeRFField
from crossnorm_ns.functional.metrics import lpips, psnr, ssim
from crossnorm_ns.functional.rendering import (
    blur_weights,
    composite,
    resample_fenceposts,
    stratified_fenceposts,
    volume_rendering_weights,
)
from crossnorm_ns.limits import (
    Batch,
    Degrees,
    Fault,
    Layers,
    NotNegative,
    Positive,
    SamplesOfRay,
    Share,
    Width,
    between,
    check_fields,
    weights_fault,
)
from crossnorm_ns.models.whole_batch import share_of_ratio
from crossnorm_ns.norms import NormChoice, norm_domain

CONE_FACTOR = 2 / math.sqrt(12)  # radius whose disc has the variance of a square pixel of unit width
LEVELS = ("coarse", "fine")


@dataclass
class MipNeRFModelConfig(ModelConfig):
    """mip-NeRF with a choice of norm."""

    _target: type = field(default_factory=lambda: MipNeRFModel)
    norm: NormChoice = "cn"
    """Norm before each hidden ReLU: none, batch, layer, global or cross normalization. Learning rates: the full-size
    methods keep the published 5e-4 (--optimizers.fields.optimizer.lr), not tuned at that size; the tiny
    preset has 5e-3, on lego within 0.3 dB of the best of six between 5e-4 and 4e-2, for none and for cn
    (docs/RESULTS.md)."""
    norm_variant: Literal["released", "paper"] = "released"
    """Form of the cross normalization: that of the released code, or that of the paper's section 4.3."""
    norm_statistics: Literal["batch", "renorm"] = "batch"
    """Training statistics: the batch's, or the moving average's values with the batch's gradients."""
    normed_weight_scale: Positive = 0.5
    """Factor on the initial (Glorot) weights of the layers that a norm follows. It hardly changes the function, which
    does not depend on the scale of these weights, but smaller ones turn faster at the same learning rate."""
    near: NotNegative = 2.0
    """Where rays begin, in units of the ray direction whose z component is -1 in the camera's frame."""
    far: Positive = 6.0
    """Where rays end, in the same units."""
    num_samples: SamplesOfRay = 128
    """Samples along each ray, on each of the two levels."""
    depth: Layers = 8
    """Hidden layers of the trunk."""
    width: Width = 256
    """Width of the trunk and of the bottleneck."""
    head_width: Width = 128
    """Width of the hidden layer that sees the view direction."""
    point_degrees: Annotated[int, between(1, 64)] = 16
    """Degrees of the integrated positional encoding, 2^0 to 2^(n-1)."""
    view_degrees: Degrees = 4
    """Degrees of the positional encoding of the view direction."""
    resample_padding: NotNegative = 0.01
    """Added to the blurred coarse weights before the fine level is sampled from them."""
    coarse_loss_mult: NotNegative = 0.1
    """Weight of the coarse level's loss; the fine level's is 1."""
    background: Share = 1.0
    """Grey level behind the scene: 1 is white."""
    enable_collider: bool = False
    """Unused: near and far bound the rays."""
    loss_coefficients: dict[str, float] = to_immutable_dict({"rgb_loss_coarse": 1.0, "rgb_loss_fine": 1.0})
    """Unused: see coarse_loss_mult."""
    prompt: str | None = None
    """Unused."""
    eval_num_rays_per_chunk: Batch = 4096
    """Rays rendered at a time; the picture does not depend on it."""
    eval_lpips: bool = False
    """Reports LPIPS too; needs the extra `lpips` and, once, its weights from the network."""

    def faults(self) -> Iterator[Fault]:
        """Rays without length, networks that are too large."""
        if self.far <= self.near:
            yield "far", f"is {self.far}, but must be above near, {self.near}"
        yield from weights_fault("width", self.width, 6 * self.point_degrees, *[self.width] * (self.depth + 1))
        view = self.width + 3 + 6 * self.view_degrees
        yield from weights_fault("head_width", self.head_width, view, self.head_width, 3)


class MipNeRFModel(Model):
    """Two levels of samples through one network; the second is drawn from the blurred weights of the first."""

    config: MipNeRFModelConfig

    def populate_modules(self) -> None:
        """Builds the field.

        Raises:
            LimitError: a value that the configuration cannot have.
        """
        super().populate_modules()
        check_fields(self.config)
        config = self.config
        self.field = MipNeRFField(
            depth=config.depth,
            width=config.width,
            head_width=config.head_width,
            point_degrees=config.point_degrees,
            view_degrees=config.view_degrees,
            norm=config.norm,
            norm_options={"variant": config.norm_variant, "statistics": config.norm_statistics},
            normed_weight_scale=config.normed_weight_scale,
        )

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """One group: the field."""
        return {"fields": list(self.field.parameters())}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        """Renders rays.

        Returns:
            rgb (rays, 3), accumulation and depth (rays, 1; along unit directions, in scene units), and the coarse
            level's under the same names with the suffix `_coarse`.
        """
        assert ray_bundle.metadata is not None
        norms = ray_bundle.metadata["directions_norm"]
        directions = ray_bundle.directions * norms
        radii = CONE_FACTOR * _pixel_spacing(ray_bundle)
        config, outputs = self.config, {}
        t = stratified_fenceposts(config.near, config.far, len(norms), config.num_samples, self.training, directions)
        weights = None
        for level in LEVELS:
            if weights is not None:
                blurred = blur_weights(weights.detach(), config.resample_padding)
                t = resample_fenceposts(t, blurred, config.num_samples + 1, self.training)
            samples = _ray_samples(ray_bundle.origins, directions, t, radii)
            with norm_domain(self.field, self.level_domain(level)):
                fields = self.field(samples)
            weights = volume_rendering_weights(fields[FieldHeadNames.DENSITY][..., 0], t, norms)
            rgb, accumulation, t_expected = composite(weights, fields[FieldHeadNames.RGB], t, config.background)
            suffix = "" if level == LEVELS[-1] else f"_{level}"
            outputs[f"rgb{suffix}"] = rgb
            outputs[f"accumulation{suffix}"] = accumulation
            outputs[f"depth{suffix}"] = t_expected * norms
        return outputs

    def level_domain(self, level: str) -> str:
        """The statistics that a level's norms use: each level has its own."""
        return level

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Renders a camera; its own focal length sets the width of the cones, whatever was done to its resolution."""
        with torch.no_grad():
            rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        rays.metadata.pop("pixel_spacing", None)
        if camera.camera_type.flatten()[0] == CameraType.PERSPECTIVE.value:
            rays.metadata["pixel_spacing"] = torch.ones_like(rays.metadata["directions_norm"]) / camera.fx.flatten()[0]
        return self.get_outputs_for_camera_ray_bundle(rays)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight-alpha RGBA of an output, the background taken out; `ns-render` and `ns-export` ask for it."""
        opacity = outputs[output_name.replace("rgb", "accumulation")]
        colors = (outputs[output_name] - self.config.background * (1 - opacity)) / opacity.clamp_min(1e-10)
        return torch.cat([colors.clamp(0, 1), opacity], dim=-1)

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """PSNR in dB of the rays at hand, of both levels."""
        with torch.no_grad():
            target = self._target(batch)
            return {"psnr": psnr(outputs["rgb"], target), "psnr_coarse": psnr(outputs["rgb_coarse"], target)}

    def get_loss_dict(
        self,
        outputs: dict[str, Tensor],
        batch: dict[str, Tensor],
        metrics_dict: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Mean squared error of both levels; of several processes, each one's share of it."""
        target = self._target(batch)

        def mean_squared_error(rgb: Tensor) -> Tensor:
            return share_of_ratio(functional.mse_loss(rgb, target, reduction="sum"), target.numel())

        return {
            "rgb_loss": mean_squared_error(outputs["rgb"]),
            "rgb_loss_coarse": self.config.coarse_loss_mult * mean_squared_error(outputs["rgb_coarse"]),
        }

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM (mip-NeRF's) of an image, and pictures: truth beside render, accumulation, depth."""
        target, rgb = self._target(batch), outputs["rgb"]
        metrics = {"psnr": float(psnr(rgb, target)), "ssim": float(ssim(rgb, target))}
        if self.config.eval_lpips:
            metrics["lpips"] = float(lpips(rgb, target))
        pictures = {
            "img": torch.cat([target, rgb], dim=1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(
                outputs["depth"],
                accumulation=outputs["accumulation"],
                near_plane=self.config.near,
                far_plane=self.config.far,
            ),
        }
        return metrics, pictures

    def _target(self, batch: dict[str, Any]) -> Tensor:
        image = batch["image"].to(self.device)
        if image.shape[-1] == 4:  # another dataparser than ours may leave the compositing to the model
            image = image[..., :3] * image[..., 3:] + self.config.background * (1 - image[..., 3:])
        return image


def _pixel_spacing(rays: RayBundle) -> Tensor:
    """Distance of neighbouring pixels on the image plane at unit depth, (rays, 1).

    Given by our dataparsers; from others, recovered from the solid angle within 0.5 % at a field of view of 40 degrees.
    """
    if "pixel_spacing" in rays.metadata:
        return rays.metadata["pixel_spacing"]
    assert rays.pixel_area is not None
    return torch.sqrt(rays.pixel_area * rays.metadata["directions_norm"] ** 3)


def _ray_samples(origins: Tensor, directions: Tensor, t: Tensor, radii: Tensor) -> RaySamples:
    shape = (*t[:, 1:].shape, 3)
    frustums = Frustums(
        origins=origins[:, None].expand(shape),
        directions=directions[:, None].expand(shape),
        starts=t[:, :-1, None],
        ends=t[:, 1:, None],
        pixel_area=(math.pi * radii.square())[:, None].expand(*shape[:-1], 1),
    )
    return RaySamples(frustums=frustums)
