"""Laplace's density and error-bounded samples against closed forms, dense sums and brute force."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from crossnorm_ns.functional.laplace_rendering import (
    error_bounded_samples,
    laplace_density,
    opacity_error_bound,
    section_distance,
    sufficient_beta,
)

torch.set_default_dtype(torch.float32)
RADIUS = 0.5


def rays_at_a_sphere(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Some hit, some graze, some miss."""
    generator = torch.Generator().manual_seed(seed)
    origins = 1.5 * functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    aims = 0.45 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return origins, functional.normalize(aims - origins, dim=-1)


def sphere(points: Tensor) -> Tensor:
    return points.norm(dim=-1, keepdim=True) - RADIUS


def along(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    return sphere(origins[:, None] + directions[:, None] * t[..., None])[..., 0]


def exact_opacity(origins: Tensor, directions: Tensor, near: float, ends: Tensor, beta: float) -> Tensor:
    """Of each ray from near to each of `ends`, by the trapezoidal rule over 20,000 sections."""
    dense = torch.linspace(near, float(ends.max()), 20_001, dtype=torch.float64)
    density = torch.from_numpy(
        stats.laplace.cdf(-along(origins, directions, dense.expand(len(origins), -1)).numpy(), scale=beta) / beta
    )
    depth = functional.pad(((density[:, 1:] + density[:, :-1]) / 2).cumsum(-1) * dense.diff()[0], (1, 0))
    index = ((ends - near) / dense.diff()[0]).round().long()
    return -torch.expm1(-depth.gather(-1, index))


def even(count: int, rays: int, near: float = 0.5, far: float = 2.5) -> Tensor:
    return torch.linspace(near, far, count, dtype=torch.float64).expand(rays, -1)


# --- Density


@pytest.mark.parametrize("beta", [1e-3, 0.1, 2.0])
def test_density_is_the_distribution_function_of_laplaces_law(beta: float):
    distances = torch.linspace(-3, 3, 301, dtype=torch.float64)
    expected = stats.laplace.cdf(-distances.numpy(), scale=beta) / beta
    density = laplace_density(distances, torch.tensor(beta, dtype=torch.float64))
    torch.testing.assert_close(density, torch.from_numpy(expected), rtol=1e-12, atol=0)


def test_density_has_its_limits_inside_outside_and_on_the_surface():
    beta = torch.tensor(0.01)
    density = laplace_density(torch.tensor([-10.0, 0.0, 10.0, -math.inf, math.inf]), beta)
    assert density.tolist() == pytest.approx([100, 50, 0, 100, 0])


def test_gradient_of_the_density_agrees_with_finite_differences():
    distances = torch.tensor([-0.3, -0.01, 0.02, 0.4], dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(laplace_density, (distances, beta))


# --- Bounds


def test_sections_are_as_far_from_a_sphere_as_the_bound_says():
    origins, directions = rays_at_a_sphere(60)
    t = even(12, 60)
    bound = section_distance(along(origins, directions, t), t)
    inner = t[:, :-1, None] + t.diff(dim=-1)[..., None] * torch.linspace(0, 1, 200, dtype=torch.float64)
    nearest = along(origins, directions, inner.flatten(1)).view(inner.shape).abs().amin(-1)
    assert (bound <= nearest + 1e-9).all()
    assert (bound > 0.5 * nearest).double().mean() > 0.7, "a bound of 0 would hold as well"


@pytest.mark.parametrize(
    ("length", "start", "end", "expected"),
    [(1, 1, 1, math.sqrt(0.75)), (1, 0.2, 1.5, 0.2), (1, 1.5, 0.2, 0.2), (1, 0.4, 0.5, 0), (1, -0.4, 1, 0)],
)
def test_distance_bound_is_where_the_balls_around_both_ends_meet(length, start, end, expected):
    bound = section_distance(torch.tensor([[float(start), end]]), torch.tensor([[2.0, 2.0 + length]]))
    assert bound.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("count", [9, 33])
def test_opacity_of_the_riemann_sum_errs_by_no_more_than_the_bound(beta: float, count: int):
    origins, directions = rays_at_a_sphere(80)
    t = even(count, 80)
    distances = along(origins, directions, t)
    density = torch.from_numpy(stats.laplace.cdf(-distances.numpy(), scale=beta) / beta)
    sums = -torch.expm1(-(density[:, :-1] * t.diff(dim=-1)).cumsum(-1))
    error = (sums - exact_opacity(origins, directions, 0.5, t[:, 1:], beta)).abs()
    bound = opacity_error_bound(distances, t, torch.full((80, 1), beta, dtype=torch.float64))
    assert (error <= bound + 1e-6).all()
    if beta == 0.6:
        assert bound.max() < 1, "no more than any opacity errs by says nothing"


def test_sufficient_beta_keeps_the_bound_for_any_distances():
    t = even(30, 50)
    beta = sufficient_beta(t, 0.1)
    worst = opacity_error_bound(torch.zeros_like(t), t, beta)
    hit = opacity_error_bound(along(*rays_at_a_sphere(50), t), t, beta)
    assert worst.max() <= 0.1
    assert hit.max() <= 0.1
    lengths = torch.tensor([[0.0, 0.1, 0.4]], dtype=torch.float64)
    assert sufficient_beta(lengths, 0.1).item() == pytest.approx(math.sqrt((0.01 + 0.09) / (4 * math.log(1.1))))


# --- Samples


def sampled(rays: slice = slice(None), beta: float = 0.01, count: int = 40, **options) -> tuple[Tensor, Tensor]:
    """Samples of rays at a sphere, and how many points each ray asked for."""
    origins, directions = (values[rays] for values in rays_at_a_sphere(count))
    asked = []

    def signed_distance(points: Tensor) -> Tensor:
        asked.append(len(points))
        return sphere(points)

    width, begin = torch.tensor(beta, dtype=torch.float64), even(32, len(origins))
    t = error_bounded_samples(signed_distance, origins, directions, begin, width, 64, 8, **options)
    return t, torch.tensor(asked)


def test_samples_are_sorted_between_the_ends_and_hold_both():
    t, _ = sampled()
    assert t.shape == (40, 64 + 8 + 2)
    assert (t.diff(dim=-1) >= 0).all()
    assert (t[:, 0] == 0.5).all() and (t[:, -1] == 2.5).all()


@pytest.mark.parametrize("perturb", [False, True])
def test_samples_gather_where_a_ray_meets_the_surface(perturb: bool):
    t, _ = sampled(beta=0.005, perturb=perturb)
    origins, directions = rays_at_a_sphere(40)
    middle = -(origins * directions).sum(-1)
    below = RADIUS**2 - (origins + middle[:, None] * directions).square().sum(-1)
    hit = below > 0.01
    assert hit.sum() > 10
    meets = middle[hit] - below[hit].sqrt()
    assert ((t[hit] - meets[:, None]).abs() < 0.03).double().mean() > 0.5


def test_opacity_at_the_samples_is_nearly_exact():
    """Few even samples err by far more than the tolerance."""
    origins, directions = rays_at_a_sphere(40)
    beta = 0.01

    def error_of(t: Tensor) -> float:
        density = laplace_density(along(origins, directions, t), torch.tensor(beta, dtype=torch.float64))
        sums = -torch.expm1(-(density[:, :-1] * t.diff(dim=-1)).cumsum(-1))
        return float((sums - exact_opacity(origins, directions, 0.5, t[:, 1:], beta)).abs().max())

    assert error_of(even(74, 40)) > 0.4
    assert error_of(sampled(beta=beta)[0]) < 0.2


def test_samples_of_a_ray_do_not_depend_on_the_rays_beside_it():
    whole, _ = sampled()
    alone = torch.cat([sampled(slice(i, i + 1))[0] for i in range(40)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-9)


def test_rays_whose_error_is_within_the_tolerance_ask_no_more():
    _, wide = sampled(beta=0.5)
    _, narrow = sampled(beta=0.003)
    assert wide.tolist() == [40], "one pass is enough"
    assert len(narrow) > 1 and narrow[1] < 40
    assert (narrow.diff() <= 0).all()
    assert len(sampled(beta=1e-5, max_iterations=3)[1]) == 3
