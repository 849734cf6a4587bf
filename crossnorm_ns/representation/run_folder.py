"""The files of one run: history, checkpoint, networks, result. Each is either the old one or the whole new one."""

from __future__ import annotations

import contextlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossnorm_ns.files import atomic_file
from crossnorm_ns.networks import make_network
from crossnorm_ns.reading import FileError, read_json, read_tensors
from crossnorm_ns.representation.errors import RepresentationError

Entry = dict[str, int | float]
"""One evaluation: step, seconds, learning_rate and metrics."""


@dataclass(frozen=True)
class RunFolder:
    """Names and formats of a run's files.

    `checkpoint.pt` has all that training needs to go on; `best.pt` and `last.pt` are networks for `load_network`;
    `history.jsonl` has one JSON object for each evaluation, `result.json` what the run came to.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def remove_abandoned(self) -> None:
        """Removes what a run left that was killed while it wrote a file."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def append_history(self, entry: Mapping[str, int | float]) -> None:
        """Adds one line."""
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json_line(entry) + "\n")

    def read_history(self) -> list[Entry]:
        """All whole lines; a kill may have cut the last one. Numbers that are not finite come back as NaN."""
        entries = []
        if self.history.is_file():
            for line in self.history.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                        entries.append({k: math.nan if v is None else v for k, v in entry.items()})
        return entries

    def keep_history(self, entries: list[Entry]) -> None:
        """Replaces the lines."""
        with atomic_file(self.history) as file:
            file.write("".join(json_line(entry) + "\n" for entry in entries).encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`, the last file of a run: where it is, the run is finished."""
        with atomic_file(self.result) as file:
            file.write((json.dumps(finite(result), indent=1, allow_nan=False) + "\n").encode())

    def read_result(self) -> dict[str, Any]:
        """What `write_result` wrote.

        Raises:
            RepresentationError: it is damaged.
        """
        try:
            result = read_json(self.result)
        except FileError as error:
            raise RepresentationError(str(error)) from error
        if not isinstance(result, dict) or not isinstance(result.get("spec"), dict):
            raise RepresentationError(f"{self.result} is no result of a run: remove it to do the run again")
        return result


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first entry in which a run that is there and one that is asked for differ; None if they agree."""
    for name in [*now, *sorted(before.keys() - now.keys())]:
        if before.get(name) != now.get(name):
            return f"{name}: {reprlib.repr(before.get(name))} there, {reprlib.repr(now.get(name))} here"
    return None


def json_line(entry: Mapping[str, Any]) -> str:
    """One JSON object; numbers that are not finite are null, as JSON has none."""
    return json.dumps(finite(entry), allow_nan=False)


def finite(value: Any) -> Any:
    """The same value for JSON: numbers in it that are not finite become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Writes tensors and plain values, atomically."""
    with atomic_file(path) as file:
        torch.save(dict(content), file)


def load_tensors(path: Path) -> dict[str, Any]:
    """Reads what `save_tensors` wrote, without running code from the file.

    Raises:
        RepresentationError: it is not there, or is no such file.
    """
    if not path.is_file():
        raise RepresentationError(f"there is no file {path}")
    try:
        return read_tensors(path)
    except FileError as error:
        raise RepresentationError(str(error)) from error


def save_network(architecture: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    """Writes a network: the arguments of `make_network` and its state."""
    save_tensors({"architecture": dict(architecture), "state": dict(state)}, path)


def load_network(path: Path) -> nn.Module:
    """The network in `best.pt` or `last.pt`, calibrated, in evaluation mode.

    Raises:
        RepresentationError: the file is not one of these.
    """
    content = load_tensors(path)
    try:
        network = make_network(**content["architecture"])
        network.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise RepresentationError(f"{path} does not hold a network of this program: {error}") from error
    return network.eval()
