"""nerfstudio's own vanilla NeRF and nerfacto with Cross Normalization, as the example for other fields.

Registered with nerfstudio in pyproject.toml; loaded by every ns-* command, so nothing heavy or optional is imported.
Apart from trainer, pipeline, data manager and norms the settings are those of nerfstudio's `vanilla-nerf`, `nerfacto`.
"""

from __future__ import annotations

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig, RAdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.data.blender_dataset import BlenderDataset
from crossnorm_ns.engine.pipeline import CrossNormPipelineConfig
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.models.nerfacto import NerfactoCNModelConfig
from crossnorm_ns.models.vanilla_nerf import VanillaNeRFCNModelConfig

vanilla_nerf_cn = MethodSpecification(
    config=CrossNormTrainerConfig(
        method_name="vanilla-nerf-cn",
        pipeline=CrossNormPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                _target=VanillaDataManager[BlenderDataset], dataparser=BlenderCNDataParserConfig()
            ),
            model=VanillaNeRFCNModelConfig(),
        ),
        optimizers={
            "fields": {"optimizer": RAdamOptimizerConfig(lr=5e-4, eps=1e-08), "scheduler": None},
            "temporal_distortion": {"optimizer": RAdamOptimizerConfig(lr=5e-4, eps=1e-08), "scheduler": None},
        },
        viewer=ViewerConfig(num_rays_per_chunk=4096, websocket_host="127.0.0.1"),
        vis="tensorboard",
    ),
    description="nerfstudio's vanilla-nerf with Cross Normalization, as the example for fields of your own.",
)


def _decaying(learning_rate: float, final: float, steps: int) -> dict:
    return {
        "optimizer": AdamOptimizerConfig(lr=learning_rate, eps=1e-15),
        "scheduler": ExponentialDecaySchedulerConfig(lr_final=final, max_steps=steps),
    }


nerfacto_cn = MethodSpecification(
    config=CrossNormTrainerConfig(
        method_name="nerfacto-cn",
        steps_per_eval_batch=500,
        steps_per_save=2000,
        max_num_iterations=30000,
        mixed_precision=True,
        pipeline=CrossNormPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                _target=VanillaDataManager[BlenderDataset],
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
            ),
            model=NerfactoCNModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                average_init_density=0.01,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
            ),
            find_unused_parameters=True,
        ),
        optimizers={
            "proposal_networks": _decaying(1e-2, 1e-4, 200_000),
            "fields": _decaying(1e-2, 1e-4, 200_000),
            "camera_opt": _decaying(1e-3, 1e-4, 5_000),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
        vis="tensorboard",
    ),
    description="nerfstudio's nerfacto in plain PyTorch with Cross Normalization, as a second example of that.",
)
