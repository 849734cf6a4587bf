"""The neural tangent kernel: closed forms, finite differences, and what its eigenvalues predict."""

import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn

from crossnorm_ns.networks import make_network
from crossnorm_ns.norms import norms_of
from crossnorm_ns.representation.commands_analysis import NTKCommand
from crossnorm_ns.representation.eigenvalues import (
    describe,
    fit_order,
    growth_with_samples,
    growth_with_width,
    log_edges,
    log_histogram,
    mean_field_order,
    points_on_a_line,
    statistics_at_initialisation,
)
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.initialization import initial_network
from crossnorm_ns.representation.kernel_analysis import growths, kernels_in_training
from crossnorm_ns.representation.ntk import (
    jacobian_blocks,
    kernel_eigenvalues,
    neural_tangent_kernel,
    predict_residuals,
)
from crossnorm_ns.representation.spectrum import sum_of_sines

COUPLED = ["relu+bn", "pe+gn", "relu+cn", "pe+cn-paper"]
ALONE = ["relu", "pe+ln", "siren", "mfn", "wire", "finer", "gaussian"]


def network(method, in_dim=2, out_dim=1, hidden=(6, 5), seed=0, **options):
    torch.manual_seed(seed)
    made = make_network(method, in_dim, out_dim, hidden, **options)
    for norm in norms_of(made):  # scales and shifts away from 1 and 0
        for parameter in norm.parameters():
            parameter.data += 0.3 * torch.rand_like(parameter)
    return made.double()


def points(number, in_dim=2, seed=0):
    return 2 * torch.rand(number, in_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def jacobian(model, x, **options):
    return torch.cat(list(jacobian_blocks(model, x, **options)), dim=1)


def jacobian_by_differences(model, x, step=1e-6):
    """Central differences of the whole batch's outputs in train mode, one parameter after the other."""
    columns = []
    with torch.enable_grad():  # norms use the statistics of the batch at hand only then
        for parameter in model.parameters():
            flat = parameter.data.view(-1)
            for i in range(flat.numel()):
                value = float(flat[i])
                sides = []
                for shifted in (value + step, value - step):
                    flat[i] = shifted
                    sides.append(model(x).detach().flatten())
                flat[i] = value
                columns.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("method", [*COUPLED, "pe+ln", "wire", "mfn"])
def test_the_jacobian_is_that_of_the_whole_batch(method):
    options = {"num_frequencies": 2} if method.startswith("pe") else {}
    model, x = network(method, out_dim=2, **options), points(7)
    torch.testing.assert_close(jacobian(model, x), jacobian_by_differences(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", COUPLED)
def test_samples_are_coupled_through_batch_statistics(method):
    """Taking the gradient of each sample in a batch of its own gives another kernel."""
    model, x = network(method), points(9)
    alone = torch.cat([jacobian(model, point[None]) for point in x])
    assert not torch.allclose(jacobian(model, x), alone, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", [*COUPLED, *ALONE])
def test_rows_are_the_gradients_that_training_sees(method):
    model, x = network(method, out_dim=2), points(9)
    rows = [torch.autograd.grad(y, list(model.parameters()), retain_graph=True) for y in model(x).flatten()]
    expected = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    torch.testing.assert_close(jacobian(model, x), expected)


def test_one_hidden_layer_has_the_kernel_of_the_closed_form():
    """f(x) = sum_k v_k relu(w_k . x + b_k) + c, with all derivatives written out."""
    model, x = network("relu", hidden=(50,)), points(12)
    first, last = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    w, b, v = first.weight.detach(), first.bias.detach(), last.weight.detach()[0]
    expected = torch.zeros(12, 12, dtype=torch.float64)
    for i in range(12):
        for j in range(12):
            total = 1.0  # of the last bias
            for k in range(50):
                zi, zj = float(w[k] @ x[i] + b[k]), float(w[k] @ x[j] + b[k])
                total += max(zi, 0) * max(zj, 0)  # of v_k
                if zi > 0 and zj > 0:
                    total += float(v[k]) ** 2 * (float(x[i] @ x[j]) + 1)  # of w_k and b_k
            expected[i, j] = total
    torch.testing.assert_close(neural_tangent_kernel(model, x), expected)


@pytest.mark.parametrize("method", ["relu", "relu+cn"])
def test_the_kernel_does_not_depend_on_how_the_parameters_are_split(method):
    model, x = network(method, out_dim=2), points(11)
    whole = neural_tangent_kernel(model, x)
    torch.testing.assert_close(whole, jacobian(model, x) @ jacobian(model, x).T)
    pieces = list(jacobian_blocks(model, x, max_values=22 * 7))
    assert all(piece.shape[1] <= 7 for piece in pieces)
    torch.testing.assert_close(neural_tangent_kernel(model, x, memory=22 * 7 * 8), whole)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory")
def test_one_block_of_the_jacobian_is_alive_at_a_time():
    memory = 2**25
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # this process may hold what earlier tests have freed
        values, added = fresh.submit(memory_for_a_kernel, memory).result()
    assert values * 8 > 2.5 * memory
    assert added < 1.7 * memory


def memory_for_a_kernel(memory):
    """Number of values of a Jacobian, and by how many bytes the process grows while its kernel is computed."""
    torch.set_num_threads(1)
    model, x = network("relu+cn", hidden=(300, 300)), points(120)
    neural_tangent_kernel(network("relu+cn", hidden=(20,)), x)  # what is loaded once
    before = peak_of_resident_memory(reset=True)
    neural_tangent_kernel(model, x, memory=memory)
    return len(x) * sum(parameter.numel() for parameter in model.parameters()), peak_of_resident_memory() - before


def peak_of_resident_memory(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def test_single_precision_gives_the_same_kernel_to_its_accuracy():
    model, x = network("pe+cn"), points(20)
    exact = neural_tangent_kernel(model, x)
    single = neural_tangent_kernel(model, x, dtype=torch.float32)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, exact, rtol=1e-3, atol=1e-4 * float(exact.max()))


@pytest.mark.parametrize("method", ["relu", "pe+bn", "relu+cn"])
def test_the_trace_is_the_sum_of_the_eigenvalues(method):
    kernel = neural_tangent_kernel(network(method), points(40))
    eigenvalues = kernel_eigenvalues(kernel)
    torch.testing.assert_close(eigenvalues.sum(), kernel.trace())
    torch.testing.assert_close(eigenvalues.square().sum(), kernel.square().sum())
    assert (eigenvalues.diff() <= 0).all()


@pytest.mark.parametrize("method", ["pe", "relu+cn"])
def test_eigenvalues_predict_the_training_of_the_linearised_network(method):
    model, x = network(method), points(15)
    target = torch.sin(5 * x[:, 0])
    outputs = model(x).detach().flatten()
    by_parameters = jacobian_by_differences(model, x)
    kernel = neural_tangent_kernel(model, x)
    rate = 1 / float(kernel_eigenvalues(kernel)[0])
    shift = torch.zeros(by_parameters.shape[1], dtype=torch.float64)
    for _ in range(200):  # gradient descent on the parameters of f + J shift
        residuals = outputs + by_parameters @ shift - target
        shift -= rate * (by_parameters.T @ residuals)
    residuals = outputs + by_parameters @ shift - target
    predicted = predict_residuals(kernel, outputs - target, rate, 200)
    torch.testing.assert_close(predicted, residuals, rtol=1e-4, atol=1e-6)
    assert predicted.norm() < 0.7 * (outputs - target).norm()


def test_a_wide_network_trains_as_its_kernel_predicts():
    model = network("relu", in_dim=1, hidden=(2000,))
    x = points_on_a_line(10).double()
    target = torch.sin(3 * x[:, 0])
    kernel = neural_tangent_kernel(model, x)
    rate = 0.5 / float(kernel_eigenvalues(kernel)[0])
    before = model(x).detach().flatten() - target
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(50):
        optimizer.zero_grad()
        (0.5 * (model(x).flatten() - target).square().sum()).backward()
        optimizer.step()
    after = model(x).detach().flatten() - target
    predicted = predict_residuals(kernel, before, rate, 50)
    assert (after - predicted).norm() < 0.05 * before.norm()
    assert predicted.norm() < 0.8 * before.norm()


def test_the_network_is_left_alone():
    model, x = network("relu+cn"), points(8)
    model(x)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    neural_tangent_kernel(model, 5 * x)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_renormalised_norms_are_refused():
    model = network("relu+cn", norm_options={"statistics": "renorm"})
    with pytest.raises(ValueError, match="renormalised"):
        neural_tangent_kernel(model, points(5))


def test_points_that_are_no_matrix_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        neural_tangent_kernel(network("relu"), torch.zeros(0, 2))


def test_statistics_of_known_eigenvalues():
    statistics = describe(torch.tensor([4.0, 4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0]))
    assert statistics.mean == 2 and statistics.variance == 4
    assert statistics.maximum == 4 and statistics.minimum == 0
    assert statistics.maximum_over_mean == 2
    assert statistics.effective_rank == pytest.approx(4)


def test_histograms_count_every_eigenvalue():
    first, second = torch.tensor([1e3, 3e1, 3e1, 1e0, 0.0]), torch.tensor([1e2, 1e-1])
    edges = log_edges([first, second], bins=16)
    counts = log_histogram(first, edges)
    assert sum(counts) == 5 and sum(log_histogram(second, edges)) == 2 and len(edges) == 17
    assert edges[-1] == pytest.approx(3) and edges[0] == pytest.approx(3 - 16)
    assert counts[-1] == 1 and counts[-2] == 2 and counts[0] == 1
    assert sum(log_histogram(torch.ones(7), log_edges([torch.ones(7)], bins=4))) == 7


def test_orders_are_slopes_on_logarithmic_axes():
    sizes = [10, 20, 40, 80]
    assert fit_order(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert fit_order(sizes, [7.0] * 4) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two"):
        fit_order([10, 10], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        fit_order([10, 20], [1, 0])


def test_the_plain_network_grows_as_the_mean_field_model_says():
    samples = growth_with_samples("relu", (32, 64, 128), (64, 64), seeds=(0, 1)).orders()
    width = growth_with_width("relu", 48, (64, 128, 256), layers=2, seeds=(0, 1, 2)).orders()
    for statistic in ("mean", "variance", "maximum"):
        expected = mean_field_order("relu", "samples", statistic)
        assert expected is not None and math.isclose(samples[statistic], expected, abs_tol=0.15), statistic
        expected = mean_field_order("relu", "width", statistic)
        assert expected is not None and math.isclose(width[statistic], expected, abs_tol=0.35), statistic
    assert mean_field_order("siren", "width", "mean") is None


def test_a_batch_normalized_network_grows_with_samples_where_the_model_says_that_it_does_not():
    """On a fixed interval neighbours come closer as samples grow, which the mean-field model leaves out."""
    options = {"seeds": (0, 1), "initialization": "gaussian"}
    orders = growth_with_samples("relu+bn", (32, 64, 128), (64, 64), **options).orders()
    assert mean_field_order("relu+bn", "samples", "variance") == 0 and orders["variance"] > 0.8
    assert mean_field_order("relu+bn", "samples", "maximum") == 0.5 and orders["maximum"] > 0.8
    assert math.isclose(orders["mean"], 0, abs_tol=0.15)


def test_gaussian_initialisation_has_the_variances_it_names():
    model = initial_network("relu+cn", (300, 300), seed=0, initialization="gaussian")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert float(layers[1].weight.detach().var()) == pytest.approx(2 / 300, rel=0.02)
    assert float(layers[1].bias.detach().var()) == pytest.approx(0.1, rel=0.3)
    with pytest.raises(ValueError, match="neither"):
        initial_network("siren", (8,), seed=0, initialization="gaussian")


def test_cross_normalization_lowers_variance_and_maximum_more_than_the_mean():
    """The paper's proposition 1 with Gaussian weights and positional encoding."""
    plain, normalized = (
        statistics_at_initialisation(method, 64, (64, 64), seeds=(0, 1), initialization="gaussian", num_frequencies=5)
        for method in ("pe", "pe+cn")
    )
    assert normalized.variance < 0.2 * plain.variance
    assert normalized.maximum < 0.4 * plain.maximum
    assert normalized.mean > 0.4 * plain.mean
    assert normalized.effective_rank > 1.4 * plain.effective_rank


def test_kernels_in_training_are_those_of_the_trained_network():
    first, later = kernels_in_training("pe+cn", 24, (8,), (0, 5), 1e-2, seeds=(3,), num_frequencies=2)
    assert (first.step, later.step) == (0, 5)
    signal = sum_of_sines(24, [1, 3, 7])
    model = initial_network("pe+cn", (8,), seed=3, num_frequencies=2)
    expected = kernel_eigenvalues(neural_tangent_kernel(model, signal.points))
    torch.testing.assert_close(first.eigenvalues, expected)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (model(signal.points) - signal.values).square().mean().backward()
        optimizer.step()
    expected = kernel_eigenvalues(neural_tangent_kernel(model, signal.points))
    torch.testing.assert_close(later.eigenvalues, expected, rtol=1e-6, atol=1e-6 * float(expected[0]))


def test_the_command_writes_kernels_growth_and_figures(tmp_path, capsys):
    NTKCommand(
        methods=("relu", "relu+cn"),
        samples=20,
        network="2x8",
        steps=(0, 2),
        num_seeds=1,
        growth_samples=(10, 20),
        growth_widths=(4, 8),
        device="cpu",
        output=tmp_path / "ntk",
    ).run()
    results = json.loads((tmp_path / "ntk" / "ntk.json").read_text())
    assert results["options"]["device"] == "cpu"
    assert [(k["method"], k["step"]) for k in results["kernels"]] == [
        ("relu", 0), ("relu", 2), ("relu+cn", 0), ("relu+cn", 2)
    ]  # fmt: skip
    plain, normalized = results["kernels"][0], results["kernels"][2]
    ratio = normalized["statistics"]["maximum"] / plain["statistics"]["maximum"]
    assert normalized["ratios"]["maximum"] == pytest.approx(ratio)
    assert [(g["method"], g["axis"]) for g in results["growth"]][:2] == [("relu", "samples"), ("relu", "width")]
    assert results["growth"][0]["mean_field_orders"]["maximum"] == 1
    for name in ("eigenvalues.png", "growth.png"):
        assert (tmp_path / "ntk" / name).read_bytes().startswith(b"\x89PNG")
    assert "relu+cn" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["relu", "pe+cn"])
def test_kernels_on_a_gpu_are_those_of_the_cpu(method):
    on_cpu, on_gpu = (
        [
            *kernels_in_training(method, 16, (8,), (0, 3), 1e-2, seeds=(1,), device=device),
            *growths(method, 16, (8,), (8, 16), (), seeds=(1,), device=device),
        ]
        for device in ("cpu", "cuda")
    )
    for expected, found in zip(on_cpu[:2], on_gpu[:2], strict=True):
        largest = float(expected.eigenvalues[0])
        torch.testing.assert_close(found.eigenvalues.cpu(), expected.eigenvalues, rtol=1e-4, atol=1e-6 * largest)
    assert on_gpu[2].orders()["maximum"] == pytest.approx(on_cpu[2].orders()["maximum"], rel=1e-6)


def test_a_kernel_of_a_diverged_network_is_named(tmp_path):
    options = {"methods": ("relu",), "samples": 8, "network": "1x4", "num_seeds": 1, "output": tmp_path}
    with pytest.raises(RepresentationError, match="relu, step 9, learning rate 1e.30: .*NaN"):
        NTKCommand(steps=(0, 9), learning_rate=1e30, **options).run()
