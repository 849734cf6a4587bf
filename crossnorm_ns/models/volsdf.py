"""VolSDF on nerfstudio's trainer, with any norm in both of its networks: NeuS's field with Laplace's density.

Source: lioryariv/volsdf (code/model/network.py, density.py, ray_sampler.py, loss.py, confs/dtu.conf). Deviations are
listed in docs/PARITY.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor
from torch.nn import Parameter, functional

from crossnorm_ns.fields.sdf_field import SDFFieldConfig
from crossnorm_ns.functional.laplace_rendering import error_bounded_samples, laplace_density
from crossnorm_ns.functional.rendering import composite, stratified_fenceposts, volume_rendering_weights
from crossnorm_ns.functional.surface_rendering import eikonal_errors, section_fenceposts, sphere_bounds
from crossnorm_ns.limits import NotNegative, Positive, SamplesOfRay, between
from crossnorm_ns.models.surface import SurfaceModel, SurfaceModelConfig, narrowed_bounds
from crossnorm_ns.norms import NormChoice

_SPHERE_SCALE = 20.0  # of the distance from the bounding sphere


@dataclass
class VolSDFModelConfig(SurfaceModelConfig):
    """VolSDF with a choice of norms; the defaults are those of its dtu.conf."""

    _target: type = field(default_factory=lambda: VolSDFModel)
    sdf_field: SDFFieldConfig = field(default_factory=lambda: SDFFieldConfig(initial_radius=0.6))
    """Size and start of the networks; the variance is NeuS's alone."""
    sdf_norm: NormChoice = "cn"
    """Norm before each Softplus of the signed distance's network: none, batch, layer, global or cross normalization.
    Learning rates: the full-size methods keep the published 5e-4 (--optimizers.fields.optimizer.lr), not tuned for
    norms; the tiny preset has 2e-3, the best of six for cn, while none is best at 2e-4 (docs/RESULTS.md)."""
    mask_loss_mult: NotNegative = 0.0
    """Weight of the binary cross-entropy between accumulated weights and masks; 0, as in VolSDF, trains without masks
    on whole pictures, whose rays all end at a sphere of this model's `bounding_radius`."""
    bounding_radius: Positive = 3.0
    """Without masks: radius of the sphere from which on everything is inside. With masks rays end with the unit
    sphere."""
    initial_beta: Positive = 0.1
    """Width of the density around the surface in the beginning."""
    beta_min: NotNegative = 1e-4
    """Added to the learned width."""
    num_samples: SamplesOfRay = 64
    """Samples of each ray drawn from the rendering weights."""
    num_samples_even: Annotated[int, between(2, 2**16)] = 128
    """Evenly spaced samples that the sampler begins with, and samples that it adds in each iteration."""
    num_samples_extra: Annotated[int, between(0, 2**16)] = 32
    """Samples of each ray from all over it, of those that the sampler has asked."""
    sampler_tolerance: Positive = 0.1
    """Bound of the error of the opacity."""
    sampler_iterations: Annotated[int, between(1, 1000)] = 5
    """At most, in which the sampler asks for signed distances."""


class VolSDFModel(SurfaceModel):
    """A signed distance field whose interior is nearly homogeneous matter of density 1 / beta."""

    config: VolSDFModelConfig

    def populate_modules(self) -> None:
        """Builds the field and the density's width."""
        super().populate_modules()
        self.learned_beta = Parameter(torch.tensor(self.config.initial_beta))

    @property
    def beta(self) -> Tensor:
        """Width of the density around the surface."""
        return self.learned_beta.abs() + self.config.beta_min

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """One group: all networks and beta."""
        return {"fields": [*self.field.parameters(), self.learned_beta]}

    def density_metrics(self) -> dict[str, Tensor]:
        """beta."""
        return {"beta": self.beta}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        """Renders rays; bounds that a bundle has narrow those of the sphere.

        Returns:
            Of each ray: rgb (rays, 3), accumulation and depth (rays, 1; along unit directions), normals (rays, 3; the
            weighted sum of gradients within the unit sphere), normals_vis (normals in [0, 1]), and, for the eikonal
            loss, eikonal_error and eikonal_points (rays, 1), sums over the ray.
        """
        config, origins, directions = self.config, ray_bundle.origins, ray_bundle.directions
        near, far = narrowed_bounds(ray_bundle, *self._bounds(origins, directions))
        share = stratified_fenceposts(0.0, 1.0, len(near), config.num_samples_even - 1, self.training, near)
        t = self._beginning_norms(
            partial(self._samples, origins, directions, near + (far - near) * share),
            partial(_points, origins, directions),
        )
        fenceposts = section_fenceposts(t, (far - near) / config.num_samples_even)
        points = _points(origins, directions, t)
        views = directions[:, None].expand_as(points)
        signed_distance, gradients, features = self.field.geometry(points)
        signed_distance, bounded_gradients = self._bounded(points, signed_distance, gradients)
        colors = self.field.colors(points, views, bounded_gradients, features)
        density = laplace_density(signed_distance[..., 0], self.beta)
        weights = volume_rendering_weights(density, fenceposts, torch.ones_like(near))
        rgb, accumulation, depth = composite(weights, colors, fenceposts, self._background_level)
        inside = (points.norm(dim=-1) < 1).to(weights)
        normals = ((weights * inside)[..., None].detach() * gradients.detach()).sum(-2)
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

    def _bounds(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        if self.uses_masks:
            return sphere_bounds(origins, directions)
        near = torch.zeros_like(origins[:, :1])
        return near, near + 2 * self.config.bounding_radius

    def _samples(self, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
        def signed_distance(points: Tensor) -> Tensor:
            distances = self.field.signed_distance(points)
            return distances if self.uses_masks else torch.minimum(distances, self._sphere_distance(points))

        config = self.config
        return error_bounded_samples(
            signed_distance,
            origins,
            directions,
            t,
            self.beta.detach(),
            config.num_samples,
            config.num_samples_extra,
            tolerance=config.sampler_tolerance,
            max_iterations=config.sampler_iterations,
            perturb=self.training,
        )

    def _bounded(self, points: Tensor, signed_distance: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances and gradients as the bounding sphere leaves them."""
        if self.uses_masks:
            return signed_distance, gradients
        sphere = self._sphere_distance(points)
        of_sphere = -_SPHERE_SCALE * functional.normalize(points, dim=-1)
        return torch.minimum(signed_distance, sphere), torch.where(sphere < signed_distance, of_sphere, gradients)

    def _sphere_distance(self, points: Tensor) -> Tensor:
        return _SPHERE_SCALE * (self.config.bounding_radius - points.norm(dim=-1, keepdim=True))


def _points(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    return origins[:, None] + directions[:, None] * t[..., None]
