"""Gradients of networks with norms: of a loss, of the output in space, and of a loss on the gradient in space.

The oracles are finite differences of a network that is written out from the formulas (`textbook_network`).
"""

import pytest
import torch
from norm_networks import NORMS, WITH_COLUMNS, batch_statistics, network, points, textbook_network

STEP = 1e-5


def frozen_statistics(name, parameters, x, statistics=batch_statistics):
    """The statistics of each hidden layer on the batch x, as a function that gives these constants for any points."""
    found = []

    def collect(layer, features):
        found.append(statistics(layer, features))
        return found[-1]

    textbook_network(name, parameters, x, collect)
    constants = [tuple(torch.as_tensor(value).detach() for value in each) for each in found]
    return lambda layer, features: constants[layer]


def spatial_gradient(model, x, **options):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x, **options)[0]


def differences_in_space(function, x):
    """Gradient of a function of one sample by central differences, for all samples at once."""
    columns = []
    for axis in torch.eye(3, dtype=x.dtype):
        columns.append((function(x + STEP * axis) - function(x - STEP * axis)) / (2 * STEP))
    return torch.cat(columns, dim=1)


def differences_in_parameters(function, parameters):
    """Gradient of function(parameters) by central differences, entry by entry."""
    gradients = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter)
        for i in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                moved = parameter.clone()
                moved.view(-1)[i] += sign * STEP
                values.append(function([moved if p is parameter else p for p in parameters]))
            gradient.view(-1)[i] = (values[0] - values[1]) / (2 * STEP)
        gradients.append(gradient)
    return gradients


def eikonal_loss(gradients):
    return (gradients.norm(dim=1) - 1).square().mean()


def plain_parameters(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", NORMS)
def test_a_network_in_training_equals_the_formulas(name):
    model, x = network(name), points(20)
    torch.testing.assert_close(model(x), textbook_network(name, list(model.parameters()), x, batch_statistics))


@pytest.mark.parametrize("name", NORMS)
def test_spatial_gradient_in_training_is_that_of_the_own_sample(name):
    model, x = network(name), points(20)
    parameters = plain_parameters(model)
    statistics = frozen_statistics(name, parameters, x)
    expected = differences_in_space(lambda moved: textbook_network(name, parameters, moved, statistics), x)
    torch.testing.assert_close(spatial_gradient(model, x, create_graph=True), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NORMS)
def test_spatial_gradient_in_training_equals_that_of_evaluation(name):
    model, x = network(name, momentum=1.0), points(20)  # evaluation then uses the statistics of the last batch
    in_training = spatial_gradient(model, x, create_graph=True)
    torch.testing.assert_close(in_training, spatial_gradient(model.eval(), x))


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_coupled_gradients_hold_the_terms_between_samples(name):
    model, x = network(name, coupled_gradients=True), points(20)
    gated = spatial_gradient(network(name), x, create_graph=True)
    coupled = spatial_gradient(model, x, create_graph=True)
    assert (coupled - gated).norm() > 0.05 * gated.norm()

    def output_sum(moved):
        return float(model(moved).detach().sum())

    for sample in (0, 13):
        for axis in range(3):
            move = torch.zeros_like(x)
            move[sample, axis] = STEP
            difference = (output_sum(x + move) - output_sum(x - move)) / (2 * STEP)
            assert difference == pytest.approx(float(coupled[sample, axis].detach()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", NORMS)
def test_parameter_gradients_of_a_loss_see_the_statistics_move(name):
    model, x = network(name), points(12)
    model(x).sin().sum().backward()
    expected = differences_in_parameters(
        lambda parameters: textbook_network(name, parameters, x, batch_statistics).sin().sum(), plain_parameters(model)
    )
    for parameter, difference in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NORMS)
def test_parameter_gradients_of_an_eikonal_loss_see_the_statistics_move_but_space_does_not(name):
    """Statistics follow the parameters, and are constant while the spatial gradient is taken."""
    model, x = network(name), points(12)

    def loss(parameters):
        statistics = frozen_statistics(name, parameters, x)
        moved = x.clone().requires_grad_()
        values = textbook_network(name, parameters, moved, statistics)
        (gradients,) = torch.autograd.grad(values.sum(), moved)
        return eikonal_loss(gradients) + values.detach().sin().mean()

    moved = x.clone().requires_grad_()
    values = model(moved)
    (gradients,) = torch.autograd.grad(values.sum(), moved, create_graph=True)
    (eikonal_loss(gradients) + values.sin().mean()).backward()
    expected = differences_in_parameters(loss, plain_parameters(model))
    assert max(float(difference.abs().max()) for difference in expected) > 0.1
    for parameter, difference in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, difference, rtol=1e-5, atol=1e-7)


def renormalised_statistics(model, name, x):
    """Running statistics that move as those of the batch do when the parameters leave those of the model."""
    running = [tuple(t.clone() for t in model[i].domains["default"].running()) for i in (1, 4)]
    here = []

    def note(layer, features):
        here.append(batch_statistics(layer, features))
        return running[layer]

    textbook_network(name, plain_parameters(model), x, note)

    def statistics(layer, features):
        (rows, mean, var), (_, mean_here, var_here) = running[layer], here[layer]
        _, batch_mean, batch_var = batch_statistics(layer, features)
        return rows, mean + (batch_mean - mean_here), var + (batch_var - var_here)

    return statistics


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_renormalised_training_has_the_values_of_the_running_statistics_and_the_gradients_of_the_batch(name):
    model = network(name, statistics="renorm")
    for seed in range(3):
        model(points(15, seed))
    x = points(12, seed=9)
    moved = x.clone().requires_grad_()
    values = model(moved)
    (gradients,) = torch.autograd.grad(values.sum(), moved, create_graph=True)
    (eikonal_loss(gradients) + values.sin().mean()).backward()

    torch.testing.assert_close(values, model.eval()(x))
    torch.testing.assert_close(gradients, spatial_gradient(model, x))

    statistics = renormalised_statistics(model, name, x)

    def loss(parameters):
        constants = frozen_statistics(name, parameters, x, statistics)
        moved = x.clone().requires_grad_()
        values = textbook_network(name, parameters, moved, constants)
        (gradients,) = torch.autograd.grad(values.sum(), moved)
        return eikonal_loss(gradients) + values.detach().sin().mean()

    expected = differences_in_parameters(loss, plain_parameters(model))
    for parameter, difference in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NORMS)
def test_a_loss_on_the_gradient_in_evaluation_equals_finite_differences(name):
    model, x = network(name, momentum=1.0), points(12)
    model(x)
    model.eval()
    statistics = frozen_statistics(name, plain_parameters(model), x)

    def loss(parameters):
        moved = x.clone().requires_grad_()
        (gradients,) = torch.autograd.grad(textbook_network(name, parameters, moved, statistics).sum(), moved)
        return eikonal_loss(gradients)

    eikonal_loss(spatial_gradient(model, x, create_graph=True)).backward()
    expected = differences_in_parameters(loss, plain_parameters(model))[:-1]  # the last bias plays no part
    for parameter, difference in zip(model.parameters(), expected, strict=False):
        torch.testing.assert_close(parameter.grad, difference, rtol=1e-5, atol=1e-7)
