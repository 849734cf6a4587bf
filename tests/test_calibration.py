"""Population statistics for evaluation, gathered over training batches."""

import copy

import pytest
import torch
from norm_networks import WITH_COLUMNS, assert_same, buffers, network, norm, points, train
from torch import nn

from crossnorm_ns import CrossNorm, calibrate, norm_domain
from crossnorm_ns.functional import ColumnStatistics
from crossnorm_ns.functional.statistics import PopulationMoments
from crossnorm_ns.norms import norms_of


@pytest.mark.parametrize("sizes", [(16, 16, 16), (1, 40, 7), (5, 0, 300)])
@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_calibration_equals_statistics_over_all_batches(name, sizes):
    model = train(network(name))
    seen = [[] for _ in norms_of(model)]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, seen=seen[i]: seen.append(inputs[0]))
        for i, layer in enumerate(norms_of(model))
    ]
    calibrate(model, [(points(size, seed),) for seed, size in enumerate(sizes)])
    for hook in hooks:
        hook.remove()
    for layer, inputs in zip(norms_of(model), seen, strict=True):
        everything, stored = torch.cat(inputs), layer.domains["default"].stored()
        torch.testing.assert_close(stored.mean, everything.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(stored.var, everything.var(0), rtol=1e-6, atol=1e-6)
        assert float(stored.rows) == pytest.approx(sum(sizes) / sum(size > 0 for size in sizes))  # N of one batch


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_calibration_leaves_renormalised_norms_with_the_function_that_they_trained(name):
    model = train(network(name, statistics="renorm"))
    before = buffers(model)
    calibrate(model, [(points(30, seed) + 1,) for seed in range(3)])
    assert_same(buffers(model), before)


@pytest.mark.parametrize("enabled", [True, False])
def test_calibration_changes_nothing_but_what_evaluation_uses(enabled):
    model = train(network("cn-released"))
    model[1].eval()
    flags = [part.training for part in model.modules()]
    parameters = copy.deepcopy(model).state_dict()
    with torch.set_grad_enabled(enabled):
        calibrate(model, [(points(50, seed),) for seed in range(4)])
    assert flags == [part.training for part in model.modules()]
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, parameters[key])}
    assert changed == {
        f"{i}.domains.default.{statistic}" for i in (1, 4) for statistic in ("rows", "mean", "var")
    }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_goes_on_after_calibration_as_if_there_had_been_none():
    interrupted, plain = train(network("cn-paper")), train(network("cn-paper"))
    calibrate(interrupted, [(points(50, seed),) for seed in range(4)])
    with torch.no_grad():
        torch.testing.assert_close(interrupted(points(9)), plain(points(9)), rtol=0, atol=0)
    x = points(32, seed=5)
    assert torch.equal(interrupted(x), plain(x))
    assert_same(buffers(plain), buffers(interrupted))


def test_calibration_is_exact_for_data_far_from_zero():
    batches = [1e4 + torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)) for rows in (3, 100, 17)]
    layer = CrossNorm(3)
    calibrate(layer, [(batch,) for batch in batches])
    everything, stored = torch.cat(batches).double(), layer.domains["default"].stored()
    torch.testing.assert_close(stored.mean, everything.mean(0).float())
    torch.testing.assert_close(stored.var, everything.var(0).float(), rtol=1e-4, atol=0)


def test_a_batch_without_rows_in_any_process_counts_for_nothing():
    moments, nothing = PopulationMoments(), ColumnStatistics(0, torch.zeros(2), torch.zeros(2))
    for statistics in (nothing, nothing, ColumnStatistics(10, torch.ones(2), torch.full((2,), 4.0)), nothing):
        moments.update(statistics)
    rows, mean, var = moments.statistics()
    assert (rows, mean.tolist(), var.tolist()) == (10, [1.0, 1.0], [4.0, 4.0])


def test_a_failing_calibration_leaves_the_statistics_alone():
    model = train(network("bn"))
    before = buffers(model)

    def batches():
        yield (points(10),)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        calibrate(model, batches())
    with pytest.raises(ValueError, match="no batches"):
        calibrate(model, [])
    assert_same(before, buffers(model))
    model(points(10))
    assert not torch.equal(before["1.domains.default.mean"], buffers(model)["1.domains.default.mean"])


def test_calibrating_a_module_without_norms_does_nothing():
    calibrate(nn.Linear(2, 2), iter([(None,)]))


class Upsampling(nn.Module):
    """Looks at other points without gradients first, as NeuS does for its samples."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with torch.no_grad():
            self.sampled = self.layer(100 + x[:3])
        return self.layer(x)


def test_passes_without_gradients_are_not_counted_in_calibration():
    sampling, plain = Upsampling(norm("bn", 3)), norm("bn", 3)
    for seed in range(3):
        sampling(points(20, seed))
        plain(points(20, seed))
    batches = [(points(30, seed),) for seed in range(4)]
    calibrate(sampling, batches)
    calibrate(plain, batches)
    assert_same(buffers(plain), buffers(sampling.layer))


def test_one_calibration_serves_every_domain_that_it_enters():
    class TwoLevels(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = norm("bn", 3)

        def forward(self, x):
            for domain, shift in (("coarse", 0), ("fine", 5)):
                with norm_domain(self, domain):
                    self.layer(x + shift)

    model = TwoLevels()
    calibrate(model, [(points(10, seed),) for seed in range(3)])
    everything = torch.cat([points(10, seed) for seed in range(3)])
    for domain, shift in (("coarse", 0), ("fine", 5)):
        torch.testing.assert_close(model.layer.domains[domain].mean, everything.mean(0) + shift)
        torch.testing.assert_close(model.layer.domains[domain].var, everything.var(0))
