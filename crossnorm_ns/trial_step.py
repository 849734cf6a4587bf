"""A step on trial: whether a training can go on from the states that a file holds."""

from __future__ import annotations

import copy
import warnings

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from crossnorm_ns.finite import first_non_finite, tensors_in


def check_states(optimizer: Optimizer, scheduler: LRScheduler | None = None) -> None:
    """Takes two steps, the second at the scheduler's next learning rate, on copies of parameters and states.

    Raises:
        ValueError: they lead to numbers that are not finite.
        Exception: of any other kind, where the states are not what optimizer and scheduler know.
    """
    optimizer, scheduler = copy.deepcopy((optimizer, scheduler))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses what a scheduler hangs on its optimizer
        for _ in range(2):
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
                scheduler.get_last_lr()
                scheduler.state_dict()
    if first_non_finite(tensors_in([parameters, optimizer.state_dict()])) is not None:
        raise ValueError("a step from the state of its optimizer leads to numbers that are not finite")
