"""Chooses how a call is computed: Triton on CUDA devices, C++ on the CPU where a compiler is at hand, else plainly.

`CROSSNORM_KERNELS` in the environment sets what "auto" means: `plain` switches the compiled kernels off, `compiled`
insists on them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal, get_args

import torch
from torch import Tensor

from crossnorm_ns.kernels.extension import load_cpu_kernels

KernelChoice = Literal["auto", "compiled", "plain"]
MAX_CUDA_CHANNELS = 4096
_CPU_DTYPES = (torch.float32, torch.float64)
_CUDA_DTYPES = (*_CPU_DTYPES, torch.float16, torch.bfloat16)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def supports(x: Tensor) -> bool:
    """Whether a compiled kernel takes this (rows, channels) tensor."""
    if x.device.type == "cpu":
        return x.dtype in _CPU_DTYPES and load_cpu_kernels()
    if x.device.type == "cuda":
        return x.dtype in _CUDA_DTYPES and x.shape[-1] <= MAX_CUDA_CHANNELS and _has_triton()
    return False


def chooses_kernel(x: Tensor, choice: KernelChoice = "auto") -> bool:
    """Whether a call on (rows, channels) is computed by a compiled kernel.

    Raises:
        ValueError: for an unknown choice, or if "compiled" cannot be had.
    """
    if choice == "auto":
        choice = os.environ.get("CROSSNORM_KERNELS", "auto")  # type: ignore[assignment]
    if choice not in get_args(KernelChoice):
        raise ValueError(f"unknown kernels {choice!r}: choose one of {', '.join(get_args(KernelChoice))}")
    if choice == "plain":
        return False
    available = supports(x)
    if choice == "compiled" and not available:
        raise ValueError(f"no compiled kernel for {x.dtype} on {x.device} with {x.shape[-1]} channels here")
    return available
