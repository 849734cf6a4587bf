"""Networks by name: their initialisations, their functions, what of them must be stored."""

import math

import pytest
import torch
from torch import nn

from crossnorm_ns import calibrate
from crossnorm_ns.networks import (
    METHODS,
    PAPER_METHODS,
    SIREN,
    PositionalEncoding,
    load_stored,
    make_network,
    num_stored_values,
    stored_tensors,
)
from crossnorm_ns.norms import norms_of


def network(method, hidden=(64, 64, 64), in_dim=2, out_dim=3, seed=0, **options):
    torch.manual_seed(seed)
    return make_network(method, in_dim, out_dim, hidden, **options)


def points(number=500, in_dim=2, seed=0):
    return 2 * torch.rand(number, in_dim, generator=torch.Generator().manual_seed(seed)) - 1


def assert_uniform(values, bound):
    """Uniform within +-bound, by the largest value, the mean, and the first and second moment of the size."""
    values = values.detach().double().flatten()
    error = 4 / math.sqrt(values.numel())
    assert 1 - 20 / values.numel() < float(values.abs().max()) / bound <= 1 + 1e-6
    assert abs(float(values.mean())) / bound < error
    assert abs(float(values.abs().mean()) / bound - 1 / 2) < error
    assert abs(float(values.square().mean()) / bound**2 - 1 / 3) < error


def test_the_paper_has_13_methods():
    norms = ["", "+bn", "+ln", "+gn", "+cn"]
    assert set(PAPER_METHODS) == {"siren", "mfn", "wire", *("relu" + n for n in norms), *("pe" + n for n in norms)}
    assert len(PAPER_METHODS) == 13 and set(PAPER_METHODS) < set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_method_maps_points_to_values_and_learns(method, dtype):
    model = network(method, hidden=(16, 12)).to(dtype)
    x = points(100).to(dtype)
    assert model(x).shape == (100, 3) and model(x.reshape(10, 10, 2)).shape == (10, 10, 3)
    assert model(x).dtype == dtype
    target = x.sum(1, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_weights(method):
    first, again, other = (network(method, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", ["relu+cn", "pe", "gaussian"])
def test_layers_without_an_initialisation_of_their_own_start_as_those_of_torch(method):
    """Uniform within 1 / sqrt(fan_in), weights and biases: what the released code has."""
    for layer in network(method).modules():
        if isinstance(layer, nn.Linear):
            assert_uniform(layer.weight, 1 / math.sqrt(layer.in_features))
            assert float(layer.bias.detach().abs().max()) <= 1 / math.sqrt(layer.in_features)


@pytest.mark.parametrize("method", ["siren", "finer"])
def test_sine_networks_start_within_the_bounds_of_siren(method):
    layers = [layer for layer in network(method, (200, 300, 200), in_dim=3).modules() if isinstance(layer, nn.Linear)]
    assert_uniform(layers[0].weight, 1 / 3)
    assert_uniform(layers[1].weight, math.sqrt(6 / 200) / 30)
    assert_uniform(layers[2].weight, math.sqrt(6 / 300) / 30)
    assert_uniform(layers[3].weight, math.sqrt(6 / 200) / 30)


def test_biases_of_siren_start_as_those_of_torch():
    """As in the authors' code: uniform within 1 / sqrt(fan_in), not 0 and not scaled by omega_0."""
    for layer in network("siren", (2000, 3000), in_dim=3, out_dim=2000).layers:
        assert_uniform(layer.bias, 1 / math.sqrt(layer.in_features))


def test_sirens_keep_the_distribution_of_activations_through_the_layers():
    """SIREN, theorem 1.8: weighted sums in front of the sines have variance 1, the sines arcsine with variance 1/2."""
    model = network("siren", (512,) * 6)
    assert isinstance(model, SIREN)
    x = points(2000)
    for i, layer in enumerate(list(model.layers)[:-1]):
        sums = 30 * (layer(x) - layer.bias).detach()
        x = torch.sin(30 * layer(x)).detach()
        if i > 0:
            assert float(sums.std()) == pytest.approx(1, abs=0.1)
            assert float(x.var()) == pytest.approx(0.5, abs=0.1)


def test_wire_starts_as_complex_layers_of_torch_and_is_narrower():
    model = network("wire", (300, 300))
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    assert weights[0].shape == (212, 2) and weights[1].shape == (212, 212, 2)  # 300 / sqrt(2), pairs of reals
    assert_uniform(weights[0], 1 / math.sqrt(2))
    assert_uniform(weights[1][..., 0], 1 / math.sqrt(212))
    assert_uniform(weights[1][..., 1], 1 / math.sqrt(212))
    assert float((weights[1][..., 0] * weights[1][..., 1]).detach().mean()) * 212 == pytest.approx(0, abs=0.01)
    complex_weight = nn.Linear(212, 212, dtype=torch.cfloat).weight.detach()
    assert float(complex_weight.real.std()) == pytest.approx(float(weights[1][..., 0].detach().std()), rel=0.02)


def test_wire_is_the_wavelet_network_in_complex_numbers():
    model, x = network("wire", (9, 7), omega_0=6.0, sigma_0=2.0), points(20)
    w1, b1, w2, b2, w3, b3 = (p.detach().double().numpy() for p in model.parameters())
    w2, b2, w3, b3 = (p[..., 0] + 1j * p[..., 1] for p in (w2, b2, w3, b3))
    z = x.double().numpy() @ w1.T + b1
    for w, b in ((w2, b2), (w3, b3)):
        z = math.e ** (6j * z - abs(2 * z) ** 2) @ w.T + b
    torch.testing.assert_close(model(x).detach().double(), torch.from_numpy(z.real), rtol=1e-4, atol=1e-5)


def test_gabor_filters_start_with_their_distributions():
    filter_ = network("mfn", (20_000, 2, 2)).filters[0]
    gamma, mu, linear = filter_.gamma.detach(), filter_.mu.detach(), filter_.linear
    assert float(gamma.mean()) == pytest.approx(2, rel=0.05)  # Gamma(6 / 3, 1): mean and variance 2
    assert float(gamma.var()) == pytest.approx(2, rel=0.1)
    assert_uniform(mu, 1)
    assert_uniform(linear.bias, math.pi)
    assert_uniform(linear.weight / gamma.sqrt()[:, None], 128 / math.sqrt(2))


def test_linear_layers_of_filter_networks_start_within_the_root_of_their_width():
    model = network("mfn", (400,) * 2)
    assert_uniform(model.linears[0].weight, 1 / math.sqrt(400))


def test_fourier_filters_share_the_bandwidth():
    """The frequencies of the filters' product add up, so each has 1 / sqrt(number) of the scale."""
    model = network("mfn-fourier", (2000,) * 4)
    assert_uniform(model.filters[3].linear.weight, 256 / math.sqrt(4) / math.sqrt(2))
    assert_uniform(model.filters[0].linear.bias, math.pi)


def test_a_filter_network_is_the_recursion_of_its_paper():
    model, x = network("mfn", (5, 4), input_scale=3.0), points(30).double()
    model.double()

    def gabor(i):
        f = model.filters[i]
        envelope = torch.exp(-0.5 * f.gamma * (x[:, None] - f.mu).square().sum(-1))
        return envelope * torch.sin(x @ f.linear.weight.T + f.linear.bias)

    z = (gabor(0) @ model.linears[0].weight.T + model.linears[0].bias) * gabor(1)
    torch.testing.assert_close(model(x), z @ model.output.weight.T + model.output.bias)


def test_finer_is_siren_with_a_frequency_that_grows():
    model, x = network("finer", (8,), first_bias_scale=4.0), points(40).double()
    model.double()
    first, last = model.layers
    z = x @ first.weight.T + first.bias
    torch.testing.assert_close(model(x), torch.sin(30 * (z.abs() + 1) * z) @ last.weight.T + last.bias)
    wide = network("finer", (5000,), first_bias_scale=4.0)
    assert_uniform(wide.layers[0].bias, 4)


def test_gaussian_activations():
    model, x = network("gaussian", (8,), scale=3.0), points(40).double()
    model.double()
    first, last = model.layers
    z = x @ first.weight.T + first.bias
    torch.testing.assert_close(model(x), torch.exp(-9 * z**2) @ last.weight.T + last.bias)


def test_positional_encoding_has_octaves_of_pi_and_the_coordinates():
    x = points(6).double()
    encoded = PositionalEncoding(2, 10)(x)
    columns = [x[:, 0], x[:, 1]]
    columns += [f(2**i * math.pi * x[:, d]) for f in (torch.sin, torch.cos) for i in range(10) for d in (0, 1)]
    torch.testing.assert_close(encoded, torch.stack(columns, dim=1))


@pytest.mark.parametrize("method", [m for m in METHODS if "+" in m])
def test_norms_stand_before_the_activation_of_every_hidden_layer(method):
    norms = norms_of(network(method, hidden=(10, 11, 12)))
    _, _, name = method.partition("+")
    assert [norm.num_channels for norm in norms] == [10, 11, 12]
    assert all(norm.formula.name == name[:2] for norm in norms)
    if name.startswith("cn"):
        assert all(norm.formula.variant == ("paper" if name == "cn-paper" else "released") for norm in norms)


def test_options_of_norms_are_passed_on():
    model = network("pe+cn", norm_options={"statistics": "renorm"})
    assert all(norm.statistics == "renorm" for norm in norms_of(model))


@pytest.mark.parametrize(
    ("method", "count"),
    [("relu", 7_479), ("pe", 8_599), ("siren", 7_479), ("relu+cn", 8_039), ("pe+ln", 9_159), ("pe+cn", 9_159)],
)
def test_sizes_are_those_of_the_released_code(method, count):
    assert sum(p.numel() for p in network(method, (28,) * 10).parameters()) == count


def test_what_is_stored_is_what_evaluation_needs():
    """Parameters; mean, variance and number of rows for each norm that looks at columns; two numbers for GN."""
    for method, extra in (("relu", 0), ("relu+ln", 0), ("relu+gn", 2 * 2), ("relu+cn", 2 * (2 * 16 + 1))):
        model = network(method, (16, 16))
        calibrate(model, [(points(),)])
        assert num_stored_values(model) == sum(p.numel() for p in model.parameters()) + extra


@pytest.mark.parametrize("method", ["siren", "relu+bn", "pe+ln", "pe+gn", "relu+cn"])
def test_what_is_stored_makes_the_same_network_again(method):
    model, again = network(method, (16, 1, 16)), network(method, (16, 1, 16), seed=5)
    calibrate(model, [(3 * points() + 1,)])
    load_stored(again, stored_tensors(model))
    torch.testing.assert_close(again.eval()(points(9)), model.eval()(points(9)), rtol=1e-5, atol=1e-5)
    for norm in norms_of(again):
        for statistics in norm.domains.values():
            assert torch.equal(statistics.running_mean, statistics.mean)


def test_unknown_names_get_the_list_of_names():
    with pytest.raises(ValueError, match=r"'pe\+xn'.*pe\+cn.*gaussian"):
        make_network("pe+xn", 2, 3, (8,))


def test_options_that_a_method_has_not_are_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"siren has no option 'sigma_0': it knows omega_0"):
        make_network("siren", 2, 3, (8,), sigma_0=3.0)
    with pytest.raises(ValueError, match="norm"):
        make_network("relu", 2, 3, (8,), norm="bn")


@pytest.mark.parametrize("sizes", [(0, 3, (8,)), (2, 0, (8,)), (2, 3, ()), (2, 3, (8, 0))])
def test_sizes_below_1_are_refused(sizes):
    with pytest.raises(ValueError, match="at least"):
        make_network("relu", *sizes)
