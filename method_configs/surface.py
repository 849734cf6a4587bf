"""What the methods of signed distance fields share: data, trainer and the networks of their tiny presets."""

from __future__ import annotations

from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import SchedulerConfig

from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig
from crossnorm_ns.data.dtu_dataset import DTUDataset
from crossnorm_ns.data.uniform_sampler import UniformPixelSamplerConfig
from crossnorm_ns.engine.pipeline import CrossNormPipelineConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.fields.sdf_field import SDFFieldConfig
from crossnorm_ns.models.surface import SurfaceModelConfig


def surface_config(
    method_name: str,
    model: SurfaceModelConfig,
    scheduler: SchedulerConfig,
    learning_rate: float,
    rays: int,
    steps: int,
    single_image: bool = True,
) -> CrossNormTrainerConfig:
    """A training on a scan in the layout of IDR and NeuS, all parameters in one group."""
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


def tiny_sdf_field() -> SDFFieldConfig:
    """Networks of 4 x 64 and 2 x 64."""
    return SDFFieldConfig(sdf_depth=4, sdf_width=64, sdf_skip=None, num_features=64, color_depth=2, color_width=64)
