"""Norms in networks that exist already."""

import pytest
import torch
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.mlp import MLP as NerfstudioMLP
from nerfstudio.field_components.mlp import MLPWithHashEncoding
from nerfstudio.fields.vanilla_nerf_field import NeRFField
from torch import nn

from crossnorm_ns import CrossNorm, functional, insert_norms
from crossnorm_ns.fields.mipnerf_field import MipNeRFField
from crossnorm_ns.networks import MLP
from crossnorm_ns.norms import norms_of


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def weights(module):
    """Parameters that are not those of norms, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if ".norm." not in name}


def insert(module, norm="cn", **options):
    """Inserts, and checks that every weight is the same tensor under the same name."""
    before = dict(module.named_parameters())
    assert insert_norms(module, norm, **options) is module
    after = weights(module)
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    return module


def ray_samples(rays=4, samples=5):
    generator = torch.Generator().manual_seed(0)
    shape = (rays, samples)
    return RaySamples(
        frustums=Frustums(
            origins=torch.rand(*shape, 3, generator=generator),
            directions=torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator), dim=-1),
            starts=torch.ones(*shape, 1),
            ends=torch.full((*shape, 1), 1.1),
            pixel_area=torch.full((*shape, 1), 1e-4),
        )
    )


def cross(x):
    """Normalization with the statistics of the rows at hand, scale 1 and shift 0."""
    rows = x.reshape(-1, x.shape[-1])
    return functional.cross_norm(rows, None, None).reshape(x.shape)


def test_nerfstudio_mlp_is_normalized_before_each_hidden_activation():
    mlp = insert(NerfstudioMLP(3, 4, 8, 2, skip_connections=(2,), out_activation=nn.Sigmoid()))
    w, x = weights(mlp), torch.rand(20, 3)

    def linear(i, features):
        return features @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"]

    features = torch.relu(cross(linear(0, x)))
    features = torch.relu(cross(linear(1, features)))
    features = torch.relu(cross(linear(2, torch.cat([x, features], -1))))
    torch.testing.assert_close(mlp(x), torch.sigmoid(linear(3, features)))
    assert len(norms_of(mlp)) == 3


def test_our_mlp_is_normalized_before_each_hidden_activation():
    mlp = insert(MLP(3, (8, 6), out_dim=2, skips=(0,)))
    w, x = weights(mlp), torch.rand(20, 3)
    features = torch.relu(cross(x @ w["layers.0.weight"].T + w["layers.0.bias"]))
    features = torch.cat([features, x], -1)
    features = torch.relu(cross(features @ w["layers.1.weight"].T + w["layers.1.bias"]))
    torch.testing.assert_close(mlp(x), features @ w["layers.2.weight"].T + w["layers.2.bias"])


def test_an_mlp_that_ends_with_an_activation_is_normalized_before_it_too():
    assert len(norms_of(insert(MLP(3, (8, 6))))) == 2


def test_our_mlp_with_a_norm_is_our_mlp_with_the_norm_inserted():
    torch.manual_seed(0)
    built = MLP(3, (8, 8), out_dim=1, norm="cn", norm_options={"variant": "paper"})
    torch.manual_seed(0)
    inserted = insert(MLP(3, (8, 8), out_dim=1), "cn", variant="paper")
    x = torch.rand(20, 3)
    assert torch.equal(built(x), inserted(x))
    assert built.state_dict().keys() == inserted.state_dict().keys()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, Sine, nn.PReLU])
def test_a_sequential_is_normalized_before_each_hidden_activation(nested, activation):
    first, second, last = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
    parts = [first, activation(), nn.Dropout(0.0), second, nn.Identity(), activation(), last, nn.Sigmoid()]
    model = nn.Sequential(nn.Sequential(*parts[:3]), nn.Sequential(nn.Sequential(*parts[3:6])), *parts[6:])
    model = insert(model if nested else nn.Sequential(*parts))
    x = torch.rand(20, 3)
    features = parts[1](cross(first(x)))
    features = parts[5](cross(second(features)))
    torch.testing.assert_close(model(x), torch.sigmoid(last(features)))


def test_a_linear_layer_without_an_activation_behind_it_is_left_alone():
    model = insert(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)))
    assert [type(layer).__name__ for layer in model] == ["Linear", "NormalizedLinear", "ReLU", "Linear"]


def test_nerf_field_is_normalized_everywhere_but_in_its_heads():
    field = insert(
        NeRFField(base_mlp_num_layers=4, base_mlp_layer_width=16, head_mlp_layer_width=8, skip_connections=(2,))
    )
    assert len(norms_of(field.mlp_base)) == 4 and len(norms_of(field.mlp_head)) == 2 and len(norms_of(field)) == 6
    inputs = {}
    for layer in norms_of(field):
        layer.register_forward_hook(lambda _, given, made: inputs.update({id(made): (given[0], made)}))
    for mlp in (field.mlp_base, field.mlp_head):
        mlp.activation = nn.ReLU()  # nerfstudio shares one default among all networks
        for activation in (mlp.activation, mlp.out_activation):
            activation.register_forward_pre_hook(lambda _, given: activated.append(given[0]))
    activated = []
    outputs = field(ray_samples())
    assert len(activated) == 6
    for features in activated:
        before, after = inputs[id(features)]
        torch.testing.assert_close(after, cross(before))
    assert outputs[FieldHeadNames.RGB].shape == (4, 5, 3)


def test_nerf_field_without_heads_is_normalized_before_its_density():
    field = insert(NeRFField(base_mlp_num_layers=3, base_mlp_layer_width=8, skip_connections=(), field_heads=None))
    assert len(norms_of(field)) == 3


def test_mipnerf_field_has_nine_norms_at_the_published_depth():
    field = insert(MipNeRFField(depth=8, width=16, head_width=8))
    assert len(norms_of(field.trunk)) == 8 and len(norms_of(field.head)) == 1 and len(norms_of(field)) == 9
    assert field(ray_samples())[FieldHeadNames.RGB].shape == (4, 5, 3)


def test_a_network_behind_an_encoding_is_found():
    network = insert(MLPWithHashEncoding(num_levels=2, log2_hashmap_size=4, num_layers=3, layer_width=8, out_dim=1))
    assert len(norms_of(network)) == 2
    assert network(torch.rand(10, 3)).shape == (10, 1)


def test_norms_take_the_type_mode_and_options_of_the_call():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    (norm,) = norms_of(insert(model, "cn", variant="paper", momentum=0.5))
    assert isinstance(norm, CrossNorm) and norm.formula.variant == "paper" and norm.momentum == 0.5
    assert norm.weight.dtype == torch.float64 and not norm.training


def test_none_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 1))
    assert insert_norms(model, "none") is model and not norms_of(model)


def test_weight_normalization_can_follow():
    model = insert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    x = torch.rand(20, 3)
    expected = model(x)
    nn.utils.parametrizations.weight_norm(model[0])
    torch.testing.assert_close(model(x), expected)


def fused(kind):
    """A module that looks like one of tiny-cuda-nn's."""
    return type(kind, (nn.Module,), {"__module__": "tinycudann.modules"})()


def refused(module, match):
    """Insertion fails with a reason, and changes nothing."""
    before = [id(part) for part in module.modules()]
    with pytest.raises(ValueError, match=match):
        insert_norms(module, "cn")
    assert before == [id(part) for part in module.modules()]


def chain(*hidden):
    return nn.Sequential(*hidden, nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.parametrize("kind", ["Network", "NetworkWithInputEncoding"])
def test_tiny_cuda_networks_are_refused_and_the_rest_of_the_module_untouched(kind):
    mlp = NerfstudioMLP(3, 3, 8, 1)
    mlp.tcnn_encoding = fused(kind)
    reason = f'tiny-cuda-nn {kind}.*implementation="torch"'
    refused(mlp, reason)
    refused(nn.ModuleList([chain(nn.Linear(3, 4)), mlp]), reason)
    refused(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), fused(kind)), reason)


def test_a_tiny_cuda_encoding_before_a_torch_network_is_no_obstacle():
    model = nn.ModuleDict({"encoding": fused("Encoding"), "mlp": NerfstudioMLP(3, 3, 8, 1)})
    assert len(norms_of(insert(model))) == 2


def test_a_second_insertion_is_refused():
    refused(insert(chain(nn.Linear(3, 4))), "has norms already")
    refused(MLP(3, (4, 4), norm="bn"), "has norms already")


def test_hidden_layers_that_are_not_plain_linear_ones_are_refused():
    refused(chain(nn.Linear(3, 4), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "weight norm")
    refused(chain(nn.Linear(3, 4), nn.ReLU(), nn.LazyLinear(4)), "no plain nn.Linear")


def test_old_weight_normalization_is_refused():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(3, 4))
    refused(chain(layer), "weight norm")


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 1)), NerfstudioMLP(3, 1, 8, 1), nn.ModuleDict()]
)
def test_a_module_without_hidden_activations_is_refused(module):
    refused(module, f"found no hidden activation in {type(module).__name__}")
