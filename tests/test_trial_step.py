"""States that a training can go on from are told from others without a trace in them."""

import copy
import math

import pytest
import torch
from nerfstudio.engine.schedulers import (
    CosineDecaySchedulerConfig,
    ExponentialDecaySchedulerConfig,
    MultiStepSchedulerConfig,
)
from states import differences

from crossnorm_ns.trial_step import check_states

SCHEDULES = [CosineDecaySchedulerConfig(), ExponentialDecaySchedulerConfig(lr_final=1e-4), MultiStepSchedulerConfig()]


def make(optimizer, schedule, steps):
    """Two parameters of which one is never trained, after so many steps; what there is of them in words."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
    made = optimizer(parameters, lr=1e-2)
    scheduler = schedule.setup().get_scheduler(made, 1e-2)
    for _ in range(steps):
        parameters[0].grad = torch.randn(3, 2)
        made.step()
        scheduler.step()
    return made, scheduler


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam, torch.optim.SGD])
def test_good_states_are_taken_and_left_as_they_are(optimizer, steps):
    for schedule in SCHEDULES:
        made, scheduler = make(optimizer, schedule, steps)
        parameters = made.param_groups[0]["params"]
        content = lambda: copy.deepcopy([made.state_dict(), scheduler.state_dict(), parameters])  # noqa: B023, E731
        before, gradients = content(), [parameter.grad for parameter in parameters]
        check_states(made, scheduler)
        assert differences(before, content()) == []
        assert all(old is new.grad for old, new in zip(gradients, parameters, strict=True))


def test_states_that_lead_to_numbers_that_are_not_finite_are_refused():
    for change in ({"lr": math.inf}, {"weight_decay": math.nan}, {"betas": (0.9, math.nan)}):
        made, scheduler = make(torch.optim.Adam, SCHEDULES[0], 1)
        made.param_groups[0].update(change)
        with pytest.raises(ValueError, match="not finite"):
            check_states(made, scheduler)


def test_the_next_rate_of_a_schedule_is_tried():
    made, scheduler = make(torch.optim.Adam, SCHEDULES[0], 1)
    scheduler.base_lrs = [math.nan]
    with pytest.raises(ValueError, match="not finite"):
        check_states(made, scheduler)
    check_states(made)
