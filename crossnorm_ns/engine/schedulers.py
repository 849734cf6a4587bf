"""Learning-rate schedules that leave Python floats, so that checkpoints load under torch's safe default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer, lr_scheduler


@dataclass
class LogLinearSchedulerConfig(SchedulerConfig):
    """mip-NeRF's schedule: log-linear decay, held down at the start."""

    _target: type = field(default_factory=lambda: LogLinearScheduler)
    final_multiplier: float = 0.01
    """Learning rate at the end of the schedule, over the initial one."""
    max_steps: int | None = None
    """Steps from the initial to the final learning rate; None takes the run's --max-num-iterations."""
    delay_steps: int = 2500
    """Steps over which the delay fades away as a quarter of a sine."""
    delay_multiplier: float = 0.01
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
            raise ValueError("the schedule has no end: set max_steps, or train with one of this plug-in's trainers")
        delay = 1.0
        if config.delay_steps > 0:
            fading = math.sin(0.5 * math.pi * min(step / config.delay_steps, 1.0))
            delay = config.delay_multiplier + (1 - config.delay_multiplier) * fading
        return float(delay * config.final_multiplier ** min(step / config.max_steps, 1.0))

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> lr_scheduler.LRScheduler:
        """The torch scheduler of an optimizer."""

        def multiplier(step: int) -> float:
            return self.multiplier(step)

        # A plain function: of any other callable, LambdaLR puts the attributes into the checkpoint.
        return lr_scheduler.LambdaLR(optimizer, lr_lambda=multiplier)
