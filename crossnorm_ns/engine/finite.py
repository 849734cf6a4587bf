"""Finds numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class NonFiniteError(RuntimeError):
    """A training whose numbers are no longer finite: the message names step, tensor and last good checkpoint."""


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity, None if there is none.

    Waits for the device once, however many tensors there are.
    """
    known = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not known:
        return None
    largest = torch._foreach_norm([tensor for _, tensor in known], math.inf)  # pyright: ignore[reportPrivateImportUsage]
    finite = torch.stack([value.to(largest[0]) for value in largest]).isfinite().tolist()
    return next((name for (name, _), good in zip(known, finite, strict=True) if not good), None)
