"""Positional encodings and the Gaussian of a conical frustum: against Monte Carlo, exact moments and quadrature."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossnorm_ns.functional.encodings import (
    conical_frustum_gaussian,
    integrated_positional_encoding,
    positional_encoding,
)

DIRECTIONS = [(0.3, -0.4, -1.0), (0.0, 0.0, 2.5), (-0.7, 0.7, 0.1)]
"""Directions of other lengths than 1."""


def gaussian(origin, direction, start, end, radius, dtype=torch.float64):
    tensors = [torch.tensor(value, dtype=dtype) for value in (origin, direction, [start], [end], [radius])]
    return [moment.double().numpy() for moment in conical_frustum_gaussian(*tensors)]


def exact_moments(start: float, end: float, radius: float) -> tuple[float, float, float]:
    """E[t], Var[t] and the variance across of a cone whose cross-section grows as t squared, in rational numbers."""
    low, high, wide = Fraction(start), Fraction(end), Fraction(radius)

    def integral(power: int) -> Fraction:
        return (high ** (power + 1) - low ** (power + 1)) / (power + 1)

    mean, mean_square = (integral(power) / integral(2) for power in (3, 4))
    return float(mean), float(mean_square - mean**2), float(wide**2 / 4 * mean_square)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_frustum_gaussian_matches_points_drawn_uniformly_from_the_frustum(direction: tuple[float, float, float]):
    origin, start, end, radius, count = np.array([1.0, -2.0, 0.5]), 0.8, 2.4, 0.6, 400_000
    rng = np.random.default_rng(0)
    axis = np.array(direction)
    side = np.cross(axis, [0.3, 0.5, 0.8])
    side /= np.linalg.norm(side)
    other = np.cross(axis / np.linalg.norm(axis), side)
    # Box of (t, two coordinates across), keeping what lies inside the cone.
    t = rng.uniform(start, end, 4 * count)
    across = rng.uniform(-radius * end, radius * end, (4 * count, 2))
    inside = np.linalg.norm(across, axis=-1) < radius * t
    t, across = t[inside], across[inside]
    points = origin + t[:, None] * axis + across[:, :1] * side + across[:, 1:] * other

    mean, variance = gaussian(origin.tolist(), direction, start, end, radius)

    error = 6 / np.sqrt(len(points))
    np.testing.assert_allclose(mean, points.mean(0), atol=error * points.std(0).max())
    np.testing.assert_allclose(variance, points.var(0), rtol=error)


@given(
    start=st.floats(0, 10),
    width=st.floats(1e-3, 10),
    radius=st.floats(1e-4, 1),
    direction=st.tuples(*[st.floats(-3, 3)] * 3).filter(lambda d: np.linalg.norm(d) > 1e-2),
)
@settings(max_examples=200, deadline=None)
def test_frustum_gaussian_has_the_exact_moments(start, width, radius, direction):
    end = start + width
    t_mean, t_var, r_var = exact_moments(start, end, radius)
    axis = np.array(direction)
    across = np.eye(3) - np.outer(axis, axis) / (axis @ axis)

    mean, variance = gaussian((0.0, 0.0, 0.0), direction, start, end, radius)

    np.testing.assert_allclose(mean, t_mean * axis, rtol=1e-9)
    np.testing.assert_allclose(variance, t_var * axis**2 + r_var * np.diag(across), rtol=1e-7, atol=1e-15)


def test_frustum_gaussian_is_accurate_in_single_precision_for_the_thin_frustums_of_a_render():
    """The published sampling at 800x800: the direct formulas lose all digits here."""
    radius = 2 / np.sqrt(12) / 1111
    for start, end in pairwise(np.linspace(2, 6, 129, dtype=np.float32).tolist()):
        t_mean, t_var, r_var = exact_moments(start, end, float(np.float32(radius)))
        mean, variance = gaussian((0.0, 0.0, 0.0), (0.0, 0.0, -1.0), start, end, radius, torch.float32)
        np.testing.assert_allclose(mean, [0, 0, -t_mean], rtol=1e-6)
        np.testing.assert_allclose(variance, [r_var, r_var, t_var], rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "radius", "direction"),
    [(0.0, 0.0, 0.1, (0.0, 0.0, -1.0)), (2.0, 2.0, 0.0, (0.0, 0.0, -1.0)), (2.0, 3.0, 0.1, (0.0, 0.0, 0.0))],
    ids=["at the apex", "flat", "no direction"],
)
def test_frustum_of_zero_size_has_a_finite_gaussian_with_finite_gradients(start, end, radius, direction):
    inputs = [torch.tensor(v, requires_grad=True) for v in ((0.0, 0.0, 0.0), direction, [start], [end], [radius])]
    moments = torch.cat(conical_frustum_gaussian(*inputs))
    moments.sum().backward()
    assert torch.isfinite(moments).all()
    assert (moments[3:] >= 0).all()
    assert all(torch.isfinite(value.grad).all() for value in inputs if value.grad is not None)


def test_positional_encoding_lists_all_sines_by_degree_then_all_cosines():
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    sines = [np.sin(2**degree * value) for degree in range(4) for value in x.tolist()]
    cosines = [np.cos(2**degree * value) for degree in range(4) for value in x.tolist()]
    np.testing.assert_allclose(positional_encoding(x, 4), sines + cosines, rtol=1e-14)
    with_identity = positional_encoding(x, 4, include_identity=True)
    np.testing.assert_allclose(with_identity, x.tolist() + sines + cosines, rtol=1e-14)


def test_integrated_encoding_without_variance_is_the_positional_encoding():
    mean = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    integrated = integrated_positional_encoding(mean, torch.zeros_like(mean), 16)
    assert integrated.shape == (5, 7, 96)
    torch.testing.assert_close(integrated, positional_encoding(mean, 16), rtol=0, atol=0)


def test_integrated_encoding_is_the_expectation_over_the_gaussian_by_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    weights /= weights.sum()
    mean = torch.tensor([[0.4, -0.9, 1.3], [2.0, 0.0, -3.0]], dtype=torch.float64)
    variance = torch.tensor([[0.02, 0.3, 0.001], [1.0, 0.5, 0.09]], dtype=torch.float64)
    samples = mean[..., None] + variance.sqrt()[..., None] * torch.from_numpy(nodes)
    encoded = positional_encoding(samples.movedim(-1, 0), 4)
    expected = torch.einsum("n,n...->...", torch.from_numpy(weights), encoded)
    torch.testing.assert_close(integrated_positional_encoding(mean, variance, 4), expected, rtol=0, atol=1e-12)


def test_integrated_encoding_is_the_expectation_over_the_gaussian_by_monte_carlo():
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.4, -0.9, 1.3], dtype=torch.float64)
    variance = torch.tensor([0.02, 0.3, 0.001], dtype=torch.float64)
    draws = mean + variance.sqrt() * torch.randn(200_000, 3, dtype=torch.float64, generator=generator)
    expected = positional_encoding(draws, 6).mean(0)
    torch.testing.assert_close(integrated_positional_encoding(mean, variance, 6), expected, rtol=0, atol=0.01)


def test_integrated_encoding_fades_where_the_frustum_is_larger_than_the_wavelength():
    mean, variance = torch.full((1, 3), 0.7), torch.full((1, 3), 0.05**2)
    sines, cosines = integrated_positional_encoding(mean, variance, 16).reshape(2, 16, 3)
    amplitude = (sines.square() + cosines.square()).sqrt()[:, 0]
    assert amplitude[0] == pytest.approx(1, abs=2e-3)
    assert (amplitude[:-1] >= amplitude[1:]).all()
    assert amplitude[8:].max() < 1e-30
