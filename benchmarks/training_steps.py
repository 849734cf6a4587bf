"""Training steps of mip-NeRF to be measured, and where any step's time goes."""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import table

Step = Callable[[], object]
Preset = tuple[Any, Any, int]
"""Configuration without a norm, configuration with CN, rays of a step."""


def mipnerf_presets(tiny_rays: int, full_rays: int) -> dict[str, Preset]:
    """The tiny and the published size of mip-NeRF by their descriptions."""
    from method_configs.mipnerf import mipnerf_cn, mipnerf_ref, tiny_config

    tiny = tiny_config("mipnerf-ref-tiny", "none", 5e-3), tiny_config("mipnerf-cn-tiny", "cn", 5e-3), tiny_rays
    return {
        f"tiny: 8 x 64, 24 + 24 samples, {tiny_rays} rays": tiny,
        f"full: 8 x 256, 128 + 128 samples, {full_rays} rays of 4096": (
            mipnerf_ref.config,
            mipnerf_cn.config,
            full_rays,
        ),
    }


@contextlib.contextmanager
def training_steps(preset: Preset, device: str = "cpu") -> Iterator[tuple[Step, Step]]:
    """Steps of nerfstudio's trainer without a norm and with CN, on a generated scene of 40x40 pixels."""
    from crossnorm_ns.data import make_scene

    plain, cross, rays = preset
    with tempfile.TemporaryDirectory() as folder:
        scene, runs = Path(folder) / "scene", Path(folder) / "runs"
        with contextlib.redirect_stdout(sys.stderr):
            make_scene.blender(scene, resolution=40, train=4, val=0, test=1, supersampling=1)
        yield _step(plain, rays, scene, runs, device), _step(cross, rays, scene, runs, device)


def _step(config: Any, rays: int, scene: Path, runs: Path, device: str) -> Step:
    config = copy.deepcopy(config)
    config.output_dir, config.timestamp, config.vis = runs, "run", "tensorboard"
    config.machine.device_type = device
    config.pipeline.datamanager.data = scene
    config.pipeline.datamanager.train_num_rays_per_batch = rays
    with contextlib.redirect_stdout(sys.stderr):
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup(test_mode="test")
    trainer.pipeline.train()
    return partial(trainer.train_iteration, 1)


def operator_times(step: Step, steps: int) -> dict[str, float]:
    """Milliseconds of a step by operator, each without the operators that it calls."""
    between = "(Python between operators)"
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            with torch.profiler.record_function(between):
                step()
    return {event.key: event.self_cpu_time_total / 1e3 / steps for event in profiler.key_averages()}


def operator_table(plain: dict[str, float], cross: dict[str, float], shown: int) -> str:
    """Operator times without a norm and with CN, the largest by name."""
    names = sorted(plain | cross, key=lambda name: -max(plain.get(name, 0.0), cross.get(name, 0.0)))
    times = [(f"`{name}`", plain.get(name, 0.0), cross.get(name, 0.0)) for name in names]
    kept, others = times[:shown], times[shown:]
    kept.append(("the rest", sum(row[1] for row in others), sum(row[2] for row in others)))
    kept.append(("sum", sum(plain.values()), sum(cross.values())))
    cells = [[name, f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"] for name, a, b in kept]
    return table(["milliseconds of a step in", "none", "CN", "difference"], cells)
