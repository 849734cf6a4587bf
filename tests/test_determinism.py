"""The same seed gives the same result to the bit, in processes that have done different things before."""

import random
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_elsewhere_methods
import test_neus_methods
import test_trainer
import test_volsdf
import torch
from states import differences
from trainings import checkpoint_of, run_folder, train

from crossnorm_ns.engine.trainer import CrossNormTrainerConfig

pytestmark = pytest.mark.usefixtures("own_writers")
STEPS = 3
METHODS = ["mipnerf-cn-tiny", "neus-cn-tiny", "volsdf-cn-tiny", "vanilla-nerf-cn", "nerfacto-cn"]
MakeConfig = Callable[..., CrossNormTrainerConfig]


@pytest.fixture(scope="module")
def make_config(tiny_scene: Path, scan: Path) -> MakeConfig:
    def make(method: str, output: Path, seed: int) -> CrossNormTrainerConfig:
        busy: dict[str, Any] = {"max_num_iterations": STEPS, "steps_per_save": 2}
        match method:
            case "mipnerf-cn-tiny":
                config = test_trainer.make_config(tiny_scene, output, **busy)
            case "neus-cn-tiny":
                config = test_neus_methods.make_config(scan, output, **busy)
            case "volsdf-cn-tiny":
                config = test_volsdf.make_config(scan, output, **busy)
            case _:
                config = test_elsewhere_methods.make_config(method, tiny_scene, output, **busy)
        config.machine.seed = seed
        return config

    return make


def train_in_order(configs: list[CrossNormTrainerConfig], draws: int) -> None:
    """Draws numbers from all generators, then trains."""
    random.random(), np.random.rand(draws), torch.rand(draws)
    for config in configs:
        train(config)


@pytest.fixture(scope="module")
def trainings(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Folders of each method's run: twice with one seed, in two processes and in opposite orders, then with another."""
    output = tmp_path_factory.mktemp("output")
    asked = {"one": (42, METHODS), "other": (42, METHODS[::-1]), "seed": (43, METHODS)}
    configs = {
        name: {method: make_config(method, output / name, seed) for method in methods}
        for name, (seed, methods) in asked.items()
    }
    for draws, own in enumerate(configs.values()):
        process = get_context("fork").Process(target=train_in_order, args=([*own.values()], draws))
        process.start()
        process.join()
        assert process.exitcode == 0
    return {name: {method: run_folder(config) for method, config in own.items()} for name, own in configs.items()}


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_training_to_the_bit(trainings: dict[str, dict[str, Path]], method: str) -> None:
    one, other, seed = (checkpoint_of(trainings[name][method]) for name in ("one", "other", "seed"))
    assert one["step"] == STEPS - 1
    assert differences(one, other) == []
    assert differences(one["pipeline"], seed["pipeline"])
