"""nerfstudio's own models with norms, trained by two processes: a step as one process makes it of the whole batch."""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.base_model import Model, ModelConfig
from processes import in_processes, needs_gloo
from test_elsewhere_methods import METHODS, SMALL, make_rays
from torch import nn

from crossnorm_ns.engine.pipeline import shared_model

pytestmark = needs_gloo
RAYS, PROCESSES = 24, 2
STEPS = (0, 11)
"""The second is one in which nerfacto's proposal networks rest."""


class Dataset:
    """What a pipeline asks a dataset for."""

    scene_box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    metadata: dict[str, Any] = {}

    def __len__(self) -> int:
        return 4


@dataclass
class RaysConfig(InstantiateConfig):
    """Which rays of each step a process is given."""

    _target: type = field(default_factory=lambda: Rays)
    first: int = 0
    count: int = RAYS


class Rays(nn.Module):
    """Stands in for nerfstudio's data manager: the same rays in each run."""

    train_dataset = Dataset()

    def __init__(self, config: RaysConfig, **_: Any) -> None:
        super().__init__()
        self.take = slice(config.first, config.first + config.count)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, torch.Tensor]]:
        rays = make_rays(RAYS, seed=step)
        image = torch.rand(RAYS, 3, generator=torch.Generator().manual_seed(step))
        return rays[self.take], {"image": image[self.take]}


def train(name: str, rank: int = 0, processes: int = 1) -> list[dict[str, Any]]:
    """Gradients and losses of each step on some of its rays, and the statistics behind the last step."""
    settings: Any = METHODS[name].config.pipeline
    own = RAYS // processes
    data, model = RaysConfig(first=rank * own, count=own), replace(settings.model, **SMALL[name])
    torch.manual_seed(rank)  # of several processes, weights other than the first's
    pipeline = replace(settings, datamanager=data, model=model).setup(device="cpu", world_size=processes)
    for part in pipeline.modules():  # samplers without chance: each ray's samples are the same in every process
        if hasattr(part, "train_stratified"):
            part.train_stratified = False
    pipeline.train()
    optimizer = torch.optim.SGD([p for group in pipeline.model.get_param_groups().values() for p in group], lr=1e-2)
    steps = []
    for step in STEPS:
        if name == "nerfacto-cn":
            pipeline.model.proposal_sampler.step_cb(step)
        optimizer.zero_grad()
        _, losses, _ = pipeline.get_train_loss_dict(step)
        sum(losses.values()).backward()
        gradients = {
            key: p.grad.clone() for key, p in pipeline.model.named_parameters() if p.numel() and p.grad is not None
        }
        steps.append({"gradients": gradients, "losses": {key: loss.detach() for key, loss in losses.items()}})
        optimizer.step()
    return [*steps, {"statistics": {key: value.clone() for key, value in pipeline.model.named_buffers()}}]


def train_all(rank: int) -> dict[str, Any]:
    """What one of the processes sees of each method."""
    return {name: train(name, rank, PROCESSES) for name in METHODS}


@functools.cache
def whole(name: str) -> list[dict[str, Any]]:
    """The same of one process that has all rays."""
    return train(name)


@pytest.fixture(scope="module", autouse=True)
def in_double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return in_processes(PROCESSES, tmp_path_factory.mktemp("ranks"), train_all)


@pytest.mark.parametrize("name", METHODS)
def test_processes_have_the_gradients_and_losses_of_one_with_the_whole_batch(ranks, name: str):
    for step, wanted in enumerate(whole(name)[:-1]):
        found = [rank[name][step] for rank in ranks]
        for key, loss in wanted["losses"].items():
            mean = torch.stack([part["losses"][key] for part in found]).mean()
            torch.testing.assert_close(mean, loss, rtol=1e-9, atol=0)
        size = torch.cat([gradient.flatten() for gradient in wanted["gradients"].values()]).norm()
        for part in found:
            assert part["gradients"].keys() == wanted["gradients"].keys()
            for key, gradient in wanted["gradients"].items():
                error = (part["gradients"][key] - gradient).norm()
                assert error < 1e-9 * (gradient.norm() + 1e-3 * size), key


@pytest.mark.parametrize("name", METHODS)
def test_processes_store_the_statistics_of_one_with_the_whole_batch(ranks, name: str):
    for rank in ranks:
        torch.testing.assert_close(rank[name][-1]["statistics"], whole(name)[-1]["statistics"])


def test_proposal_networks_of_nerfacto_rest_in_the_second_step():
    trained = [{key.split(".")[0] for key in step["gradients"]} for step in whole("nerfacto-cn")[:-1]]
    assert [("proposal_networks" in parts) for parts in trained] == [True, False]


# --- Buffers


class Drawn(Model):
    """Has a buffer that is drawn at random, as random Fourier features have."""

    def populate_modules(self) -> None:
        self.frequencies = nn.Buffer(torch.randn(3))
        self.own = nn.Buffer(torch.zeros(()))
        self.layer = nn.Linear(3, 1)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"rgb": self.layer(ray_bundle.origins * self.frequencies)}


def share_a_model(rank: int) -> list[torch.Tensor]:
    torch.manual_seed(rank)
    model = Drawn(ModelConfig(enable_collider=False), scene_box=Dataset.scene_box, num_train_data=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = shared_model(model)
    model.own.fill_(rank)
    shared(make_rays(4))["rgb"].sum().backward()
    return [model.frequencies, model.own]


def test_processes_begin_with_the_buffers_of_the_first_without_a_warning_and_send_none_later(tmp_path) -> None:
    results = in_processes(PROCESSES, tmp_path, share_a_model)
    for frequencies, _ in results:
        assert torch.equal(frequencies, torch.randn(3, generator=torch.Generator().manual_seed(0)))
    assert [int(own) for _, own in results] == [0, 1]
