"""Norms under torch.compile and torch.export."""

import copy

import jaxtyping
import pytest
import torch
from norm_networks import NORMS, buffers, network, points, train


@pytest.fixture
def unchecked_types():
    """Compilers cannot trace the runtime type checks of the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("name", NORMS)
def test_compiled_evaluation_equals_eager(name, unchecked_types):
    model = train(network(name, dtype=torch.float32), dtype=torch.float32).eval()
    x = points(20, dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coupled", [False, True])
def test_compiled_training_has_the_gradients_of_eager(coupled, unchecked_types):
    plain = network("cn-released", coupled_gradients=coupled)
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(2):
        plain(points(20, seed)).square().sum().backward()
        compiled(points(20, seed)).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(buffers(model), buffers(plain))


def test_a_compiled_spatial_gradient_is_still_that_of_the_own_sample(unchecked_types):
    model = network("cn-paper")

    def normals(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]

    expected = normals(points(20))
    torch.testing.assert_close(torch.compile(normals, backend="aot_eager")(points(20)), expected)


@pytest.mark.parametrize("name", NORMS)
def test_exported_evaluation_equals_eager_for_any_number_of_rows(name):
    model = train(network(name, dtype=torch.float32), dtype=torch.float32).eval()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (points(20, dtype=torch.float32),), dynamic_shapes={"input": {0: rows}})
    x = points(33, seed=4, dtype=torch.float32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-6)
