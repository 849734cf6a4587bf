"""Atomic writing of checkpoints."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.files import atomic_file
from crossnorm_ns.finite import first_non_finite, tensors_in
from crossnorm_ns.reading import FileError, read_tensors


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a kill at any moment leaves the old files or the complete new one.

    The unfinished file lies in the folder above, since nerfstudio reads a step from every name in a checkpoint folder;
    what an earlier save left there when it was killed is removed. Numbers of numpy, which nerfstudio's decaying
    schedules leave in their states, become Python's: torch's safe default would not load them.
    """
    scratch = path.parent.parent
    for abandoned in scratch.glob(".*.ckpt.*.tmp"):
        abandoned.unlink(missing_ok=True)
    with atomic_file(path, scratch) as file:
        torch.save(_with_plain_numbers(content), file)


def _with_plain_numbers(content: Any) -> Any:
    if isinstance(content, np.generic):
        return content.item()
    if type(content) is dict:
        return {key: _with_plain_numbers(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_with_plain_numbers(value) for value in content)
    return content


def prune_others(path: Path) -> None:
    """Removes the other checkpoints beside `path`."""
    for other in path.parent.glob("*.ckpt"):
        if other != path:
            other.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of nerfstudio's trainer or of ours, without running code from the file.

    Raises:
        DataError: it is not there, is damaged, holds more than tensors and plain values, or is no such checkpoint.
    """
    try:
        content = read_tensors(path, _NUMBERS_OF_NUMPY)
    except FileError as error:
        raise DataError(
            f"{error}: is it a checkpoint? If you trust the file, render its run with ns-render and give --renders."
        ) from error
    if not {"pipeline", "step"} <= content.keys():
        raise DataError(f"{path} is no checkpoint of a nerfstudio run: it lacks the keys pipeline and step.")
    step, weights = content["step"], content["pipeline"]
    if type(step) is not int or not 0 <= step <= 10**9 or not _are_weights(weights):
        raise DataError(f"{path} is no checkpoint of a nerfstudio run: its step or its weights are of another kind.")
    return content


def read_good_checkpoint(path: Path) -> dict[str, Any]:
    """One that a training can go on from, see `read_checkpoint`.

    Raises:
        DataError: also where a number in it is not finite.
    """
    content = read_checkpoint(path)
    culprit = first_non_finite((name, _stored(tensor)) for name, tensor in tensors_in(content))
    if culprit is not None:
        raise DataError(f"{path}: {culprit} is not finite: go on from an earlier checkpoint.")
    return content


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or the numbers that are there of one that tells of more (stretched along an axis)."""
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() <= storage.nbytes():
        return tensor
    return tensor.new_empty(0).set_(storage)  # pyright: ignore[reportArgumentType]


def missing_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names of the parameters that training changes and the weights of a checkpoint's pipeline do not have."""
    found = {name.replace("module.", "").removeprefix("_model.") for name in weights}
    trained = {id(parameter) for group in model.get_param_groups().values() for parameter in group}  # type: ignore[operator]
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in trained and name not in found]


def _are_weights(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )


def _number_of_numpy(kind: np.dtype[Any], content: bytes) -> bool | int | float:
    (number,) = np.frombuffer(content, kind).tolist()
    return number


_NUMBERS_OF_NUMPY = {
    "numpy.dtype": np.dtype,
    "numpy.dtypes.Float64DType": type(np.dtype(np.float64)),
    "numpy.core.multiarray.scalar": _number_of_numpy,  # before numpy 2
    "numpy._core.multiarray.scalar": _number_of_numpy,
    "_codecs.encode": codecs.encode,
}
"""What files name that hold numbers of numpy, which nerfstudio's schedules leave in their states."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, None where there is none."""
    return max(folder.glob("step-*.ckpt"), default=None)
