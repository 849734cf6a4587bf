"""Norms that start as the identity keep what initial weights mean."""

import math

import pytest
import torch
from norm_networks import NORMS, network, points
from torch import nn

from crossnorm_ns import CrossNorm, initialize_identity, insert_norms, make_norm
from crossnorm_ns.norms import norms_of


def plain_twin(model):
    """The same network without its norms."""
    return nn.Sequential(*[layer for layer in model if layer not in norms_of(model)])


def test_batch_norm_restores_the_function_of_the_network():
    model, x = network("bn"), points(200)
    initialize_identity(model, x)
    torch.testing.assert_close(model(x), plain_twin(model)(x), rtol=1e-9, atol=1e-9)


def test_the_paper_form_restores_it_up_to_channels_over_rows():
    errors = []
    for rows in (500, 5_000):
        model, x = network("cn-paper"), points(rows)
        initialize_identity(model, x)
        expected = plain_twin(model)(x)
        errors.append(float(((model(x) - expected).norm() / (expected - expected.mean()).norm()).detach()))
    assert errors[1] < 5e-3
    assert errors[1] < errors[0] / 5


def test_the_released_form_comes_nearer_than_without():
    model, x = network("cn-released"), points(500)
    before = (model(x) - plain_twin(model)(x)).norm()
    initialize_identity(model, x)
    assert (model(x) - plain_twin(model)(x)).norm() < 0.3 * before


@pytest.mark.parametrize("name", NORMS)
def test_scale_and_shift_are_those_of_the_first_batch(name):
    torch.manual_seed(0)
    layer = make_norm(name[:2], 4, dtype=torch.float64, variant="paper" if name == "cn-paper" else "released")
    x = 5 + 3 * torch.randn(50, 4, dtype=torch.float64)
    plain = layer(x).detach()  # (x - center) / deviation: weight 1, bias 0
    initialize_identity(layer, x)
    torch.testing.assert_close(layer(x).mean(0), x.mean(0), rtol=0.1, atol=0)
    torch.testing.assert_close(layer(x), plain * layer.weight + layer.bias)


def test_it_works_without_gradients_after_other_batches_and_leaves_the_mode_alone():
    model, x = network("bn"), points(200)
    model(5 + points(50))
    model.eval()
    with torch.no_grad():
        initialize_identity(model, x)
    assert not any(layer.training for layer in norms_of(model))
    torch.testing.assert_close(model.train()(x), plain_twin(model)(x))


def test_a_norm_without_scale_and_shift_is_refused():
    with pytest.raises(ValueError, match="affine=True"):
        initialize_identity(CrossNorm(3, affine=False), torch.zeros(5, 3))


def sphere(norm, identity, rows=10_000):
    """A signed distance network of geometric initialisation (Atzmon and Lipman, SAL), evaluated in the unit cube.

    Returns:
        correlation with |x| - 0.5, the share of points inside, and the mean norm of the gradient.
    """
    torch.manual_seed(0)
    width, layers = 128, []
    for inputs in (3, width, width, width):
        layers += [nn.Linear(inputs, width), nn.Softplus(beta=100)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / width))
        nn.init.zeros_(layer.bias)
    output = nn.Linear(width, 1)
    nn.init.normal_(output.weight, math.sqrt(math.pi / width), 1e-4)
    nn.init.constant_(output.bias, -0.5)
    model = insert_norms(nn.Sequential(*layers, output), norm, variant="paper")
    x = points(rows, dtype=torch.float32).requires_grad_()
    if identity:
        initialize_identity(model, x.detach())
    values = model(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    truth = x.detach().norm(dim=1) - 0.5
    correlation = torch.corrcoef(torch.stack([values[:, 0].detach(), truth]))[0, 1]
    return float(correlation), float((values < 0).float().mean()), float(gradient.detach().norm(dim=1).mean())


@pytest.mark.parametrize("norm, tolerance", [("bn", 1e-3), ("cn", 0.08)])
def test_the_sphere_of_geometric_initialisation_survives(norm, tolerance):
    plain, kept, lost = sphere("none", False), sphere(norm, True), sphere(norm, False)
    assert plain[0] > 0.9 and 0 < plain[1] < 0.5 and plain[2] == pytest.approx(1, abs=0.2)
    assert kept == pytest.approx(plain, rel=tolerance, abs=tolerance)
    assert lost[1] == 0  # without it there is no surface at all
