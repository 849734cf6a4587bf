"""Sampling along rays and alpha compositing: against hand-computed numbers, histograms, loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from crossnorm_ns.functional.rendering import (
    blur_weights,
    composite,
    resample_fenceposts,
    stratified_fenceposts,
    volume_rendering_weights,
)

DOUBLE = torch.zeros((), dtype=torch.float64)


def test_fenceposts_are_evenly_spaced_where_they_are_not_perturbed():
    t = stratified_fenceposts(2.0, 6.0, 3, 4, perturb=False, like=DOUBLE)
    torch.testing.assert_close(t, torch.tensor([[2.0, 3, 4, 5, 6]] * 3, dtype=torch.float64), rtol=0, atol=0)


def test_perturbed_fenceposts_fill_their_strata():
    """A stratum reaches from half-way to the fencepost before to half-way to the next; the ends have half of one."""
    torch.manual_seed(0)
    t = stratified_fenceposts(2.0, 6.0, 20_000, 4, perturb=True, like=DOUBLE)
    lower, upper = torch.tensor([2, 2.5, 3.5, 4.5, 5.5]).double(), torch.tensor([2.5, 3.5, 4.5, 5.5, 6]).double()
    assert (t >= lower).all()
    assert (t <= upper).all()
    assert (t.diff() >= 0).all()
    shares = (t - lower) / (upper - lower)
    for share in shares.T:
        counts = np.histogram(share, bins=10, range=(0, 1))[0] / len(t)
        np.testing.assert_allclose(counts, 0.1, atol=0.01)
    assert np.abs(np.corrcoef(shares.T) - np.eye(5)).max() < 0.05, "strata must be drawn independently"


def test_blur_takes_the_maximum_and_then_the_average_of_neighbours():
    weights = torch.tensor([[0.0, 1.0, 0.5, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2], [0.3, 0.0, 0.0, 0.0, 0.4]])
    # Maxima over the six gaps, ends repeated: 0 1 1 .5 0 0; all .2; .3 .3 0 0 .4 .4. Then averages of neighbours.
    expected = [[0.5, 1.0, 0.75, 0.25, 0.0], [0.2] * 5, [0.3, 0.15, 0.0, 0.2, 0.4]]
    torch.testing.assert_close(blur_weights(weights, 0.01), torch.tensor(expected) + 0.01)


def test_blur_is_an_upper_envelope():
    weights = torch.rand(50, 24, generator=torch.Generator().manual_seed(0))
    assert (blur_weights(weights, 0.0) >= weights).all()


def test_resampling_without_perturbation_takes_even_quantiles():
    t = torch.tensor([[0.0, 1.0, 2.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64)
    # The cumulative distribution is 0 .25 .75 1 at the fenceposts.
    for count, expected in ((5, [0, 1, 1.5, 2, 4]), (3, [0, 1.5, 4]), (9, [0, 0.5, 1, 1.25, 1.5, 1.75, 2, 3, 4])):
        drawn = resample_fenceposts(t, weights, count, perturb=False)
        torch.testing.assert_close(drawn, torch.tensor([expected]).double(), rtol=0, atol=1e-12)


def test_resampling_follows_the_histogram_of_the_weights():
    torch.manual_seed(0)
    t = torch.tensor([2.0, 2.5, 3.5, 4.0, 6.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 5.0, 0.0, 2.0], dtype=torch.float64)
    drawn = resample_fenceposts(t.expand(2_000, -1), weights.expand(2_000, -1), 37, perturb=True)
    assert (drawn.diff() >= 0).all()
    # Bins of a quarter: within an interval the density is constant.
    edges = np.arange(2, 6.01, 0.25)
    density = np.repeat([1 / 8, 1 / 8, 5 / 8, 5 / 8, 0, 2 / 8], [1, 1, 2, 2, 2, 8])
    expected = density / np.repeat([2, 2, 4, 4, 2, 8], [1, 1, 2, 2, 2, 8])
    counts = np.histogram(drawn.flatten(), bins=edges)[0] / drawn.numel()
    np.testing.assert_allclose(counts, expected, atol=0.004)
    assert counts[6] == counts[7] == 0, "intervals without weight get nothing"


def test_resampling_begins_where_the_weight_begins():
    t = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    drawn = resample_fenceposts(t, torch.tensor([[0.0, 1.0, 0.0]]).double(), 3, perturb=False)
    torch.testing.assert_close(drawn, torch.tensor([[1.0, 1.5, 2.0]]).double(), rtol=0, atol=1e-12)


def test_perturbed_resampling_draws_one_fencepost_from_each_stratum_of_the_distribution():
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 9, dtype=torch.float64).expand(5_000, -1)
    shares = resample_fenceposts(t, torch.ones(5_000, 8).double(), 16, perturb=True) * 16 - torch.arange(16)
    assert shares.min() >= 0
    assert shares.max() < 1
    np.testing.assert_allclose(np.histogram(shares, bins=10, range=(0, 1))[0] / shares.numel(), 0.1, atol=0.005)
    assert np.abs(np.corrcoef(shares.T) - np.eye(16)).max() < 0.08, "strata must be drawn independently"


@pytest.mark.parametrize("weight", [0.0, 1e-9], ids=["zero", "tiny"])
def test_weights_that_vanish_resample_evenly(weight: float):
    t = torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0]])
    drawn = resample_fenceposts(t, torch.full((1, 4), weight), 5, perturb=False)
    torch.testing.assert_close(drawn, t)
    drawn = resample_fenceposts(t, torch.tensor([[weight, 0, 0, 0]]), 5, perturb=True)
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("perturb", [False, True])
def test_resampling_stays_within_the_ray_and_sorted_in_single_precision(perturb: bool):
    torch.manual_seed(0)
    t = stratified_fenceposts(2.0, 6.0, 4_000, 128, perturb=True, like=torch.zeros(()))
    weights = torch.rand(4_000, 128) ** 40  # nearly all of it in a few intervals
    drawn = resample_fenceposts(t, weights, 129, perturb)
    assert (drawn >= t[:, :1]).all()
    assert (drawn <= t[:, -1:]).all()
    assert (drawn.diff() >= 0).all()


def test_compositing_equals_an_explicit_loop():
    generator = torch.Generator().manual_seed(0)
    rays, samples, background = 6, 9, 0.4
    density = 0.1 * torch.rand(rays, samples, generator=generator, dtype=torch.float64)
    colors = torch.rand(rays, samples, 3, generator=generator, dtype=torch.float64)
    t = (2 + torch.rand(rays, samples + 1, generator=generator, dtype=torch.float64)).cumsum(-1)
    norms = 1 + torch.rand(rays, 1, generator=generator, dtype=torch.float64)

    weights = volume_rendering_weights(density, t, norms)
    color, accumulation, depth = composite(weights, colors, t, background)

    for ray in range(rays):
        through, total, seen, where = 1.0, 0.0, np.zeros(3), 0.0
        for sample in range(samples):
            start, end = t[ray, sample].item(), t[ray, sample + 1].item()
            alpha = 1 - math.exp(-density[ray, sample].item() * (end - start) * norms[ray].item())
            assert weights[ray, sample].item() == pytest.approx(through * alpha, rel=1e-12)
            seen += through * alpha * colors[ray, sample].numpy()
            where += through * alpha * (start + end) / 2
            total += through * alpha
            through *= 1 - alpha
        np.testing.assert_allclose(color[ray], seen + through * background, rtol=1e-12)
        assert accumulation[ray].item() == pytest.approx(total, rel=1e-12)
        assert depth[ray].item() == pytest.approx(where / total, rel=1e-12)


def test_homogeneous_medium_has_its_closed_form():
    density, near, far, norm = 0.7, 2.0, 6.0, 1.3
    t = torch.linspace(near, far, 4_001, dtype=torch.float64)[None]
    own = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    densities, norms = t.new_full((1, 4_000), density), t.new_full((1, 1), norm)
    weights = volume_rendering_weights(densities, t, norms)
    color, accumulation, depth = composite(weights, own.expand(1, 4_000, 3), t, background=1.0)

    rate = density * norm  # per unit of t
    opacity = 1 - math.exp(-rate * (far - near))
    expected_t = near + 1 / rate - (far - near) * (1 - opacity) / opacity
    assert accumulation.item() == pytest.approx(opacity, rel=1e-9)
    assert depth.item() == pytest.approx(expected_t, rel=1e-6)
    torch.testing.assert_close(color[0], own * opacity + (1 - opacity), rtol=1e-9, atol=0)


def test_direction_norm_turns_lengths_of_t_into_lengths_of_the_world():
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(4, 8, generator=generator, dtype=torch.float64)
    t = torch.linspace(2, 6, 9, dtype=torch.float64).expand(4, -1)
    twice, once = torch.full((4, 1), 2.0, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    weights = volume_rendering_weights(density, t, twice)
    torch.testing.assert_close(weights, volume_rendering_weights(2 * density, t, once))
    torch.testing.assert_close(weights, volume_rendering_weights(density, 2 * t, once))
    assert not torch.allclose(weights, volume_rendering_weights(density, t, once))


def test_thin_air_keeps_its_weight_in_single_precision():
    """1 - exp(-x) would round to zero here."""
    weights = volume_rendering_weights(torch.full((1, 4), 1e-9), torch.arange(5.0)[None], torch.ones(1, 1))
    torch.testing.assert_close(weights, torch.full((1, 4), 1e-9), rtol=1e-5, atol=0)


def test_empty_ray_shows_the_background_and_ends_far_away():
    t = torch.tensor([[2.0, 3.0, 6.0]])
    density = torch.zeros(1, 2, requires_grad=True)
    weights = volume_rendering_weights(density, t, torch.ones(1, 1))
    color, accumulation, depth = composite(weights, torch.zeros(1, 2, 3), t, background=1.0)
    color.sum().backward()
    assert color.tolist() == [[1, 1, 1]]
    assert accumulation.item() == 0
    assert depth.item() == 6
    assert density.grad is not None
    assert torch.isfinite(density.grad).all()


def test_wall_hides_what_lies_behind_it():
    t = torch.tensor([[2.0, 3.0, 4.0, 6.0]])
    weights = volume_rendering_weights(torch.tensor([[0.0, 1e6, 1e6]]), t, torch.ones(1, 1))
    colors = torch.eye(3)[None]
    color, accumulation, depth = composite(weights, colors, t, background=1.0)
    assert color.tolist() == [[0, 1, 0]]
    assert accumulation.item() == 1
    assert depth.item() == 3.5
