"""Two processes with synchronized norms against one process with the whole batch."""

import pytest
import torch
from norm_networks import WITH_COLUMNS, network, norm, points
from torch import distributed, multiprocessing

from benchmarks.synchronization import norm_messages, single_member_group
from crossnorm_ns import calibrate, convert_sync
from crossnorm_ns.norms import norms_of

SPLITS = {"uneven": (5, 11), "one without rows": (16, 0)}
MODES = ["batch", "renorm"]
CASES = [(name, split, mode) for name in WITH_COLUMNS for split in SPLITS for mode in MODES]


def step(model, x, second_order):
    """Outputs and parameter gradients of one training step; every loss is a sum, so that those of ranks add up."""
    model.zero_grad()
    y = model(x)
    loss = y.sin().sum()
    if second_order:
        moved = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(moved).sum(), moved, create_graph=True)
        loss = loss + gradient.square().sum(1).add(1e-3).sqrt().sub(1).square().sum()
    loss.backward()
    return {"y": y.detach(), "gradients": [p.grad.clone() for p in model.parameters()]}


def run_case(rank, name, split, mode):
    """What one rank (None: the only process) sees in two training steps and a calibration."""
    model = convert_sync(network(name, statistics=mode))
    sizes = SPLITS[split]

    def own(x):
        return x if rank is None else x.split(sizes)[rank]

    model(own(points(16, 3)))
    results = [step(model, own(points(16, 1)), second_order=False), step(model, own(points(16, 2)), second_order=True)]
    calibrate(model, [(own(points(16, seed)),) for seed in range(3)])
    return {"steps": results, "buffers": dict(model.named_buffers())}


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {case: run_case(rank, *case) for case in CASES}
    large = convert_sync(norm("cn-released", 8, torch.float32))
    results["large mean"] = large(large_batch().split([100, 1900])[rank]).detach()
    empty = convert_sync(norm("bn", 3))
    y = empty(torch.zeros(0, 3, dtype=torch.float64))
    results["no rows at all"] = [y, *(buffer.clone() for buffer in empty.buffers())]
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def large_batch():
    return 1e4 + torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both processes."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name, split, mode", CASES)
def test_two_processes_equal_one_with_the_whole_batch(ranks, name, split, mode):
    alone = run_case(None, name, split, mode)
    both = [rank[name, split, mode] for rank in ranks]
    for i, expected in enumerate(alone["steps"]):
        steps = [rank["steps"][i] for rank in both]
        torch.testing.assert_close(torch.cat([found["y"] for found in steps]), expected["y"])
        for *parts, whole in zip(*(found["gradients"] for found in steps), expected["gradients"], strict=True):
            torch.testing.assert_close(sum(parts), whole)
    for rank in both:
        torch.testing.assert_close(rank["buffers"], alone["buffers"])


def test_a_large_mean_keeps_its_precision_across_processes(ranks):
    exact = large_batch().double()
    y = torch.cat([rank["large mean"] for rank in ranks]).double()
    expected = norm("cn-released", 8)(exact)
    assert (y - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_step_without_rows_in_any_process_stays_finite(ranks):
    for rank in ranks:
        assert all(torch.isfinite(t).all() for t in rank["no rows at all"])


def test_without_processes_nothing_changes():
    plain, converted = network("cn-released"), network("cn-released")
    assert convert_sync(converted) is converted
    assert all(layer.synchronized for layer in norms_of(converted))
    assert torch.equal(converted(points(9)), plain(points(9)))


@pytest.mark.parametrize(("second_order", "numbers"), [(False, 4), (True, 6)])
def test_what_a_norm_exchanges_in_a_step_depends_on_its_channels_alone(second_order, numbers):
    with single_member_group():
        for rows in (10, 1000):
            for channels in (5, 64):
                sizes = norm_messages("cn", channels, rows, second_order)
                assert sum(sizes) == torch.float32.itemsize * (numbers * channels + 1)
