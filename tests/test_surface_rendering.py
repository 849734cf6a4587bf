"""Rendering of signed distance fields: against planes, spheres, and NeuS's formulas written out as loops."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from crossnorm_ns.functional.rendering import composite
from crossnorm_ns.functional.surface_rendering import (
    annealed_slope,
    eikonal_errors,
    even_samples,
    importance_samples,
    inverted_sphere,
    outside_samples,
    rendering_weights,
    samples_at_quantiles,
    section_fenceposts,
    section_opacity,
    sphere_bounds,
    upsample,
)

RADIUS = 0.5


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def parallel_rays(heights) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays along -z from z = 3, each passing the centre at a height along x."""
    heights = tensor(heights)
    origins = torch.stack([heights, torch.zeros_like(heights), torch.full_like(heights, 3.0)], dim=-1)
    return origins, tensor([0.0, 0.0, -1.0]).expand_as(origins)


def sphere(points: torch.Tensor) -> torch.Tensor:
    return points.norm(dim=-1, keepdim=True) - RADIUS


def rendered(function, origins, directions, t, sharpness, last_length):
    """Fenceposts, and weights from a field and its true gradients in the middles of the sections."""
    fenceposts = section_fenceposts(t, torch.full_like(t[:, :1], last_length))
    middles = (fenceposts[:, 1:] + fenceposts[:, :-1]) / 2
    points = (origins[:, None] + directions[:, None] * middles[..., None]).requires_grad_()
    values = function(points)
    (gradients,) = torch.autograd.grad(values.sum(), points)
    slope = annealed_slope((gradients * directions[:, None]).sum(-1), 1.0)
    opacity = section_opacity(values[..., 0].detach(), slope, fenceposts.diff(dim=-1), sharpness)
    return fenceposts, rendering_weights(opacity)


# --- Bounds and samples


def test_bounds_lie_one_unit_around_the_point_nearest_to_the_centre():
    generator = torch.Generator().manual_seed(0)
    origins = 3 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator, dtype=torch.float64), dim=-1)
    near, far = sphere_bounds(origins, directions)
    torch.testing.assert_close(far - near, torch.full_like(near, 2.0))
    nearest = origins + directions * (near + far) / 2
    torch.testing.assert_close((nearest * directions).sum(-1), torch.zeros(50, dtype=torch.float64), rtol=0, atol=1e-12)


def test_bounds_along_longer_directions_are_still_a_unit_of_t_away():
    near, far = sphere_bounds(tensor([[0.0, 0, 4]]), tensor([[0.0, 0, -2]]))
    assert (near.item(), far.item()) == (1.0, 3.0)


def test_even_samples_reach_from_near_to_far():
    t = even_samples(tensor([[1.0], [2.0]]), tensor([[3.0], [4.0]]), 5, perturb=False)
    torch.testing.assert_close(t, tensor([[1, 1.5, 2, 2.5, 3], [2, 2.5, 3, 3.5, 4]]), rtol=0, atol=1e-12)


def test_perturbation_shifts_all_samples_of_a_ray_together_by_up_to_a_spacing_in_all():
    torch.manual_seed(0)
    near = torch.ones(5_000, 1, dtype=torch.float64)
    shifts = even_samples(near, near + 2, 8, perturb=True) - even_samples(near, near + 2, 8, perturb=False)
    torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts))
    shares = shifts[:, 0] / (2 / 8)
    np.testing.assert_allclose(np.histogram(shares, bins=10, range=(-0.5, 0.5))[0] / len(shares), 0.1, atol=0.02)


def test_the_last_section_has_the_length_that_is_given():
    fenceposts = section_fenceposts(tensor([[1.0, 1.5, 3.0]]), tensor([[0.25]]))
    torch.testing.assert_close(fenceposts, tensor([[1.0, 1.5, 3.0, 3.25]]))


# --- Opacity and weights


@pytest.mark.parametrize("sharpness", [4.0, 30.0, 200.0])
@pytest.mark.parametrize("cosine", [-1.0, -0.3])
def test_opacity_of_a_plane_is_the_drop_of_the_logistic_function_over_the_section(sharpness: float, cosine: float):
    """Along a ray towards a plane the signed distance is linear, so each section's is exact."""
    t = torch.linspace(0, 2, 41, dtype=torch.float64)[None]
    distance = (t - 1.2) * cosine
    middle, lengths = (distance[:, 1:] + distance[:, :-1]) / 2, t.diff(dim=-1)
    opacity = section_opacity(middle, torch.full_like(middle, cosine), lengths, sharpness)
    logistic = expit(sharpness * distance.numpy())
    np.testing.assert_allclose(opacity, 1 - (logistic[:, 1:]) / (logistic[:, :-1] + 1e-5), atol=1e-12)
    # Through all sections: what is left is the ratio of the logistic function at both ends.
    left = 1 - rendering_weights(opacity).sum()
    assert left.item() == pytest.approx(logistic[0, -1] / logistic[0, 0], abs=2e-3)


def test_opacity_where_the_ray_leaves_the_surface_vanishes_outside():
    slope = annealed_slope(tensor([[1.0, 0.2]]), 1.0)
    opacity = section_opacity(tensor([[0.3, 0.3]]), slope, tensor([[0.1, 0.1]]), 50.0)
    torch.testing.assert_close(opacity, torch.full_like(opacity, 1e-5), rtol=1e-4, atol=0)


def test_opacity_stays_within_zero_and_one_with_any_slope():
    generator = torch.Generator().manual_seed(0)
    values, slope = torch.randn(2, 4, 50, generator=generator)
    opacity = section_opacity(3 * values, 50 * slope, torch.ones(4, 50), 1e3)
    assert ((opacity >= 0) & (opacity <= 1)).all()


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("cosine", [-1.0, -0.4, 0.0, 0.5, 1.0, 1.7])
def test_slopes_are_annealed_from_half_the_cosine_minus_one_to_the_negative_cosine(cosine: float, ratio: float):
    expected = (1 - ratio) * min((cosine - 1) / 2, 0.0) + ratio * min(cosine, 0.0)
    assert annealed_slope(tensor(cosine), ratio).item() == pytest.approx(expected, abs=1e-15)


def test_weights_are_opacity_times_transmittance():
    opacity = torch.rand(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = rendering_weights(opacity)
    for ray in range(3):
        through = 1.0
        for section in range(8):
            alpha = opacity[ray, section].item()
            assert weights[ray, section].item() == pytest.approx(alpha * through, rel=1e-5)
            through *= 1 - alpha


def test_opaque_sections_hide_what_lies_behind_and_keep_gradients_finite():
    opacity = tensor([[0.5, 1.0, 0.7, 1.0]]).requires_grad_()
    weights = rendering_weights(opacity)
    torch.testing.assert_close(weights.detach(), tensor([[0.5, 0.5, 0.0, 0.0]]), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(weights[0, 3], opacity)
    assert torch.isfinite(gradient).all()


def test_weights_of_a_sphere_lie_on_its_surface():
    """Expected depth and opacity of rays through a sphere, and of rays that miss it."""
    heights = [0.0, 0.2, 0.4, 0.7]
    origins, directions = parallel_rays(heights)
    t = torch.linspace(2, 4, 401, dtype=torch.float64).expand(4, -1)
    fenceposts, weights = rendered(sphere, origins, directions, t, 400.0, 2 / 400)
    _, accumulation, depth = composite(weights, torch.zeros(*weights.shape, 3).double(), fenceposts, 0.0)
    torch.testing.assert_close(accumulation[:, 0], tensor([1.0, 1, 1, 0]), rtol=0, atol=1e-2)
    for ray, height in enumerate(heights[:3]):
        assert depth[ray].item() == pytest.approx(3 - math.sqrt(RADIUS**2 - height**2), abs=5e-3)


def test_weights_of_a_sphere_are_unbiased_at_the_surface():
    """The largest weight is that of the section that crosses the surface, at any sharpness (NeuS, theorem 1)."""
    origins, directions = parallel_rays([0.0, 0.3])
    t = torch.linspace(2, 4, 201, dtype=torch.float64).expand(2, -1)
    for sharpness in (30.0, 100.0, 1000.0):
        fenceposts, weights = rendered(sphere, origins, directions, t, sharpness, 0.01)
        for ray, height in enumerate((0.0, 0.3)):
            start = fenceposts[ray, weights[ray].argmax()].item()
            assert start == pytest.approx(3 - math.sqrt(RADIUS**2 - height**2), abs=0.0101)


# --- Up-sampling


def test_samples_at_quantiles_cut_the_density_into_equal_shares():
    t, weights = tensor([[0.0, 1.0, 2.0, 4.0]]), tensor([[1.0, 2.0, 1.0]])
    drawn = samples_at_quantiles(t, weights, 4)
    # Shares .25 .5 .25; the middles of four equal ones lie at .125 .375 .625 .875.
    torch.testing.assert_close(drawn, tensor([[0.5, 1.25, 1.75, 3.0]]), rtol=0, atol=1e-4)


def test_samples_at_quantiles_of_nothing_are_even():
    drawn = samples_at_quantiles(tensor([[0.0, 1.0, 2.0]]), torch.zeros(1, 2).double(), 4)
    torch.testing.assert_close(drawn, tensor([[0.25, 0.75, 1.25, 1.75]]))


def importance_by_loops(t, values, radii, count, sharpness):
    """NeuS's `up_sample` and the inversion of its distribution, for one ray, as loops over numbers."""
    weights, through, slopes = [], 1.0, [0.0]
    for i in range(len(t) - 1):
        slopes.append((values[i + 1] - values[i]) / (t[i + 1] - t[i] + 1e-5))
        slope = min(max(min(slopes[-2], slopes[-1]), -1e3), 0.0)
        if radii[i] >= 1 and radii[i + 1] >= 1:
            slope = 0.0
        middle, half = (values[i] + values[i + 1]) / 2, slope * (t[i + 1] - t[i]) / 2
        before, behind = expit(sharpness * (middle - half)), expit(sharpness * (middle + half))
        alpha = (before - behind + 1e-5) / (before + 1e-5)
        weights.append(alpha * through)
        through *= 1 - alpha + 1e-7
    shares = (np.array(weights) + 1e-5) / np.sum(np.array(weights) + 1e-5)
    cumulative = np.concatenate([[0.0], np.cumsum(shares)])
    return np.interp((np.arange(count) + 0.5) / count, cumulative, t)


@pytest.mark.parametrize("sharpness", [64.0, 512.0])
def test_importance_samples_equal_the_published_ones(sharpness: float):
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(1, 3, (6, 24)), axis=-1)
    values = np.abs(t - 1.9) - 0.3 + 0.1 * rng.standard_normal(t.shape)
    radii = np.abs(t - 2) + rng.uniform(0, 0.3, (6, 1))
    drawn = importance_samples(tensor(t), tensor(values), tensor(radii), 8, sharpness)
    for ray in range(6):
        expected = importance_by_loops(t[ray], values[ray], radii[ray], 8, sharpness)
        np.testing.assert_allclose(drawn[ray], expected, atol=2e-3)


def test_sections_outside_of_the_unit_sphere_have_no_slope():
    """As published: a surface out there is then sampled behind its crossing, where the distance is negative."""
    t = torch.linspace(0, 2, 21, dtype=torch.float64)[None]
    for radius, section in ((0.99, (1.0, 1.1)), (1.0, (1.1, 1.2))):
        drawn = importance_samples(t, 1.05 - t, torch.full_like(t, radius), 10, 512.0)
        assert drawn.min() >= section[0] and drawn.max() <= section[1]
        np.testing.assert_allclose(
            drawn[0], importance_by_loops(t[0].numpy(), 1.05 - t[0].numpy(), [radius] * 21, 10, 512.0), atol=1e-3
        )


def test_upsampling_concentrates_at_the_first_surface():
    heights = [0.0, 0.2, 0.4]
    origins, directions = parallel_rays(heights)
    t = even_samples(*sphere_bounds(origins, directions), 32, perturb=False)
    all_t = upsample(sphere, origins, directions, t, 32, 4)
    assert all_t.shape == (3, 64)
    assert (all_t.diff(dim=-1) >= 0).all()
    for ray, height in enumerate(heights):
        surface = 3 - math.sqrt(RADIUS**2 - height**2)
        assert ((t[ray] - surface).abs() < 0.05).sum() <= 2
        assert ((all_t[ray] - surface).abs() < 0.05).sum() >= 24


def test_upsampling_keeps_the_given_samples_and_spreads_where_there_is_no_surface():
    origins, directions = parallel_rays([0.8])
    t = even_samples(*sphere_bounds(origins, directions), 16, perturb=False)
    all_t = upsample(sphere, origins, directions, t, 16, 4)
    for value in t[0]:
        assert (all_t[0] == value).any()
    assert all_t[0].diff().max() <= t[0].diff().max()
    assert all_t.shape[1] == 32


def test_upsampling_asks_for_each_sample_once_and_without_gradients():
    asked = []

    def record(points: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        asked.append(points.reshape(-1, 3))
        return sphere(points)

    origins, directions = parallel_rays([0.1, 0.2])
    t = even_samples(*sphere_bounds(origins, directions), 16, perturb=False)
    upsample(record, origins, directions, t, 12, 3)
    assert [len(points) for points in asked] == [2 * 16, 2 * 4, 2 * 4]
    together = torch.cat(asked)
    assert len(together.unique(dim=0)) == len(together)


def test_upsampling_doubles_the_sharpness_from_step_to_step(monkeypatch):
    taken = []

    def record(t, distances, radii, count, sharpness):
        taken.append((t.shape[1], count, sharpness))
        # Distances and radii must belong to the sorted samples.
        points = origins[:, None] + directions[:, None] * t[..., None]
        torch.testing.assert_close(distances, sphere(points)[..., 0])
        torch.testing.assert_close(radii, points.norm(dim=-1))
        return importance_samples(t, distances, radii, count, sharpness)

    monkeypatch.setattr("crossnorm_ns.functional.surface_rendering.importance_samples", record)
    origins, directions = parallel_rays([0.1, 0.2])
    t = even_samples(*sphere_bounds(origins, directions), 16, perturb=False)
    upsample(sphere, origins, directions, t, 16, 4)
    assert taken == [(16, 4, 64), (20, 4, 128), (24, 4, 256), (28, 4, 512)]


# --- Outside of the unit sphere


def test_outside_samples_are_even_in_inverse_distance():
    far = tensor([[2.0], [3.0]])
    t = outside_samples(far, 32, 1 / 64, perturb=False)
    assert (t.diff(dim=-1) > 0).all()
    assert (t[:, 0] > far[:, 0] + 1 / 64).all()
    torch.testing.assert_close(t[:, -1], 1000 * far[:, 0] + 1 / 64)
    shares = far / (t - 1 / 64)
    torch.testing.assert_close(shares.diff(dim=-1), shares.diff(dim=-1)[:, :1].expand(-1, 31))


def test_perturbed_outside_samples_stay_sorted_and_behind_the_sphere():
    torch.manual_seed(0)
    far = torch.full((2_000, 1), 2.5, dtype=torch.float64)
    t = outside_samples(far, 8, 1 / 64, perturb=True)
    assert (t.diff(dim=-1) > 0).all()
    assert (t > far + 1 / 64).all()
    assert t.std(dim=0).min() > 0


def test_points_outside_are_directions_and_inverse_distances():
    points = tensor([[0.0, 3.0, 4.0], [0.0, 0.0, -1.0], [0.3, 0.0, 0.4]])
    expected = tensor([[0.0, 0.6, 0.8, 0.2], [0.0, 0.0, -1.0, 1.0], [0.3, 0.0, 0.4, 1.0]])
    torch.testing.assert_close(inverted_sphere(points), expected)


# --- Eikonal loss


def test_eikonal_error_of_a_true_distance_is_zero():
    points = 2 * torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    points.requires_grad_()
    (gradients,) = torch.autograd.grad(sphere(points).sum(), points)
    errors, counts = eikonal_errors(gradients, points.detach())
    torch.testing.assert_close(errors, torch.zeros(3, 1).double(), rtol=0, atol=1e-20)
    assert 0 < counts.min() < 40


def test_eikonal_error_counts_points_within_a_radius_of_1_2_alone():
    points = tensor([[[1.19, 0, 0], [0, 1.21, 0], [0, 0, 0.1]]])
    gradients = tensor([[[3.0, 0, 0], [9.0, 0, 0], [0, 0, 0.5]]])
    errors, counts = eikonal_errors(gradients, points)
    assert (errors.item(), counts.item()) == (4.25, 2.0)
