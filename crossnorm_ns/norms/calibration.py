"""Population statistics for evaluation, and a norm's data-dependent identity initialisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crossnorm_ns.functional.statistics import as_rows, column_statistics
from crossnorm_ns.norms.base import Norm, norms_of


def calibrate(module: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Stores exact population statistics of all norms in `module`, over training batches.

    Runs the module in train mode with gradients enabled, so each norm sees what it sees in training, and merges the
    batch statistics of every domain that the passes enter by Chan's formula. What the module does without gradients
    (up-sampling) is not counted, as in training. Parameters, moving averages and train/eval flags stay as they were;
    random numbers are drawn as the module draws them. Norms with `statistics="renorm"` are left with their moving
    average, whose values they train with.

    Args:
        module: with norms somewhere inside; one without is left alone.
        batches: yields the positional arguments of one pass each.

    Raises:
        ValueError: `batches` is empty.
    """
    norms = norms_of(module)
    if not norms:
        return
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    for norm in norms:
        norm.begin_calibration()
    complete = False
    try:
        passes = 0
        with torch.enable_grad():
            for arguments in batches:
                module(*arguments)
                passes += 1
        if passes == 0:
            raise ValueError("no batches to calibrate on: give at least one")
        complete = True
    finally:
        for norm in norms:
            norm.end_calibration(keep=complete)
        for part, training in modes:
            part.training = training


def initialize_identity(module: nn.Module, *arguments: Any) -> None:
    """Sets scale and shift of each norm so that, on this batch, normalization starts as (nearly) the identity.

    weight = 1 / mean(1 / standard deviation) and bias = mean(center), layer by layer in one training pass; a network
    whose initial weights carry a meaning (the sphere of geometric initialisation) keeps it. Exact for batch
    normalization, and up to C / N for the paper's form of the cross; the released form has a variance of each sample
    in its denominator and can only come near. Synchronized norms start from the batches of all processes.

    Args:
        module: with affine norms.
        arguments: of one training pass.

    Raises:
        ValueError: a norm has no scale and shift.
    """

    def column_mean(values: Tensor, rows: Tensor, process_group: Any) -> Tensor:
        return column_statistics(values.expand_as(rows), process_group, kernel="plain").mean

    def set_affine(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, Norm)
        handles.pop(norm).remove()
        rows = as_rows(inputs[0].detach())
        center, inverse_std = norm.formula.moments(rows, column_statistics(rows, norm.process_group))
        assert norm.weight is not None and norm.bias is not None
        norm.weight.data.copy_(1 / column_mean(inverse_std, rows, norm.process_group))
        norm.bias.data.copy_(column_mean(center, rows, norm.process_group))

    norms = norms_of(module)
    if any(norm.weight is None for norm in norms):
        raise ValueError("identity initialisation needs norms with affine=True")
    handles = {norm: norm.register_forward_pre_hook(set_affine) for norm in norms}
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        with torch.enable_grad():
            module(*arguments)
    finally:
        for handle in handles.values():
            handle.remove()
        for part, training in modes:
            part.training = training
