"""NeuS as published, on nerfstudio's trainer, with any norm in both of its networks.

Source: Totoro97/NeuS (models/renderer.py, exp_runner.py, confs/wmask.conf and womask.conf). Deviations are listed in
docs/PARITY.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor
from torch.nn import Parameter, functional

from crossnorm_ns.fields.background_field import BackgroundField
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
from crossnorm_ns.limits import Fault, between
from crossnorm_ns.models.surface import SurfaceModel, SurfaceModelConfig, narrowed_bounds

ANNEAL_WITHOUT_MASKS = 50_000  # womask.conf; wmask.conf has 0


@dataclass
class NeuSModelConfig(SurfaceModelConfig):
    """NeuS with a choice of norms; the defaults are those of its wmask.conf."""

    _target: type = field(default_factory=lambda: NeuSModel)
    num_samples: Annotated[int, between(2, 2**16)] = 64
    """Evenly spaced samples along each ray."""
    num_importance: Annotated[int, between(1, 2**16)] = 64
    """Samples near the surface that up-sampling adds."""
    up_sample_steps: Annotated[int, between(1, 64)] = 4
    """Steps of up-sampling, each with twice the sharpness of the one before; num_importance is a multiple of it."""
    num_samples_outside: Annotated[int, between(0, 2**16)] = 0
    """Samples of each ray outside of the unit sphere, of a NeRF++ background; NeuS has 32 of them where it trains
    without masks, and 0 means no such background."""
    anneal_end: Annotated[int, between(0, 10**9)] | None = None
    """Steps over which sections that leave the surface are kept alive; None: 0 with masks, 50,000 without, as in
    NeuS."""

    def faults(self) -> Iterator[Fault]:
        """Up-sampling steps that do not divide the samples which they add."""
        number, steps = self.num_importance, self.up_sample_steps
        if number % steps:
            yield "num_importance", f"is {number}, but must be a multiple of up_sample_steps, {steps}"


class NeuSModel(SurfaceModel):
    """A signed distance field whose surface is rendered with weights that peak where it is met first."""

    config: NeuSModelConfig
    learns_sharpness = True
    without_masks = "--pipeline.model.mask-loss-mult 0 --pipeline.model.num-samples-outside 32"

    def populate_modules(self) -> None:
        """Builds the field, and the background's where samples are asked for."""
        super().populate_modules()
        self.background_field = BackgroundField() if self.config.num_samples_outside > 0 else None
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

    def density_metrics(self) -> dict[str, Tensor]:
        """The width of the density, 1 / s: `inv_s` as in nerfstudio's neus; Totoro97/NeuS gives this name to s."""
        return {"inv_s": 1 / self.field.sharpness()}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        """Renders rays; bounds that a bundle has narrow those of the sphere.

        Returns:
            Of each ray: rgb (rays, 3), accumulation and depth (rays, 1; along unit directions), normals (rays, 3; the
            weighted sum of gradients within the unit sphere), normals_vis (normals in [0, 1]), and, for the eikonal
            loss, eikonal_error and eikonal_points (rays, 1), sums over the ray.
        """
        config, origins, directions = self.config, ray_bundle.origins, ray_bundle.directions
        near, far = narrowed_bounds(ray_bundle, *sphere_bounds(origins, directions))
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

        return self._beginning_norms(
            add_samples, lambda new_t: _sections(origins, directions, section_fenceposts(new_t, spacing))[0]
        )

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


def _sections(origins: Tensor, directions: Tensor, fenceposts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middle points (rays, sections, 3), view directions (rays, sections, 3) and lengths (rays, sections)."""
    middles = (fenceposts[:, 1:] + fenceposts[:, :-1]) / 2
    points = origins[:, None] + directions[:, None] * middles[..., None]
    return points, directions[:, None].expand_as(points), fenceposts.diff(dim=-1)


def _behind(inside: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """The inner values within the unit sphere, the outer ones elsewhere and behind the inner samples."""
    count = inner.shape[1]
    return torch.cat([inner * inside + outer[:, :count] * (1 - inside), outer[:, count:]], dim=1)
