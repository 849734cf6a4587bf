"""The VolSDF methods: with Cross Normalization, the plain reference, and a tiny preset for laptops.

Registered with nerfstudio in pyproject.toml; loaded by every ns-* command, so nothing heavy or optional is imported.
"""

from __future__ import annotations

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig
from crossnorm_ns.data.dtu_dataset import DTUDataset
from crossnorm_ns.data.uniform_sampler import UniformPixelSamplerConfig
from crossnorm_ns.engine.pipeline import CrossNormPipelineConfig
from crossnorm_ns.engine.schedulers import LogLinearSchedulerConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.fields.sdf_field import SDFFieldConfig
from crossnorm_ns.models.volsdf import VolSDFModelConfig
from crossnorm_ns.norms import NormChoice


def _config(
    method_name: str, model: VolSDFModelConfig, learning_rate: float, rays: int, steps: int, single_image: bool = True
) -> CrossNormTrainerConfig:
    scheduler = LogLinearSchedulerConfig(final_multiplier=0.1, delay_steps=0)
    return CrossNormTrainerConfig(
        method_name=method_name,
        max_num_iterations=steps,
        steps_per_save=max(steps // 30, 500),
        steps_per_eval_batch=500,
        steps_per_eval_image=max(steps // 120, 500),
        steps_per_eval_all_images=steps,
        calibration_batches=20,
        mixed_precision=False,
        pipeline=CrossNormPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                _target=VanillaDataManager[DTUDataset],
                dataparser=DTUCNDataParserConfig(),
                train_num_rays_per_batch=rays,
                eval_num_rays_per_batch=rays,
                pixel_sampler=UniformPixelSamplerConfig(single_image=single_image),
            ),
            model=model,
        ),
        optimizers={"fields": {"optimizer": AdamOptimizerConfig(lr=learning_rate), "scheduler": scheduler}},
        viewer=ViewerConfig(num_rays_per_chunk=512, websocket_host="127.0.0.1"),
        vis="tensorboard",
    )


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
        sdf_field=SDFFieldConfig(
            sdf_depth=4, sdf_width=64, sdf_skip=None, num_features=64, color_depth=2, color_width=64
        ),
        mask_loss_mult=0.1,
        num_samples=24,
        num_samples_even=24,
        num_samples_extra=8,
    )
    return _config(method_name, model, learning_rate, rays=256, steps=steps, single_image=False)


volsdf_cn = MethodSpecification(
    config=_config("volsdf-cn", VolSDFModelConfig(), 5e-4, rays=1024, steps=100_000),
    description="VolSDF as published, with error-bounded sampling, and Cross Normalization in both of its networks.",
)

volsdf_ref = MethodSpecification(
    config=_config("volsdf-ref", VolSDFModelConfig(sdf_norm="none", color_norm="none"), 5e-4, rays=1024, steps=100_000),
    description="VolSDF as published (lioryariv/volsdf, dtu.conf), without norms: the reference for volsdf-cn.",
)

volsdf_cn_tiny = MethodSpecification(
    config=tiny_config("volsdf-cn-tiny", "cn"),
    description="volsdf-cn made small: learns pictures of about 100x100 on two CPU cores in minutes, with masks.",
)
