"""NeuS's networks against the published description, and what norms may and may not do in them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding
from torch import distributed, multiprocessing, nn

from crossnorm_ns.fields import sdf_field
from crossnorm_ns.fields.background_field import BackgroundField
from crossnorm_ns.fields.sdf_field import SDFField, SDFFieldConfig
from crossnorm_ns.norms import CrossNorm, calibrate, norm_domain, norms_of

SDF_LAYERS = [(39, 256), (256, 256), (256, 256), (256, 217), *[(256, 256)] * 4, (256, 257)]
COLOR_LAYERS = [(289, 256), (256, 256), (256, 256), (256, 256), (256, 3)]
SMALL = {"sdf_depth": 3, "sdf_width": 48, "sdf_skip": 2, "num_features": 8, "color_depth": 2, "color_width": 16}
NORMS = ["none", "bn", "ln", "gn", "cn-released", "cn-paper"]
WITH_COLUMNS = ["bn", "gn", "cn-released", "cn-paper"]
RENORM = {"statistics": "renorm", "momentum": 0.05}


def make_field(norm="none", color_norm="none", norm_options=None, seed=0, **config) -> SDFField:
    torch.manual_seed(seed)
    names = [name.partition("-") for name in (norm, color_norm)]
    variant = next((variant for _, _, variant in names if variant), "paper")
    options = {"variant": variant, **(RENORM if norm_options is None else norm_options)}
    return SDFField(SDFFieldConfig(**(SMALL | config)), names[0][0], names[1][0], options)


def points_in_ball(count: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=dtype), dim=-1)
    return directions * torch.rand(count, 1, generator=generator, dtype=dtype).pow(1 / 3)


def views(count: int, seed: int = 7, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=dtype), dim=-1)


def training_pass(field: SDFField, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signed distance, gradients and colours, with gradients enabled."""
    distance, gradients, features = field.train().geometry(points)
    return distance, gradients, field.colors(points, views(len(points), dtype=points.dtype), gradients, features)


def train_some_steps(field: SDFField, steps: int = 3, points: int = 200, dtype=torch.float32) -> None:
    """Steps towards a smaller sphere of one colour."""
    optimizer = torch.optim.Adam(field.parameters(), lr=2e-3)
    for step in range(steps):
        x = points_in_ball(points, seed=step, dtype=dtype)
        distance, gradients, rgb = training_pass(field, x)
        loss = (distance[:, 0] - x.norm(dim=-1) + 0.4).abs().mean() + (rgb - 0.8).abs().mean()
        loss = loss + 0.1 * (gradients.norm(dim=-1) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def buffers(field: SDFField) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in field.named_buffers()}


def changed(field: SDFField, before: dict[str, torch.Tensor]) -> list[str]:
    after = dict(field.named_buffers())
    assert after.keys() == before.keys()
    return [name for name, buffer in before.items() if not torch.equal(buffer, after[name])]


# --- The published networks


def shapes(network) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in network.layers]


def test_layers_are_those_of_the_published_networks():
    field = SDFField(SDFFieldConfig())
    assert shapes(field.sdf_network) == SDF_LAYERS
    assert shapes(field.color_network) == COLOR_LAYERS
    assert field.config.sdf_skip == 4


def test_number_of_parameters_is_the_published_one():
    """Weights, their lengths (weight normalization) and biases, and the variance."""
    count = sum((inputs + 2) * outputs for inputs, outputs in SDF_LAYERS + COLOR_LAYERS) + 1
    assert sum(parameter.numel() for parameter in SDFField(SDFFieldConfig()).parameters()) == count


def effective(layer) -> tuple[np.ndarray, np.ndarray]:
    """Weight g v / |v| from its parameters, and bias."""
    length, direction = (p.detach().double().numpy() for p in layer.parametrizations.weight.parameters())
    return length * direction / np.linalg.norm(direction, axis=1, keepdims=True), layer.bias.detach().double().numpy()


def encoded(x: np.ndarray, degrees: int) -> np.ndarray:
    """In the order of this project: the point, all sines, all cosines."""
    angles = np.concatenate([2.0**i * x for i in range(degrees)], axis=1)
    return np.concatenate([x, np.sin(angles), np.cos(angles)], axis=1)


@pytest.mark.parametrize("skip", [1, 2, None])
def test_networks_equal_numpy_ones_with_their_weights(skip: int | None):
    field = make_field(sdf_skip=skip)
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.4)
    points, directions = points_in_ball(20), views(20)
    with torch.no_grad():
        outputs = field.forward_geonetwork(points)
        distance, gradients, features = field.geometry(points)
        rgb = field.colors(points, directions, gradients, features)

    x, v = points.double().numpy(), directions.double().numpy()
    h = encoded(x, 6)
    for i, layer in enumerate(field.sdf_network.layers):
        if i == skip:
            h = np.concatenate([h, encoded(x, 6)], axis=1) / math.sqrt(2)
        weight, bias = effective(layer)
        h = h @ weight.T + bias
        if i < 3:
            h = np.logaddexp(0, 100 * h) / 100
    np.testing.assert_allclose(outputs, h, atol=1e-4)
    np.testing.assert_allclose(distance, h[:, :1], atol=1e-4)

    c = np.concatenate([x, encoded(v, 4), gradients.double().numpy(), h[:, 1:]], axis=1)
    for i, layer in enumerate(field.color_network.layers):
        weight, bias = effective(layer)
        c = c @ weight.T + bias
        c = np.maximum(c, 0) if i < 2 else 1 / (1 + np.exp(-c))
    np.testing.assert_allclose(rgb, c, atol=1e-4)


def test_sharpness_is_the_exponential_of_ten_variances_within_bounds():
    field = make_field()
    assert field.sharpness().item() == pytest.approx(math.exp(3), rel=1e-6)
    for variance, expected in ((-3.0, 1e-6), (3.0, 1e6), (0.0, 1.0)):
        nn.init.constant_(field.variance, variance)
        assert field.sharpness().item() == pytest.approx(expected)


def test_colour_network_starts_as_torch_does_and_biases_of_hidden_distance_layers_at_zero():
    field = SDFField(SDFFieldConfig())
    for layer in field.color_network.layers:
        bound = 1 / math.sqrt(layer.in_features)
        assert 0.95 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
    assert not any(layer.bias.any() for layer in list(field.sdf_network.layers)[:-1])


def test_without_weight_normalization_weights_are_parameters():
    field = make_field("cn", weight_norm=False)
    assert all(isinstance(layer.weight, nn.Parameter) for layer in field.sdf_network.layers)


# --- The sphere at the start


def radii(field: SDFField, directions: int = 100) -> torch.Tensor:
    """Where rays from the centre leave the surface, along evenly spaced radii up to 2."""
    r = torch.linspace(0.005, 2, 300)
    with torch.no_grad():
        values = field.signed_distance(views(directions)[:, None] * r[:, None])[..., 0]
    assert (values[:, 0] < 0).all()
    assert (values[:, -1] > 0).all()
    return r[(values > 0).int().argmax(dim=1)]


def gradient_length(field: SDFField) -> float:
    with torch.no_grad():
        return float(field.geometry(points_in_ball(4000, seed=3))[1].norm(dim=-1).mean())


def inside_share(field: SDFField) -> float:
    """Of the unit cube's points."""
    points = 2 * torch.rand(40_000, 3, generator=torch.Generator().manual_seed(5)) - 1
    with torch.no_grad():
        return float((field.signed_distance(points) < 0).float().mean())


@pytest.mark.parametrize("radius", [0.5, 0.8])
@pytest.mark.parametrize("size", [{}, SMALL | {"sdf_depth": 4, "sdf_width": 128}], ids=["published", "small"])
def test_surface_is_a_sphere_at_the_start(radius: float, size: dict):
    for seed in range(3):
        torch.manual_seed(seed)
        field = SDFField(SDFFieldConfig(**size, initial_radius=radius))
        assert radii(field).mean().item() == pytest.approx(radius, rel=0.05)
        assert gradient_length(field) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("norm", ["bn", "gn", "cn-paper"])
def test_surface_is_the_same_sphere_with_norms_in_training_and_in_evaluation(norm: str):
    size = {"sdf_depth": 4, "sdf_width": 128}
    plain, field = make_field(**size), make_field(norm, norm, **size)
    field.train()
    field.initialize_norms(points_in_ball(20_000))
    assert field.norms_initialized
    for mode in (True, False):
        field.train(mode)
        assert radii(field).mean().item() == pytest.approx(0.5, rel=0.05)
        assert gradient_length(field) == pytest.approx(1, rel=0.05)
        assert inside_share(field) == pytest.approx(inside_share(plain), rel=0.1)


def test_default_scale_and_shift_destroy_the_sphere():
    field = make_field("cn-paper", sdf_depth=4, sdf_width=128).train()
    training_pass(field, points_in_ball(2000))
    assert inside_share(field.eval()) in (0, 1)


@pytest.mark.parametrize("norm", ["none", "cn-paper"])
def test_encoding_starts_without_influence_but_learns(norm: str):
    field = make_field(norm).train()
    points = points_in_ball(500)
    field.initialize_norms(points)
    for layer in (field.sdf_network.layers[0], field.sdf_network.layers[2]):
        assert not layer.weight[:, -36:].any()
        assert layer.weight[:, :-36].all()
    distance, _, _ = field.geometry(points)
    distance.square().sum().backward()
    for layer in (field.sdf_network.layers[0], field.sdf_network.layers[2]):
        assert layer.parametrizations.weight.original1.grad[:, -36:].abs().max() > 0


# --- Norms


@pytest.mark.parametrize("norm", NORMS)
def test_each_network_has_its_own_switch(norm: str):
    count = 0 if norm == "none" else 1
    sdf, color = make_field(norm, "none"), make_field("none", norm)
    assert (len(norms_of(sdf.sdf_network)), len(norms_of(sdf.color_network))) == (3 * count, 0)
    assert (len(norms_of(color.sdf_network)), len(norms_of(color.color_network))) == (0, 2 * count)
    assert bool(sdf.norms_initialized) == (norm == "none")
    assert color.norms_initialized


def test_norm_options_reach_every_norm():
    field = make_field("cn", "cn", {"variant": "paper", "statistics": "renorm", "momentum": 0.05})
    norms = norms_of(field)
    assert len(norms) == 5 and all(isinstance(norm, CrossNorm) for norm in norms)
    assert {(norm.formula.variant, norm.statistics, norm.momentum) for norm in norms} == {("paper", "renorm", 0.05)}
    assert [norm.formula.relu for norm in norms] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("norm", ["bn", "cn-paper"])
def test_norm_stands_between_the_weight_normalized_layer_and_the_activation(norm: str):
    field, seen = make_field(norm).train(), {}
    layer = field.sdf_network.layers[1]
    layer.norm.register_forward_hook(lambda _, inputs, output: seen.update(given=inputs[0], made=output))
    layer.register_forward_hook(lambda _, inputs, output: seen.update(into=inputs[0], out=output))
    field.sdf_network.layers[2].register_forward_pre_hook(lambda _, inputs: seen.update(next=inputs[0]))
    field.geometry(points_in_ball(50))
    weight, bias = effective(layer)
    np.testing.assert_allclose(
        seen["given"].detach(), seen["into"].detach().double().numpy() @ weight.T + bias, atol=1e-5
    )
    assert seen["made"] is seen["out"]
    width = seen["made"].shape[-1]
    expected = nn.functional.softplus(seen["made"], beta=100) / math.sqrt(2)
    torch.testing.assert_close(seen["next"][..., :width], expected)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("statistics", ["renorm", "batch"])
@pytest.mark.parametrize("norm", NORMS)
def test_normals_are_derivatives_of_the_own_sample(norm: str, statistics: str, mode: str):
    """Against differences that move one sample, with the statistics of the pass that gave the normals."""
    field = make_field(norm, norm_options={"statistics": statistics, "momentum": 0.05}).double().train()
    field.initialize_norms(points_in_ball(300, dtype=torch.float64))
    train_some_steps(field, dtype=torch.float64)
    points = points_in_ball(60, seed=9, dtype=torch.float64)
    if statistics == "batch":
        for part in norms_of(field):
            part.momentum = 1.0  # the moving average is the batch, for the passes below
    if mode == "evaluation":
        field.eval()
    distance, gradients, _ = field.geometry(points)
    step, columns = 1e-5, []
    with torch.no_grad():  # in training mode these read the moving average, and leave it alone
        for axis in torch.eye(3, dtype=torch.float64):
            ahead, behind = (field.signed_distance(points + sign * step * axis) for sign in (1, -1))
            columns.append((ahead - behind) / (2 * step))
        torch.testing.assert_close(field.signed_distance(points), distance)
    error = (gradients - torch.cat(columns, dim=-1)).norm(dim=-1) / gradients.norm(dim=-1)
    assert error.max() < 1e-3


def test_coupled_normals_are_not_those_of_the_own_sample():
    options = {"statistics": "batch", "coupled_gradients": True}
    coupled, gated = make_field("cn-paper", norm_options=options), make_field("cn-paper", norm_options={})
    points = points_in_ball(60)
    one, other = coupled.train().geometry(points)[1], gated.train().geometry(points)[1]
    assert (one - other).norm() > 0.05 * other.norm()


@pytest.mark.parametrize("norm", WITH_COLUMNS)
def test_passes_without_gradients_leave_all_buffers_alone(norm: str):
    field = make_field(norm, norm).train()
    field.initialize_norms(points_in_ball(300))
    train_some_steps(field)
    before, points, directions = buffers(field), points_in_ball(80, seed=11) + 0.2, views(80)
    for training in (True, False):
        field.train(training)
        with torch.no_grad():
            field.signed_distance(points)
            _, gradients, features = field.geometry(points)
            field.colors(points, directions, gradients, features)
        assert [part.training for part in norms_of(field)] == [training] * 5
    field.geometry(points)  # in evaluation, gradients or not
    assert changed(field, before) == []
    field.train().geometry(points)
    assert changed(field, before)


@pytest.mark.parametrize("norm", WITH_COLUMNS)
def test_one_set_of_statistics_serves_training_samplers_and_meshes(norm: str):
    field = make_field(norm, norm).train()
    field.initialize_norms(points_in_ball(300))
    train_some_steps(field)
    assert all(set(part.domains) == {"render"} for part in norms_of(field))
    points = points_in_ball(50)
    expected = field.eval().signed_distance(points)
    with norm_domain(field, "render"):
        assert torch.equal(field.signed_distance(points), expected)
    assert torch.equal(field.forward_geonetwork(points)[..., :1], expected)


@pytest.mark.parametrize("norm", NORMS)
def test_grid_chunks_of_any_size_give_the_same_distances(norm: str):
    field = make_field(norm).train()
    field.initialize_norms(points_in_ball(300))
    train_some_steps(field)
    axis = torch.linspace(-1, 1, 42)
    grid = torch.cartesian_prod(axis, axis, axis)
    calibrate_on_balls(field)
    field.eval()
    with torch.no_grad():
        small, large = (torch.cat([field.signed_distance(part) for part in grid.split(n)]) for n in (4096, 65_536))
    assert small.std() > 0.01
    torch.testing.assert_close(small, large, rtol=0, atol=1e-6)


class RenderPass(nn.Module):
    def __init__(self, field: SDFField) -> None:
        super().__init__()
        self.field = field

    def forward(self, points: torch.Tensor) -> None:
        training_pass(self.field, points)


def calibrate_on_balls(field: SDFField, batches: int = 20, points: int = 200) -> None:
    calibrate(RenderPass(field), [(points_in_ball(points, seed=100 + i),) for i in range(batches)])


@pytest.mark.parametrize("norm", WITH_COLUMNS)
def test_calibration_of_the_render_pass_sets_what_evaluation_uses_and_no_moving_average(norm: str):
    field = make_field(norm, norm, norm_options={"statistics": "batch"}).train()
    field.initialize_norms(points_in_ball(300))
    train_some_steps(field)
    before = buffers(field)
    calibrate_on_balls(field)
    names = changed(field, before)
    assert names and not any("running" in name for name in names)


def test_distances_under_no_grad_before_any_training_do_not_fail():
    with torch.no_grad():
        field = make_field("cn").train()
        assert torch.isfinite(field.signed_distance(points_in_ball(10))).all()
    assert not any(part.domains for part in norms_of(field))


def initialized_in_one_of_two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    field = make_field("cn").train()
    field.initialize_norms(points_in_ball(100, seed=rank))
    torch.save(dict(field.named_parameters()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_with_different_batches_start_with_the_same_norms(tmp_path: Path):
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch has no gloo")
    multiprocessing.spawn(initialized_in_one_of_two_processes, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = make_field("cn").train()
    alone.initialize_norms(points_in_ball(100, seed=0))
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(first[name], parameter, msg=name)
        assert torch.equal(first[name], second[name]), name


# --- Wrong sizes


def test_a_skip_to_no_hidden_layer_is_refused():
    with pytest.raises(ValueError, match="sdf_skip is 4, but the hidden layers behind another one are 1 to 2"):
        make_field(sdf_skip=4)


def test_a_width_without_room_for_the_skip_is_refused():
    with pytest.raises(ValueError, match="sdf_width is 39, which leaves .* no room beside the encoded point of 39"):
        make_field(sdf_width=39)


# --- Hash grid


def test_hash_grid_without_tiny_cuda_nn_is_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(sdf_field, "TCNN_EXISTS", False)
    with pytest.raises(ImportError, match=r"pip install git\+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"):
        make_field(encoding="hash")


@pytest.mark.parametrize("norm", ["none", "cn-paper"])
def test_hash_grid_stands_beside_the_point_and_starts_without_influence(norm: str, monkeypatch):
    """With nerfstudio's own grid in place of tiny-cuda-nn's, which needs a GPU."""
    grid = HashEncoding(num_levels=4, max_res=32, log2_hashmap_size=8, hash_init_scale=1.0, implementation="torch")
    monkeypatch.setattr(sdf_field, "make_hash_grid", lambda: grid)
    field, points = make_field(norm, encoding="hash").train(), points_in_ball(400) * 1.4
    field.initialize_norms(points)
    encoding = field.encode(points)
    assert encoding.shape == (400, 3 + 8)
    torch.testing.assert_close(encoding[:, 3:], grid(points / 3 + 0.5))
    with torch.no_grad():
        before = field.signed_distance(points)
        grid.hash_table.normal_()
        torch.testing.assert_close(field.signed_distance(points), before, rtol=0, atol=1e-6)
    train_some_steps(field)
    assert grid.hash_table.grad.abs().max() > 0


# --- The background's network


def test_background_layers_are_those_of_the_published_network():
    field = BackgroundField()
    trunk = [(84, 256), *[(256, 256)] * 4, (340, 256), (256, 256), (256, 256)]
    assert shapes(field.trunk) == trunk
    assert shapes(field.head) == [(283, 128), (128, 3)]
    assert (field.density_layer.out_features, field.bottleneck.out_features) == (1, 256)


def test_background_sees_directions_and_inverse_distances():
    torch.manual_seed(0)
    field, seen = BackgroundField(depth=2, width=8, skip=1), []
    field.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    points, directions = torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.3, 0.4]]), views(2)
    density, rgb = field(points, directions)
    assert density.shape == (2, 1) and rgb.shape == (2, 3)
    assert (density > 0).all() and ((rgb > 0) & (rgb < 1)).all()
    expected = encoded(np.array([[0.0, 0.6, 0.8, 0.2]]), 10)
    np.testing.assert_allclose(seen[0][0], expected[0], atol=1e-4)
    np.testing.assert_allclose(seen[0][1, :4], [0.0, 0.3, 0.4, 1.0])
