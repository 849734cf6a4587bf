"""nerfstudio's pipeline, whose model one or several processes train, on any device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch.nn.parallel import DistributedDataParallel

from crossnorm_ns.engine.processes import mean_in_order
from crossnorm_ns.norms import convert_sync


@dataclass
class CrossNormPipelineConfig(VanillaPipelineConfig):
    """Configuration of a pipeline whose norms see the whole batch of all processes."""

    _target: type = field(default_factory=lambda: CrossNormPipeline)
    find_unused_parameters: bool = False
    """With several processes: looks in each step for parameters that take no part in it. Needed where some rest, as
    nerfacto's proposal networks do in most steps."""


class CrossNormPipeline(VanillaPipeline):
    """Trains with several processes as with one that has the rays of all.

    Each process draws `train_num_rays_per_batch` rays of its own.
    """

    def __init__(
        self,
        config: CrossNormPipelineConfig,
        device: torch.device | str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__(config, str(device), test_mode, grad_scaler=grad_scaler)  # which takes several with NCCL alone
        self.world_size = world_size
        if world_size > 1:
            self._model = cast(Model, shared_model(self._model, config.find_unused_parameters))


def shared_model(model: Model, find_unused_parameters: bool = False) -> DistributedDataParallel:
    """The model as all processes of torch.distributed train it, from the weights and buffers of the first.

    Norms reduce their statistics over the processes, so their buffers stay the same everywhere by themselves. On CPUs a
    training repeats to the bit, also where it is stopped and goes on.

    Args:
        model: is changed in place.
        find_unused_parameters: where some parameters take no part in some steps.
    """
    model.device_indicator_param.requires_grad_(False)  # nerfstudio's; DDP would wait for its gradient
    on_gpu = model.device.type == "cuda"
    shared = DistributedDataParallel(
        convert_sync(model),
        device_ids=[model.device] if on_gpu else None,
        find_unused_parameters=find_unused_parameters,
    )
    shared.broadcast_buffers = False  # as an argument it would also leave out the first broadcast
    if not on_gpu:
        shared.register_comm_hook(None, lambda _, bucket: mean_in_order(bucket.buffer()))
    return shared
