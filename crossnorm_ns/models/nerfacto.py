"""nerfstudio's nerfacto with a norm before each hidden ReLU of its field and of its proposal networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.fields.base_field import Field
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor
from torch.nn import functional

from crossnorm_ns.models.optional_lpips import OptionalLPIPS
from crossnorm_ns.norms import NormChoice, insert_norms, norm_domain

_ALWAYS_TRAINED = 10  # nerfstudio's sampler: the last step up to which proposal networks are trained in each


@dataclass
class NerfactoCNModelConfig(NerfactoModelConfig):
    """nerfstudio's nerfacto in plain PyTorch with a choice of norm; all else is its own."""

    _target: type = field(default_factory=lambda: NerfactoCNModel)
    implementation: Literal["tcnn", "torch"] = "torch"
    """torch, on the CPU or a GPU: the fused networks of tiny-cuda-nn have no place for a norm and are refused."""
    norm: NormChoice = "cn"
    """Norm before each hidden ReLU of all networks behind the hash grids: none (nerfstudio's model as it is), batch,
    layer, global or cross normalization."""
    norm_variant: Literal["released", "paper"] = "released"
    """Form of the cross normalization: that of the released code, or that of the paper's section 4.3."""
    norm_statistics: Literal["renorm", "batch"] = "renorm"
    """Training statistics: the moving average's values with the batch's gradients, so that the proposal networks are
    one function in the steps that train them and in those that only read them; or the batch's."""
    eval_lpips: bool = False
    """Reports LPIPS too, whose weights nerfstudio loads from the network before the training."""


class NerfactoCNModel(OptionalLPIPS, NerfactoModel):
    """The field and each round of proposals have statistics of their own."""

    config: NerfactoCNModelConfig

    def populate_modules(self) -> None:
        """Builds nerfstudio's model, then puts the norms in.

        Raises:
            ValueError: the networks are tiny-cuda-nn's.
        """
        super().populate_modules()
        config = self.config
        for networks in (self.field, self.proposal_networks):
            insert_norms(networks, config.norm, variant=config.norm_variant, statistics=config.norm_statistics)
        last = len(self.proposal_networks) - 1
        self.density_fns = [
            partial(_density_in_domain, self.proposal_networks[min(i, last)], f"proposal_{i}")
            for i in range(config.num_proposal_iterations)
        ]
        self.field.get_normals = MethodType(_normals_of_points, self.field)
        self._schedule = (0, 0)  # a step, and how many steps before it the proposal networks were trained

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """nerfstudio's, behind one that keeps its schedule exact."""
        first = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.follow_schedule)
        return [first, *super().get_training_callbacks(training_callback_attributes)]

    def follow_schedule(self, step: int) -> None:
        """Decides whether a step trains the proposal networks by its number alone, as an undisturbed training would.

        nerfstudio's sampler also counts passes of evaluation and of calibration, and begins anew in a resumed run.
        """
        sampler = self.proposal_sampler
        start, since = self._schedule if self._schedule[0] <= step else (0, 0)
        for earlier in range(start, step):
            trained = earlier <= _ALWAYS_TRAINED or since > sampler.update_sched(earlier - 1)
            since = 1 if trained else since + 1
        self._schedule = step, since
        sampler._step, sampler._steps_since_update = max(step - 1, 0), since


def _density_in_domain(proposals: Any, domain: str, positions: Tensor) -> Tensor:
    """What the sampler asks for; one network may serve several rounds."""
    with norm_domain(proposals, domain):
        return proposals.density_fn(positions)


def _normals_of_points(nerf: Field) -> Tensor:
    """What `Field.get_normals` is for, of each point alone.

    Norms hold the statistics of the batch constant in a backward pass that builds a graph, which nerfstudio's is not.
    """
    density, positions = nerf._density_before_activation, nerf._sample_locations
    assert density is not None and positions is not None
    (gradients,) = torch.autograd.grad(density.sum(), positions, create_graph=True)
    return -functional.normalize(gradients.detach(), dim=-1)
