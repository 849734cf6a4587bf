"""The state of all random number generators that a training draws from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def capture_random_state() -> dict[str, Any]:
    """Python's, numpy's and torch's generators as tensors and plain Python values, fit for a safe checkpoint."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": (str(name), words, int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Sets the generators to a captured state; CUDA's only where as many devices are there as then.

    Raises:
        Exception: of any kind, where it is no such state.
    """
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    if not 0 <= position <= len(words):  # numpy reads there without looking
        raise ValueError(f"the state of numpy's random numbers is at {position} of {len(words)} words")
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Within it, random numbers may be drawn without any effect on what follows."""
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
