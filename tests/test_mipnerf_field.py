"""mip-NeRF's network against the published description."""

import math

import numpy as np
import pytest
import torch
from mipnerf_reference import Rays, encode_frustums, encode_views, network
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from torch import nn

from crossnorm_ns.fields.mipnerf_field import MipNeRFField
from crossnorm_ns.functional.encodings import conical_frustum_gaussian, integrated_positional_encoding
from crossnorm_ns.norms import CrossNorm, NormalizedLinear, norms_of

PUBLISHED_LAYERS = {
    "trunk.layers.0": (96, 256),
    **{f"trunk.layers.{i}": (256, 256) for i in (1, 2, 3, 4, 6, 7)},
    "trunk.layers.5": (256 + 96, 256),
    "density_layer": (256, 1),
    "bottleneck": (256, 256),
    "head.layers.0": (256 + 27, 128),
    "rgb_layer": (128, 3),
}
HIDDEN = [name for name in PUBLISHED_LAYERS if name.startswith(("trunk", "head"))]


def samples_along(directions: torch.Tensor, num_samples: int = 5, radius: float = 0.01) -> RaySamples:
    """Frustums of rays from one point; `directions` (rays, 3) are as long as a unit of t."""
    torch.manual_seed(1)
    t = 2 + torch.rand(len(directions), num_samples + 1).cumsum(-1)
    shape = (len(directions), num_samples)
    return RaySamples(
        frustums=Frustums(
            origins=torch.tensor([0.3, -0.2, 4.0]).expand(*shape, 3),
            directions=directions[:, None].expand(*shape, 3),
            starts=t[:, :-1, None],
            ends=t[:, 1:, None],
            pixel_area=torch.full((*shape, 1), math.pi * radius**2),
        )
    )


def some_directions() -> torch.Tensor:
    return torch.tensor([[0.2, -0.3, -1.0], [0.0, 0.0, -1.0], [0.4, 0.4, -1.1]])


def numpy_weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def test_layers_are_those_of_the_published_network():
    layers = {name: layer for name, layer in MipNeRFField().named_modules() if isinstance(layer, nn.Linear)}
    assert {name: (layer.in_features, layer.out_features) for name, layer in layers.items()} == PUBLISHED_LAYERS


def test_number_of_parameters_is_the_published_one():
    """The paper's table 1 gives 612K."""
    count = sum(parameter.numel() for parameter in MipNeRFField().parameters())
    assert count == sum((inputs + 1) * outputs for inputs, outputs in PUBLISHED_LAYERS.values()) == 612_740


def test_weights_start_glorot_uniform_and_biases_at_zero():
    torch.manual_seed(0)
    for name, layer in MipNeRFField().named_modules():
        if isinstance(layer, nn.Linear):
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.98 * bound < layer.weight.abs().max() <= bound, name
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
            assert not layer.bias.any(), name


def test_scaled_initial_weights_of_normed_layers_leave_the_function_nearly_as_it_is():
    def field(scale):
        torch.manual_seed(0)
        return MipNeRFField(depth=3, width=32, skip=1, head_width=16, norm="cn", normed_weight_scale=scale)

    ours, glorot = field(0.5), field(1.0)
    for (name, layer), other in zip(ours.named_modules(), glorot.modules(), strict=True):
        if isinstance(layer, nn.Linear) and isinstance(other, nn.Linear):
            factor = 0.5 if isinstance(layer, NormalizedLinear) else 1.0
            torch.testing.assert_close(layer.weight, factor * other.weight, msg=name)
    samples = samples_along(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)))
    (density, features), (expected_density, expected) = ours.get_density(samples), glorot.get_density(samples)
    torch.testing.assert_close(features, expected, rtol=0, atol=0.01 * expected.abs().max().item())
    torch.testing.assert_close(density, expected_density, rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", ["bn", "ln", "gn", "cn"])
def test_nine_norms_stand_before_the_hidden_activations(norm):
    field = MipNeRFField(norm=norm)
    normalized = {name: layer for name, layer in field.named_modules() if isinstance(layer, NormalizedLinear)}
    assert sorted(normalized) == sorted(HIDDEN)
    assert [layer.norm.num_channels for layer in normalized.values()] == [256] * 8 + [128]
    assert len(norms_of(field)) == 9

    seen = {}
    for name, layer in normalized.items():
        layer.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
    _, features = field.get_density(samples_along(some_directions()))
    last = seen["trunk.layers.7"]
    torch.testing.assert_close(features, last)
    assert 0.1 < (last == 0).float().mean() < 0.9, "the norm's output has been through the activation"
    assert all((output >= 0).all() for output in seen.values())


def test_norm_options_reach_every_norm():
    field = MipNeRFField(norm="cn", norm_options={"variant": "paper", "statistics": "renorm"})
    norms = norms_of(field)
    assert all(isinstance(norm, CrossNorm) for norm in norms)
    assert {(norm.formula.variant, norm.statistics) for norm in norms} == {("paper", "renorm")}


def test_density_is_the_softplus_of_the_trunk_minus_one():
    field = MipNeRFField()
    nn.init.zeros_(field.density_layer.weight)
    density, _ = field.get_density(samples_along(some_directions()))
    assert density.shape == (3, 5, 1)
    torch.testing.assert_close(density, torch.full_like(density, math.log1p(math.exp(-1))))


@pytest.mark.parametrize(("logit", "color"), [(60.0, 1.001), (-60.0, -0.001), (0.0, 0.5)])
def test_colours_are_padded_sigmoids(logit: float, color: float):
    field = MipNeRFField()
    nn.init.zeros_(field.rgb_layer.weight)
    nn.init.constant_(field.rgb_layer.bias, logit)
    rgb = field(samples_along(some_directions()))[FieldHeadNames.RGB]
    torch.testing.assert_close(rgb, torch.full((3, 5, 3), color), rtol=0, atol=1e-6)


def test_density_does_not_see_the_view_direction_and_colour_sees_its_direction_only():
    """With r and t fixed to the same Gaussians, colour depends on the direction; never on its length."""
    torch.manual_seed(0)
    field, samples = MipNeRFField(), samples_along(some_directions())
    density, features = field.get_density(samples)
    rgb = field.get_outputs(samples, features)[FieldHeadNames.RGB]
    samples.frustums.directions = 3 * samples.frustums.directions
    torch.testing.assert_close(field.get_outputs(samples, features)[FieldHeadNames.RGB], rgb)
    samples.frustums.directions = samples.frustums.directions.flip(-1)
    assert not torch.allclose(field.get_outputs(samples, features)[FieldHeadNames.RGB], rgb, atol=1e-3)


def test_input_is_concatenated_behind_the_fifth_layer():
    field, seen = MipNeRFField(), []
    field.trunk.layers[5].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    samples = samples_along(some_directions())
    field.get_density(samples)
    frustums = samples.frustums
    radius = (frustums.pixel_area / math.pi).sqrt()
    gaussian = conical_frustum_gaussian(
        frustums.origins, frustums.directions, frustums.starts, frustums.ends, radius
    )
    encoded = integrated_positional_encoding(*gaussian, 16)
    torch.testing.assert_close(seen[0][..., 256:], encoded)


@pytest.mark.parametrize("depth", [3, 5, 8])
def test_field_equals_a_numpy_network_with_its_weights(depth: int):
    torch.manual_seed(0)
    field = MipNeRFField(depth=depth, width=32, head_width=16, point_degrees=10)
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.3)
    directions = some_directions()
    samples = samples_along(directions)
    frustums = samples.frustums
    t = torch.cat([frustums.starts[..., 0], frustums.ends[:, -1:, 0]], -1).double().numpy()
    rays = Rays(frustums.origins[:, 0].double().numpy(), directions.double().numpy(), np.full((3, 1), 0.01))

    with torch.no_grad():
        outputs = field(samples)

    encoded = encode_frustums(rays, t, 10)
    rgb, density = network(numpy_weights(field), encoded, encode_views(rays.directions, 4))
    np.testing.assert_allclose(outputs[FieldHeadNames.RGB], rgb, atol=1e-4)
    np.testing.assert_allclose(outputs[FieldHeadNames.DENSITY][..., 0], density, rtol=1e-3, atol=1e-4)
