"""Chooses how a call is computed: Triton on CUDA devices, C++ on the CPU where a compiler is at hand, else plainly.

`CROSSNORM_KERNELS` in the environment sets what "auto" means: `plain` switches the compiled kernels off, `compiled`
insists on them.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from crossnorm_ns.kernels import operators
from crossnorm_ns.kernels.extension import load_cpu_kernels

KernelChoice = Literal["auto", "compiled", "plain"]
MAX_CUDA_CHANNELS = 4096
_CHOICES = get_args(KernelChoice)
_CPU_DTYPES = (torch.float32, torch.float64)
_CUDA_DTYPES = (*_CPU_DTYPES, torch.float16, torch.bfloat16)


@functools.cache
def _triton_works() -> bool:
    try:
        operators.column_statistics(torch.zeros(1, 1, device="cuda"))
    except Exception as error:  # whatever keeps Triton from compiling, there is another way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"the Triton kernels of crossnorm-ns cannot run ({reason}): the slower plain formula is used", stacklevel=2
        )
        return False
    return True


@torch.compiler.assume_constant_result
def load_cuda_kernels() -> bool:
    """Whether Triton works on the CUDA device; tried once, and said once if not."""
    return _triton_works()


def supports(x: Tensor) -> bool:
    """Whether a compiled kernel takes this (rows, channels) tensor."""
    if x.device.type == "cpu":
        return x.dtype in _CPU_DTYPES and load_cpu_kernels()
    if x.device.type == "cuda":
        return x.dtype in _CUDA_DTYPES and x.shape[-1] <= MAX_CUDA_CHANNELS and load_cuda_kernels()
    return False


def chooses_kernel(x: Tensor, choice: KernelChoice = "auto") -> bool:
    """Whether a call on (rows, channels) is computed by a compiled kernel.

    Raises:
        ValueError: for an unknown choice, or if "compiled" cannot be had.
    """
    if choice == "auto":
        choice = os.environ.get("CROSSNORM_KERNELS", "auto")  # type: ignore[assignment]
    if choice not in _CHOICES:
        raise ValueError(f"unknown kernels {choice!r}: choose one of {', '.join(_CHOICES)}")
    if choice == "plain":
        return False
    available = supports(x)
    if choice == "compiled" and not available:
        raise ValueError(f"no compiled kernel for {x.dtype} on {x.device} with {x.shape[-1]} channels here")
    return available
