"""Finds numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """A training whose numbers are no longer finite: the message names step, tensor and last good checkpoint."""


def numbers_of_step(
    model: nn.Module, losses: Mapping[str, Tensor], gradients: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Everything that a step of training computes or changes, with what it is called in a message.

    Args:
        model: whose parameters have the step's gradients.
        losses: of the step, by name.
        gradients: False leaves them out (those that a scaler watches over are its own affair).
    """
    yield from ((f"the loss {name}".rstrip(), loss) for name, loss in losses.items())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and gradients:
            yield f"the gradient of {name}", parameter.grad
        yield f"the parameter {name}", parameter
    yield from ((f"the statistic {name}", buffer) for name, buffer in model.named_buffers())


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dictionaries and lists, such as a checkpoint, with the keys that lead to them.

    Takes each of these once, so that the time is bounded by the size of a file, whatever it says.
    """
    seen: set[int] = set()
    rest = [("", content)]
    while rest:
        name, value = rest.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            entries = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            keys = [key if isinstance(key, str | int) else type(key).__name__ for key, _ in entries]
            named = [f"{name}.{key}" if name else f"{key}" for key in keys]
            rest += reversed([(name, entry) for name, (_, entry) in zip(named, entries, strict=True)])


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity, None if there is none.

    Waits for the device once, however many tensors there are.
    """
    # A GPU could otherwise be given the next step meanwhile. nerfstudio waits in each step anyway (its cameras sort
    # their kinds for each batch of rays); fits have no other wait. A check that answers one step later would have to be
    # settled before each save, evaluation and end.
    known = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not known:
        return None
    largest = torch._foreach_norm([tensor for _, tensor in known], math.inf)  # pyright: ignore[reportPrivateImportUsage]
    finite = torch.stack([value.to(largest[0]) for value in largest]).isfinite().tolist()
    return next((name for (name, _), good in zip(known, finite, strict=True) if not good), None)
