"""Comparing what trainings saved."""

from typing import Any

import torch


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested states differ by as much as one bit.

    Python's own generator is left out: the type checker of the tests draws from it.
    """
    if path.endswith("/python"):
        return []
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{path}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    return [] if type(one) is type(other) and one == other else [path]
