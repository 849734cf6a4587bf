"""The mip-NeRF methods: with Cross Normalization, the plain reference, and a tiny preset for laptops.

Registered with nerfstudio in pyproject.toml; loaded by every ns-* command, so nothing heavy or optional is imported.
"""

from __future__ import annotations

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.data.blender_dataset import BlenderDataset
from crossnorm_ns.engine.pipeline import CrossNormPipelineConfig
from crossnorm_ns.engine.schedulers import LogLinearSchedulerConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.models.mipnerf import MipNeRFModelConfig
from crossnorm_ns.norms import NormChoice


def _config(
    method_name: str,
    model: MipNeRFModelConfig,
    scheduler: LogLinearSchedulerConfig,
    learning_rate: float,
    rays: int,
    steps: int,
) -> CrossNormTrainerConfig:
    return CrossNormTrainerConfig(
        method_name=method_name,
        max_num_iterations=steps,
        steps_per_save=max(steps // 100, 500),
        steps_per_eval_batch=500,
        steps_per_eval_image=max(steps // 100, 500),
        steps_per_eval_all_images=steps,
        mixed_precision=False,
        pipeline=CrossNormPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                _target=VanillaDataManager[BlenderDataset],
                dataparser=BlenderCNDataParserConfig(),
                train_num_rays_per_batch=rays,
                eval_num_rays_per_batch=rays,
            ),
            model=model,
        ),
        optimizers={"fields": {"optimizer": AdamOptimizerConfig(lr=learning_rate), "scheduler": scheduler}},
        viewer=ViewerConfig(num_rays_per_chunk=4096, websocket_host="127.0.0.1"),
        vis="tensorboard",
    )


def tiny_config(method_name: str, norm: NormChoice, learning_rate: float, steps: int = 4000) -> CrossNormTrainerConfig:
    """mip-NeRF that learns 100x100 images on two CPU cores in minutes: 8 x 64, 24 + 24 samples, 256 rays a step."""
    model = MipNeRFModelConfig(
        norm=norm,
        width=64,
        head_width=32,
        num_samples=24,
        point_degrees=10,
        eval_num_rays_per_chunk=1024,
    )
    scheduler = LogLinearSchedulerConfig(final_multiplier=0.05, delay_steps=50)
    return _config(method_name, model, scheduler, learning_rate, rays=256, steps=steps)


mipnerf_cn = MethodSpecification(
    config=_config(
        "mipnerf-cn", MipNeRFModelConfig(norm="cn"), LogLinearSchedulerConfig(), 5e-4, rays=4096, steps=1_000_000
    ),
    description="mip-NeRF as published, with Cross Normalization before every ReLU.",
)

mipnerf_ref = MethodSpecification(
    config=_config(
        "mipnerf-ref", MipNeRFModelConfig(norm="none"), LogLinearSchedulerConfig(), 5e-4, rays=4096, steps=1_000_000
    ),
    description="mip-NeRF as published (google/mipnerf), without norms: the reference for mipnerf-cn.",
)

mipnerf_cn_tiny = MethodSpecification(
    config=tiny_config("mipnerf-cn-tiny", "cn", 5e-3),
    description="mipnerf-cn made small: learns 100x100 images on two CPU cores in minutes.",
)
