"""What the processes of one training tell each other, and what ends all of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from nerfstudio.utils import comms
from torch import Tensor, distributed
from torch.futures import Future


class LostProcessError(RuntimeError):
    """Another process of the training has ended or does not answer: this one cannot go on alone."""


def set_timeout(seconds: float) -> None:
    """How long a process waits for the others from here on."""
    public = getattr(distributed, "set_timeout", None)  # newer versions of torch
    (public or distributed.distributed_c10d._set_pg_timeout)(timedelta(seconds=seconds))


def wait_for_all() -> None:
    """Returns when all processes have come this far."""
    if comms.get_world_size() > 1:
        comms.synchronize()


def gathered(value: Any) -> list[Any]:
    """A value of every process, in their order; with one process, its own."""
    values = [value] * comms.get_world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def largest(number: int, device: torch.device | str) -> int:
    """The largest of the processes' numbers."""
    if comms.get_world_size() == 1:
        return number
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)


def mean_in_order(own: Tensor) -> Future[Tensor]:
    """Mean of a tensor over the processes, added in their order: what DistributedDataParallel may do with gradients.

    A reduction over more than two processes adds in an order that depends on an element's place, and the places of
    gradients change behind the first step of each run, so that a resumed run would differ in the last bit.
    """
    parts = [torch.empty_like(own) for _ in range(comms.get_world_size())]
    distributed.all_gather(parts, own)
    mean: Future[Tensor] = Future()
    mean.set_result(functools.reduce(torch.add, parts) / len(parts))
    return mean


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turns errors of communication into a `LostProcessError` that says what happened."""
    try:
        yield
    except RuntimeError as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise LostProcessError(cause) from error


def _cause(error: RuntimeError) -> str | None:
    """What an error of torch.distributed means, None where it is another error."""
    message = str(error)
    if not isinstance(error, distributed.DistError) and "gloo" not in message:
        return None
    if "timed out" in message.lower() or "timeout" in message.lower():
        return "another process of this training does not answer"
    return "another process of this training has ended"
