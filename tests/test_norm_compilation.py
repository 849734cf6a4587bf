"""Norms under torch.compile and torch.export."""

import copy

import jaxtyping
import pytest
import torch
from norm_networks import NORMS, buffers, network, points, train

from crossnorm_ns import kernels


@pytest.fixture
def unchecked_types():
    """Compilers cannot trace the runtime type checks of the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
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


@pytest.mark.parametrize("name", ["cn-released", "cn-paper"])
def test_second_derivatives_of_a_compiled_evaluation_are_those_of_eager(name, unchecked_types):
    model = train(network(name)).eval()

    def second(evaluate):
        x = points(20).requires_grad_()
        (normals,) = torch.autograd.grad(evaluate(x).sum(), x, create_graph=True)
        return torch.autograd.grad(normals.square().sum(), list(model.parameters())[:4])

    torch.testing.assert_close(second(torch.compile(model, backend="eager")), second(model))


def test_a_compiled_evaluation_keeps_the_kernel_as_one_operator(unchecked_types):
    if not kernels.supports(torch.zeros(1, 1)):
        pytest.skip("no C++ compiler: there is no kernel")
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = train(network("cn-released", dtype=torch.float32), dtype=torch.float32).eval()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(points(20, dtype=torch.float32))
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("crossnorm_ns.normalize" in name for name in called) == 2


@pytest.mark.parametrize("name", NORMS)
def test_exported_evaluation_equals_eager_for_any_number_of_rows(name):
    model = train(network(name, dtype=torch.float32), dtype=torch.float32).eval()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (points(20, dtype=torch.float32),), dynamic_shapes={"input": {0: rows}})
    x = points(33, seed=4, dtype=torch.float32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-6)
