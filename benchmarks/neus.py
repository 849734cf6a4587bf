"""What norms cost in NeuS: the tables of docs/PERFORMANCE.md.

    python -m benchmarks.neus step      # time of a training step with norms over that of one without
    python -m benchmarks.neus profile   # where a training step's time goes

A step draws samples, renders, and takes the losses' gradients (through the normals, so twice through the network of the
signed distance) and one step of Adam. The rays are synthetic, so that neither data nor logging takes part. Times are
medians of paired ratios (see benchmarks.norms).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor
from torch.nn import functional

from benchmarks.norms import paired_ratio
from benchmarks.tables import conditions, store, table
from benchmarks.training_steps import Step, operator_table, operator_times
from crossnorm_ns.memory import keep_freed_memory
from crossnorm_ns.models.neus import NeuSModel
from crossnorm_ns.norms import NormChoice
from method_configs.neus import neus_ref, tiny_config

PLACES: dict[str, tuple[NormChoice, NormChoice]] = {
    "neus-cn: CN in both networks": ("cn", "cn"),
    "CN in the signed distance's network": ("cn", "none"),
    "CN in the colour's network": ("none", "cn"),
    "BN in both networks": ("bn", "bn"),
    "LN in both networks": ("ln", "ln"),
}
NEUS_CN = "neus-cn: CN in both networks"
_RAYS = {"tiny": 256, "full": 32}


@dataclass
class Options:
    """Measures or profiles a training step of NeuS with norms beside one without."""

    what: Annotated[Literal["step", "profile"], tyro.conf.Positional]
    """Ratios of times, or operators of a step."""
    preset: Literal["tiny", "full"] = "tiny"
    """The tiny preset, or the published size."""
    rays: int | None = None
    """Of a step; None takes the 256 of the tiny preset, or 32 of the 512 of the published size."""
    seconds: float = 20.0
    """For each ratio."""
    steps: int = 10
    """That are profiled."""
    shown: int = 16
    """Operators that the profile names."""
    docs: Path = Path("docs")
    """Where results/neus-step.md or neus-profile.md go."""
    threads: int = os.cpu_count() or 1
    """Of torch and of the kernels."""


def training_step(sdf_norm: NormChoice, color_norm: NormChoice, options: Options) -> Step:
    """A function that takes one training step of a new model each time it is called."""
    torch.manual_seed(0)
    config: Any = tiny_config("", sdf_norm, color_norm=color_norm).pipeline.model
    if options.preset == "full":
        config = neus_ref.config.pipeline.model
        config = type(config)(sdf_norm=sdf_norm, color_norm=color_norm)
    model: NeuSModel = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1)
    model.train()
    optimizer = torch.optim.Adam(model.get_param_groups()["fields"], lr=1e-4)
    rays, batch = _rays_of_a_sphere(options.rays or _RAYS[options.preset])

    def step() -> None:
        optimizer.zero_grad()
        losses = model.get_loss_dict(model(rays), batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def _rays_of_a_sphere(count: int, radius: float = 0.5) -> tuple[RayBundle, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    origins = 2.5 * functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    aims = 0.35 * torch.randn(count, 3, generator=generator)
    directions = functional.normalize(aims - origins, dim=-1)
    nearest = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1, keepdim=True)
    rays = RayBundle(
        origins=origins,
        directions=directions,
        pixel_area=torch.ones(count, 1),
        metadata={"directions_norm": torch.ones(count, 1)},
    )
    return rays, {"image": torch.rand(count, 3, generator=generator), "mask": (nearest < radius).float()}


def step_table(options: Options) -> str:
    """Ratios of the time of a step, for each place of each norm."""
    rows = []
    for name, norms in PLACES.items():
        ours, theirs = training_step(*norms, options), training_step("none", "none", options)
        rows.append([name, f"{paired_ratio(ours, theirs, options.seconds):.2f}"])
    return (
        f"Time of a training step over that of neus-ref, {_size(options)}; {conditions()}.\n\n"
        f"{table(['norms', 'ratio'], rows)}"
    )


def profile_table(options: Options) -> str:
    """Milliseconds of a step by operator, without a norm and with CN, each without the operators that it calls."""
    plain = operator_times(training_step("none", "none", options), options.steps)
    cross = operator_times(training_step(*PLACES[NEUS_CN], options), options.steps)
    return (
        f"Mean of {options.steps} steps, {_size(options)}; {conditions()}.\n\n"
        f"{operator_table(plain, cross, options.shown)}"
    )


def _size(options: Options) -> str:
    return f"{options.preset} preset, {options.rays or _RAYS[options.preset]} rays"


def main(options: Options) -> None:
    """Measures, stores and prints."""
    torch.set_num_threads(options.threads)
    if options.what == "step":
        store(options.docs, "neus-step", step_table(options))
    else:
        store(options.docs, "neus-profile", profile_table(options))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Options))
