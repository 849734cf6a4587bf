"""The VolSDF methods: with Cross Normalization, the plain reference, and a tiny preset for laptops.

Registered with nerfstudio in pyproject.toml; loaded by every ns-* command, so nothing heavy or optional is imported.
"""

from __future__ import annotations

from nerfstudio.plugins.types import MethodSpecification

from crossnorm_ns.engine.schedulers import LogLinearSchedulerConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.models.volsdf import VolSDFModelConfig
from crossnorm_ns.norms import NormChoice
from method_configs.surface import surface_config, tiny_sdf_field


def _decay() -> LogLinearSchedulerConfig:
    return LogLinearSchedulerConfig(final_multiplier=0.1, delay_steps=0)


def tiny_config(
    method_name: str,
    norm: NormChoice,
    learning_rate: float = 2e-3,
    steps: int = 1500,
    color_norm: NormChoice | None = None,
) -> CrossNormTrainerConfig:
    """VolSDF that learns pictures of about 100x100 on two CPU cores in minutes, with masks, as `neus-cn-tiny` does.

    Networks of 4 x 64 and 2 x 64, 24 + 8 + 2 samples, 256 rays a step, from all pictures and not one. The colour's
    network has the other's norm unless it is given its own.
    """
    model = VolSDFModelConfig(
        sdf_norm=norm,
        color_norm=norm if color_norm is None else color_norm,
        sdf_field=tiny_sdf_field(),
        mask_loss_mult=0.1,
        num_samples=24,
        num_samples_even=24,
        num_samples_extra=8,
    )
    return surface_config(method_name, model, _decay(), learning_rate, rays=256, steps=steps, single_image=False)


volsdf_cn = MethodSpecification(
    config=surface_config("volsdf-cn", VolSDFModelConfig(), _decay(), 5e-4, rays=1024, steps=100_000),
    description="VolSDF as published, with error-bounded sampling, and Cross Normalization in both of its networks.",
)

volsdf_ref = MethodSpecification(
    config=surface_config(
        "volsdf-ref", VolSDFModelConfig(sdf_norm="none", color_norm="none"), _decay(), 5e-4, rays=1024, steps=100_000
    ),
    description="VolSDF as published (lioryariv/volsdf, dtu.conf), without norms: the reference for volsdf-cn.",
)

volsdf_cn_tiny = MethodSpecification(
    config=tiny_config("volsdf-cn-tiny", "cn"),
    description="volsdf-cn made small: learns pictures of about 100x100 on two CPU cores in minutes, with masks.",
)
