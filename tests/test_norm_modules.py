"""The norms as modules: training and evaluation, stored statistics, domains, saving and loading."""

import copy
import pickle

import pytest
import torch
from norm_networks import NORMS, WITH_COLUMNS, assert_same, buffers, network, norm, points, train

from crossnorm_ns import CrossNorm, calibrate, functional, make_norm, norm_domain
from crossnorm_ns.norms import Norm, norms_of


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_training_uses_the_batch_and_evaluation_the_stored_statistics(name):
    layer, x = norm(name, 4), torch.randn(30, 4, dtype=torch.float64)
    in_training = layer(x)
    layer(10 + 3 * torch.randn(30, 4, dtype=torch.float64))
    again = layer(x)
    torch.testing.assert_close(in_training, again)  # whatever was seen before
    assert (layer.eval()(x) - in_training).abs().max() > 0.1
    torch.testing.assert_close(layer(x[:7]), layer(x)[:7])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_evaluation_does_not_depend_on_the_chunk_size(name, chunk):
    model = train(network(name, dtype=torch.float32), dtype=torch.float32).eval()
    x = points(300, seed=9, dtype=torch.float32)
    with torch.no_grad():
        whole = model(x)
        chunks = torch.cat([model(part) for part in x.split(chunk)])
    torch.testing.assert_close(chunks, whole, rtol=1e-6, atol=1e-6)


def test_the_moving_average_follows_the_batches_by_the_momentum():
    layer = CrossNorm(3, momentum=0.25, dtype=torch.float64)
    first, second = torch.randn(8, 3, dtype=torch.float64), 5 + torch.randn(20, 3, dtype=torch.float64)
    layer(first)
    layer(second)
    domain = layer.domains["default"]
    torch.testing.assert_close(domain.running_mean, 0.75 * first.mean(0) + 0.25 * second.mean(0))
    torch.testing.assert_close(domain.running_var, 0.75 * first.var(0) + 0.25 * second.var(0))
    assert float(domain.running_rows) == 0.75 * 8 + 0.25 * 20
    for stored, running in zip(domain.stored(), domain.running(), strict=True):
        assert torch.equal(stored, running)


def test_rows_are_all_leading_dimensions():
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    flat, shaped = CrossNorm(6, dtype=torch.float64), CrossNorm(6, dtype=torch.float64)
    torch.testing.assert_close(shaped(x), flat(x.reshape(20, 6)).reshape(4, 5, 6))
    assert_same(buffers(flat), buffers(shaped))


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_passes_without_gradients_in_training_read_the_moving_average_and_leave_no_trace(name):
    layer = norm(name, 3)
    for seed in range(2):
        layer(points(20, seed))
    before = buffers(layer)
    with torch.no_grad():
        y = layer(points(7, seed=5))
    assert_same(before, buffers(layer))
    torch.testing.assert_close(y, layer.eval()(points(7, seed=5)))
    with torch.inference_mode():
        layer.train()(points(7, seed=5))
    assert_same(before, buffers(layer))


def test_before_any_statistics_a_pass_without_gradients_in_training_uses_its_own():
    layer, x = CrossNorm(3, dtype=torch.float64), points(20)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), functional.cross_norm(x, layer.weight, layer.bias))
    assert not layer.domains


def test_domains_do_not_leak():
    model = network("cn-released")
    train(model, domain="coarse")
    coarse = buffers(model)
    with norm_domain(model, "fine"):
        for seed in range(3):
            model(3 + points(50, seed))
        calibrate(model, [(3 + points(50, 9),)])
    after = buffers(model)
    assert_same(coarse, {name: after[name] for name in coarse})
    assert {name.split(".")[2] for name in after if "domains" in name} == {"coarse", "fine"}
    model.eval()
    outputs = {}
    for domain in ("coarse", "fine"):
        with norm_domain(model, domain):
            outputs[domain] = model(points(5))
    assert (outputs["coarse"] - outputs["fine"]).abs().max() > 0.05


def test_the_domain_is_restored_after_an_error_and_nests():
    model = network("bn")
    with norm_domain(model, "coarse"):
        with pytest.raises(KeyError), norm_domain(model, "fine"):
            assert {layer.domain for layer in norms_of(model)} == {"fine"}
            raise KeyError
        assert {layer.domain for layer in norms_of(model)} == {"coarse"}
    assert {layer.domain for layer in norms_of(model)} == {"default"}


def test_evaluation_in_an_unknown_domain_says_which_are_known():
    model = train(network("cn-released"), domain="coarse").eval()
    with pytest.raises(RuntimeError, match=r"domain 'mesh' \(known: coarse\).*calibrate"), norm_domain(model, "mesh"):
        model(points(5))


@pytest.mark.parametrize("name", ["", "a.b", "keys"])
def test_a_name_that_cannot_be_stored_is_no_domain(name):
    layer = CrossNorm(3)
    with pytest.raises(ValueError, match="cannot name a domain"), norm_domain(layer, name):
        layer(torch.zeros(2, 3))


def test_layer_norm_stores_nothing():
    model = train(network("ln"))
    assert not [name for name in model.state_dict() if "domains" in name]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (2, 0, 4), (6, 1), (1, 1)])
def test_degenerate_batches_are_finite_in_training_and_evaluation(name, shape):
    layer = norm(name, shape[-1], torch.float32)
    layer(torch.randn(9, shape[-1]))
    before = buffers(layer)
    x = torch.randn(shape).requires_grad_()
    for mode in (True, False):
        y = layer.train(mode)(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        assert y.shape == shape and all(torch.isfinite(t).all() for t in (y, *gradients))
    assert all(torch.isfinite(buffer).all() for buffer in layer.buffers())
    if x.numel() == 0:
        assert_same(before, buffers(layer))


@pytest.mark.parametrize("name", NORMS)
def test_none_and_affine_free_norms_can_stand_in_any_place(name):
    x = torch.randn(5, 4)
    assert not list(norm(name, 4, affine=False).parameters())
    assert norm(name, 4, torch.float32, affine=False)(x).shape == x.shape
    assert torch.equal(make_norm("none", 4)(x), x)


def test_wrong_arguments_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"CrossNorm over 8 channels .*\(5, 4\).*must be 8"):
        CrossNorm(8)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="num_channels"):
        CrossNorm(0)
    with pytest.raises(ValueError, match="momentum"):
        CrossNorm(3, momentum=0.0)
    for arguments in ({"variant": "other"}, {"statistics": "other"}):
        with pytest.raises(Exception, match="other"):  # beartype's error where it checks the types
            CrossNorm(3, **arguments)
    with pytest.raises(Exception, match="other"):
        make_norm("other", 3)


@pytest.mark.parametrize("name", NORMS)
def test_state_dict_round_trip_into_a_fresh_module(name):
    model = train(train(network(name, statistics="renorm"), domain="coarse"), domain="fine")
    with norm_domain(model, "fine"):
        calibrate(model, [(points(40, 8),)])
    fresh = network(name, seed=1, statistics="renorm")
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert_same(model.state_dict(), fresh.state_dict())
    for domain in ("coarse", "fine"):
        for mode in (False, True):
            with norm_domain(model.train(mode), domain), norm_domain(fresh.train(mode), domain):
                assert torch.equal(fresh(points(6)), model(points(6)))


def test_loading_drops_domains_that_belong_to_other_weights():
    initial = copy.deepcopy(network("cn-released").state_dict())
    model = train(network("cn-released", seed=1), domain="coarse")
    model.load_state_dict(train(network("cn-released"), domain="fine").state_dict())
    assert {domain for layer in norms_of(model) for domain in layer.domains} == {"fine"}
    model.load_state_dict(initial)
    assert not any(layer.domains for layer in norms_of(model))


def test_loading_another_part_of_a_model_leaves_the_norms_alone():
    model = train(network("cn-released"))
    before = buffers(model)
    model.load_state_dict({"6.bias": torch.ones(1)}, strict=False)
    assert_same(before, buffers(model))


def test_a_state_without_an_expected_entry_is_refused():
    state = train(network("bn")).state_dict()
    del state["1.domains.default.mean"]
    with pytest.raises(RuntimeError, match=r"1\.domains\.default\.mean"):
        network("bn").load_state_dict(state)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", NORMS)
def test_copies_are_equal_and_independent(name, duplicate):
    model = train(network(name))
    twin = duplicate(model)
    before = buffers(model)
    train(twin, batches=1)
    twin.eval()
    assert_same(before, buffers(model))
    torch.testing.assert_close(train(model, batches=1).eval()(points(5)), twin(points(5)))


def test_domains_follow_a_move_of_device_and_of_precision():
    model = train(network("cn-released", dtype=torch.float32), dtype=torch.float32).double()
    train(model, domain="fine")
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float64}
    on_meta = train(network("cn-released", dtype=torch.float32), dtype=torch.float32).to("meta")
    assert {buffer.device.type for buffer in on_meta.buffers()} == {"meta"}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_keeps_its_statistics_in_float32(name, dtype):
    layer = train(norm(name, 3, torch.float32), dtype=torch.float32).to(dtype)
    x = (100 + points(70_000)).to(dtype)  # more rows than float16 can count, sums beyond it
    for mode in (True, False):
        y = layer.train(mode)(x)
        assert y.dtype == dtype and torch.isfinite(y).all()
    stored = [buffer for key, buffer in layer.named_buffers() if "domains" in key]
    assert {buffer.dtype for buffer in stored} <= {torch.float32}
    assert layer.to(torch.float32).weight.dtype == torch.float32


@pytest.mark.parametrize("name", NORMS)
def test_autocast_keeps_statistics_in_float32(name):
    model = network(name, width=32, dtype=torch.float32)
    x = points(500, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        (gradient,) = torch.autograd.grad(y.float().sum(), x, create_graph=True)
    (y.float().mean() + gradient.norm(dim=1).mean()).backward()
    assert y.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    exact = network(name, width=32, dtype=torch.float32)(x)
    assert (y - exact).norm() < 0.05 * exact.norm()


def test_make_norm_gives_every_norm_the_common_base():
    for name in ("bn", "ln", "gn", "cn"):
        made = make_norm(name, 4, eps=1e-3)
        assert isinstance(made, Norm) and made.formula.name == name and made.formula.eps == 1e-3


@pytest.mark.parametrize("name", ["bn", "ln", "gn", "cn-released", "cn-paper"])
@pytest.mark.parametrize("training", [True, False])
def test_a_fused_relu_equals_one_behind_the_norm(name, training):
    fused, separate = norm(name, 4, relu=True), norm(name, 4)
    results = []
    for made, activation in ((fused, torch.nn.Identity()), (separate, torch.nn.ReLU())):
        made.bias.data.sub_(1)
        made(torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        x = points(20)[:, [0, 1, 2, 0]].requires_grad_()
        y = activation(made.train(training)(x))
        (spatial,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        second = torch.autograd.grad(spatial.square().sum(), [made.weight, x], retain_graph=True)
        results.append([y, spatial, *second, *torch.autograd.grad(y.cos().sum(), [made.weight, made.bias, x])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert 0.1 < (results[0][0] == 0).double().mean() < 0.9
