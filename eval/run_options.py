"""What tells a run's configuration apart from that of its method as registered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

PARTS = ("pipeline", "optimizers", "mixed_precision", "gradient_accumulation_steps")
"""Of a configuration, that say what is trained; steps, seed and data are noted elsewhere."""
WITHOUT_EFFECT = (
    "_target",
    "data",
    "allow_outside",
    "downscale_factor",
    "camera_res_scale_factor",
    "eval_num_rays_per_batch",
    "eval_num_rays_per_chunk",
    "eval_lpips",
    "num_processes",
    "dataloader_num_workers",
    "images_on_gpu",
    "masks_on_gpu",
)
"""Fields that change nothing that is trained, or that results name by themselves: data and the size of pictures."""


def changed_options(config: TrainerConfig) -> dict[str, str | int | float | bool | None] | None:
    """Options in which a configuration differs from its method's as registered, by the names that ns-train knows.

    A dataparser of another kind is compared with that kind's own defaults. None where there is no such method.
    """
    from nerfstudio.configs.method_configs import all_methods

    registered = all_methods.get(str(config.method_name))
    if registered is None:
        return None
    parser: Any = getattr(config.pipeline.datamanager, "dataparser", None)
    own: Any = getattr(registered.pipeline.datamanager, "dataparser", None)
    before = dict(_options(registered))
    if parser is not None and type(own) is not type(parser):
        before |= dict(_of(type(parser)(), "datamanager.dataparser"))
    return {
        name: value if isinstance(value, str | int | float | None) else str(value)
        for name, value in _options(config)
        if name not in before or before[name] != value
    }


def _options(config: TrainerConfig) -> Iterator[tuple[str, Any]]:
    for part in PARTS:
        yield from _of(getattr(config, part), "" if part == "pipeline" else part)


def _of(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if not isinstance(value, dict):
        yield name.replace("_", "-"), list(value) if isinstance(value, tuple) else value
        return
    for key, part in value.items():
        if key not in WITHOUT_EFFECT:
            yield from _of(part, f"{name}.{key}".lstrip("."))
