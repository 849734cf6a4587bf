"""Learning-rate schedules that leave Python floats, so that checkpoints load under torch's safe default."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer, lr_scheduler

from crossnorm_ns.limits import Count, PositiveShare, Share, between

_NO_END = "the schedule has no end: set max_steps, or train with one of this plug-in's trainers"


def _scheduler(optimizer: Optimizer, multiplier: Callable[[int], float]) -> lr_scheduler.LRScheduler:
    # A plain function: of any other callable, LambdaLR puts the attributes into the checkpoint.
    return lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: multiplier(step))  # noqa: PLW0108


@dataclass
class LogLinearSchedulerConfig(SchedulerConfig):
    """mip-NeRF's schedule: log-linear decay, held down at the start."""

    _target: type = field(default_factory=lambda: LogLinearScheduler)
    final_multiplier: PositiveShare = 0.01
    """Learning rate at the end of the schedule, over the initial one."""
    max_steps: Count | None = None
    """Steps from the initial to the final learning rate; None takes the run's --max-num-iterations."""
    delay_steps: Annotated[int, between(0, 10**9)] = 2500
    """Steps over which the delay fades away as a quarter of a sine."""
    delay_multiplier: Share = 0.01
    """Factor on the learning rate at step 0; 1 means no delay."""


class LogLinearScheduler(Scheduler):
    """Multiplies the initial learning rate by `multiplier(step)`.

    Source: google/mipnerf, internal/math.py `learning_rate_decay`.
    """

    config: LogLinearSchedulerConfig

    def multiplier(self, step: int) -> float:
        """Learning rate at a step, over the initial one."""
        config = self.config
        if config.max_steps is None:
            raise ValueError(_NO_END)
        delay = 1.0
        if config.delay_steps > 0:
            fading = math.sin(0.5 * math.pi * min(step / config.delay_steps, 1.0))
            delay = config.delay_multiplier + (1 - config.delay_multiplier) * fading
        return float(delay * config.final_multiplier ** min(step / config.max_steps, 1.0))

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> lr_scheduler.LRScheduler:
        """The torch scheduler of an optimizer."""

        return _scheduler(optimizer, self.multiplier)


@dataclass
class WarmupCosineSchedulerConfig(SchedulerConfig):
    """NeuS's schedule: linear warm-up from 0, then half a cosine."""

    _target: type = field(default_factory=lambda: WarmupCosineScheduler)
    final_multiplier: Share = 0.05
    """Learning rate at the end of the schedule, over the initial one."""
    max_steps: Count | None = None
    """Step at which the cosine ends; None takes the run's --max-num-iterations."""
    warmup_steps: Annotated[int, between(0, 10**9)] = 5000
    """Steps over which the learning rate rises from 0."""


class WarmupCosineScheduler(Scheduler):
    """Multiplies the initial learning rate by `multiplier(step)`.

    Source: Totoro97/NeuS, exp_runner.py `update_learning_rate`.
    """

    config: WarmupCosineSchedulerConfig

    def multiplier(self, step: int) -> float:
        """Learning rate at a step, over the initial one."""
        config = self.config
        if config.max_steps is None:
            raise ValueError(_NO_END)
        if step < config.warmup_steps:
            return step / config.warmup_steps
        progress = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
        cosine = (math.cos(math.pi * min(progress, 1.0)) + 1) / 2
        return float(cosine * (1 - config.final_multiplier) + config.final_multiplier)

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> lr_scheduler.LRScheduler:
        """The torch scheduler of an optimizer."""
        return _scheduler(optimizer, self.multiplier)
