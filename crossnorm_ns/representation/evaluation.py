"""A network's outputs on all points of a task, and which statistics its norms use for them."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossnorm_ns.norms import calibrate, norms_of
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.tasks.base import Task

Statistics = Literal["stored", "batch", "chunks"]
CALIBRATION_BATCHES = 16
"""Training batches over which the statistics of tasks that draw points are gathered."""
CHUNK_SIZE = 4096
"""Points whose own statistics the norms use, where that is asked for."""
_BLOCK = 1 << 16  # points evaluated at a time; the result does not depend on it
_LARGEST_BATCH = 1 << 22  # points of one pass that keeps its activations


def calibrate_on(network: nn.Module, task: Task, seed: int) -> None:
    """Stores the population statistics of a task's training batches in the norms of a network.

    One pass over all points where every step sees them all; else 16 batches, drawn anew from `seed` each time.
    """
    if not any(norm.formula.uses_columns for norm in norms_of(network)):
        return
    generator = torch.Generator().manual_seed(seed)
    count = 1 if task.full_batch else CALIBRATION_BATCHES
    calibrate(network, ((task.batch(generator).points,) for _ in range(count)))


@torch.no_grad()
def outputs_of(network: nn.Module, task: Task, block_size: int = _BLOCK) -> Float[Tensor, "points out_dim"]:
    """Outputs on all points of the task with the stored statistics of the norms; the size of blocks does not matter."""
    was_training = network.training
    network.eval()
    outputs = torch.empty(task.num_points, task.out_dim, device=task.device)
    for start in range(0, task.num_points, block_size):
        end = min(start + block_size, task.num_points)
        outputs[start:end] = network(task.coordinates(start, end))
    network.train(was_training)
    return outputs


def check_statistics(task: Task, statistics: str, chunk_size: int) -> None:
    """Refuses what `outputs_with` cannot do.

    Raises:
        RepresentationError: no such statistics, chunks without any, or more points than fit in one pass.
    """
    if statistics not in get_args(Statistics):
        raise RepresentationError(f"unknown statistics {statistics!r}: choose one of {', '.join(get_args(Statistics))}")
    if chunk_size < 2:
        raise RepresentationError(f"a chunk of {chunk_size} points has no statistics: give at least 2")
    if statistics == "batch" and task.num_points > _LARGEST_BATCH:
        raise RepresentationError(
            f"the statistics of {task.num_points:,} points together need one pass over all of them, which is "
            f"possible up to {_LARGEST_BATCH:,}: use stored statistics, or a coarser grid"
        )


def outputs_with(
    network: nn.Module, task: Task, statistics: Statistics, chunk_size: int = CHUNK_SIZE
) -> Float[Tensor, "points out_dim"]:
    """Outputs on all points, with a choice of the statistics that the norms use.

    The network is left as it is.

    Args:
        network: calibrated.
        task: gives the points.
        statistics: "stored" uses those of the training batches, and is a function of one point. "batch" uses those of
            all points together, in one pass as the released code evaluates; where training sees all points in every
            step that is the same function. "chunks" uses those of each chunk of neighbouring points by itself: what a
            network does whose norms know no other statistics than the batch's.
        chunk_size: points in a chunk.

    Raises:
        RepresentationError: as `check_statistics`.
    """
    check_statistics(task, statistics, chunk_size)
    if statistics == "stored":
        return outputs_of(network, task)
    network = copy.deepcopy(network)
    if statistics == "batch":
        calibrate(network, [(task.coordinates(),)])
        return outputs_of(network, task)
    outputs = torch.empty(task.num_points, task.out_dim, device=task.device)
    network.eval()
    for start in range(0, task.num_points, chunk_size):
        points = task.coordinates(start, min(start + chunk_size, task.num_points))
        calibrate(network, [(points,)])
        with torch.no_grad():
            outputs[start : start + len(points)] = network(points)
    return outputs
