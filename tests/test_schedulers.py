"""mip-NeRF's learning-rate schedule, and checkpoints of it that load under torch's safe default."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers

from crossnorm_ns.engine.schedulers import LogLinearSchedulerConfig
from method_configs.mipnerf import mipnerf_cn, mipnerf_ref

PUBLISHED = LogLinearSchedulerConfig(max_steps=1_000_000)


def make(config: LogLinearSchedulerConfig, rate: float = 5e-4) -> Optimizers:
    groups = {"fields": {"optimizer": AdamOptimizerConfig(lr=rate), "scheduler": config}}
    return Optimizers(groups, {"fields": [torch.nn.Parameter(torch.ones(2))]})


def rate_of(optimizers: Optimizers) -> float:
    return optimizers.optimizers["fields"].param_groups[0]["lr"]


def take_steps(optimizers: Optimizers, steps: int) -> None:
    optimizer = optimizers.optimizers["fields"]
    for _ in range(steps):
        for parameter in optimizers.parameters["fields"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizers.schedulers["fields"].step()


def published_rate(
    step: int, first: float, last: float, max_steps: int, delay_steps: int = 0, delay_mult: float = 1.0
) -> float:
    """Interpolates the logarithms of the rates, under a quarter of a sine that rises from `delay_mult` to 1."""
    share = min(step / max_steps, 1)
    logarithm = (1 - share) * math.log(first) + share * math.log(last)
    delay = 1.0
    if delay_steps:
        delay = delay_mult + (1 - delay_mult) * math.sin(math.pi / 2 * min(step / delay_steps, 1))
    return delay * math.exp(logarithm)


@pytest.mark.parametrize("step", [0, 1, 1_250, 2_499, 2_500, 2_501, 500_000, 999_999, 1_000_000, 1_500_000])
def test_published_schedule(step: int):
    rate = 5e-4 * PUBLISHED.setup().multiplier(step)
    assert rate == pytest.approx(published_rate(step, 5e-4, 5e-6, 1_000_000, 2_500, 0.01), rel=1e-12)


def test_published_schedule_at_its_landmarks():
    multiplier = PUBLISHED.setup().multiplier
    assert multiplier(0) == pytest.approx(0.01)
    assert multiplier(2_500) == pytest.approx(0.01 ** (2_500 / 1_000_000))
    assert multiplier(500_000) == pytest.approx(0.1)
    assert multiplier(1_000_000) == multiplier(2_000_000) == pytest.approx(0.01)


@pytest.mark.parametrize("method", [mipnerf_cn, mipnerf_ref])
def test_methods_follow_the_published_schedule(method):
    assert method.config.optimizers["fields"]["scheduler"] == LogLinearSchedulerConfig(
        final_multiplier=0.01, max_steps=None, delay_steps=2_500, delay_multiplier=0.01
    )
    assert method.config.max_num_iterations == 1_000_000


def test_reference_starts_at_the_published_rate():
    assert mipnerf_ref.config.optimizers["fields"]["optimizer"].lr == 5e-4


def test_every_step_of_an_optimizer_takes_its_own_rate():
    config = LogLinearSchedulerConfig(max_steps=30, delay_steps=8, delay_multiplier=0.1, final_multiplier=0.05)
    optimizers = make(config, rate=2e-2)
    for step in range(35):
        assert rate_of(optimizers) == pytest.approx(published_rate(step, 2e-2, 1e-3, 30, 8, 0.1), rel=1e-12)
        take_steps(optimizers, 1)


@pytest.mark.parametrize("config", [{"delay_steps": 0}, {"delay_multiplier": 1.0}])
def test_no_delay(config: dict[str, Any]):
    multiplier = LogLinearSchedulerConfig(max_steps=100, **config).setup().multiplier
    for step in (0, 7, 100):
        assert multiplier(step) == pytest.approx(0.01 ** (step / 100))


def test_schedule_without_an_end_says_what_to_do():
    with pytest.raises(ValueError, match="max_steps"):
        make(LogLinearSchedulerConfig())


def leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in leaves(value)]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in leaves(value)]
    return [state]


def test_states_hold_plain_numbers_and_load_safely(tmp_path: Path):
    optimizers = make(LogLinearSchedulerConfig(max_steps=30, delay_steps=8))
    take_steps(optimizers, 12)
    states = {
        "optimizer": optimizers.optimizers["fields"].state_dict(),
        "scheduler": optimizers.schedulers["fields"].state_dict(),
    }
    plain = {bool, int, float, str, type(None), torch.Tensor}
    assert {type(leaf) for leaf in leaves(states)} <= plain
    assert type(rate_of(optimizers)) is float
    torch.save(states, tmp_path / "states.ckpt")

    loaded = torch.load(tmp_path / "states.ckpt", weights_only=True)

    resumed = make(LogLinearSchedulerConfig(max_steps=30, delay_steps=8))
    resumed.load_optimizers({"fields": loaded["optimizer"]})
    resumed.load_schedulers({"fields": loaded["scheduler"]})
    for _ in range(20):
        assert rate_of(resumed) == rate_of(optimizers)
        take_steps(resumed, 1)
        take_steps(optimizers, 1)
