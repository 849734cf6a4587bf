"""The NeuS methods: with Cross Normalization, the plain reference, and a tiny preset for laptops.

Registered with nerfstudio in pyproject.toml; loaded by every ns-* command, so nothing heavy or optional is imported.
"""

from __future__ import annotations

from nerfstudio.plugins.types import MethodSpecification

from crossnorm_ns.engine.schedulers import WarmupCosineSchedulerConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.models.neus import NeuSModelConfig
from crossnorm_ns.norms import NormChoice
from method_configs.surface import surface_config, tiny_sdf_field


def tiny_config(
    method_name: str,
    norm: NormChoice,
    learning_rate: float = 2e-3,
    steps: int = 1500,
    color_norm: NormChoice | None = None,
) -> CrossNormTrainerConfig:
    """NeuS that learns pictures of about 100x100 on two CPU cores in minutes.

    Networks of 4 x 64 and 2 x 64, 24 + 24 samples, 256 rays a step, from all pictures and not one, which gives norms
    statistics of the whole scene. The colour's network has the other's norm unless it is given its own.
    """
    model = NeuSModelConfig(
        sdf_norm=norm,
        color_norm=norm if color_norm is None else color_norm,
        sdf_field=tiny_sdf_field(),
        num_samples=24,
        num_importance=24,
    )
    scheduler = WarmupCosineSchedulerConfig(warmup_steps=50)
    return surface_config(method_name, model, scheduler, learning_rate, rays=256, steps=steps, single_image=False)


neus_cn = MethodSpecification(
    config=surface_config("neus-cn", NeuSModelConfig(), WarmupCosineSchedulerConfig(), 5e-4, rays=512, steps=300_000),
    description="NeuS as published, with masks, and Cross Normalization in both of its networks.",
)

neus_ref = MethodSpecification(
    config=surface_config(
        "neus-ref",
        NeuSModelConfig(sdf_norm="none", color_norm="none"),
        WarmupCosineSchedulerConfig(),
        5e-4,
        rays=512,
        steps=300_000,
    ),
    description="NeuS as published (Totoro97/NeuS, wmask.conf), without norms: the reference for neus-cn.",
)

neus_cn_tiny = MethodSpecification(
    config=tiny_config("neus-cn-tiny", "cn"),
    description="neus-cn made small: learns pictures of about 100x100 on two CPU cores in minutes.",
)
