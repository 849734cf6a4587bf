"""What a large neural tangent kernel needs: memory and time of J J^T and of its eigenvalues.

    python -m benchmarks.kernel_memory

4,096 points and 100,000 parameters by default: the whole Jacobian in float64 alone would hold 3.1 GiB.
"""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.tables import conditions, store, table
from crossnorm_ns.networks import make_network
from crossnorm_ns.provenance import provenance
from crossnorm_ns.representation.ntk import kernel_eigenvalues, neural_tangent_kernel
from crossnorm_ns.representation.presets import parse_network


@dataclass
class Options:
    """Measures the kernel of a network on the points of a 1-D signal."""

    method: str = "pe+cn"
    """Whose norm couples the samples: every row of the Jacobian is a vector-Jacobian product of the whole batch."""
    samples: int = 4096
    """Points over [-1, 1)."""
    network: str = "4x178"
    """Hidden layers x width."""
    memory: float = 1.0
    """GiB for a part of the Jacobian; each part is a pass over all outputs."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of network and kernel."""
    docs: Path = Path("docs")
    """Where results/kernel-memory.json and .md go."""
    threads: int = os.cpu_count() or 1
    """Of torch and of the kernels."""


def main(options: Options) -> None:
    """Measures, stores and prints."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = make_network(options.method, in_dim=1, out_dim=1, hidden=parse_network(options.network))
    network = network.to(options.device)
    points = (2 * torch.arange(options.samples)[:, None] / options.samples - 1).to(options.device)
    before, start = _highest(options.device), time.perf_counter()
    kernel = neural_tangent_kernel(network, points, memory=int(options.memory * 2**30))
    between = time.perf_counter()
    eigenvalues = kernel_eigenvalues(kernel).cpu()
    seconds = {"kernel": between - start, "eigenvalues": time.perf_counter() - between}
    trace = float(kernel.diagonal().sum())
    figures = {
        "method": options.method,
        "samples": options.samples,
        "network": options.network,
        "memory": options.memory,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gib": (_highest(options.device) - before) / 2**30,
        "seconds": seconds,
        "trace_error": abs(float(eigenvalues.sum()) - trace) / trace,
    }
    row = [
        options.method,
        f"{figures['samples']:,}",
        f"{figures['parameters']:,}",
        f"{figures['gib']:.2f}",
        f"{seconds['kernel']:.0f}",
        f"{seconds['eigenvalues']:.0f}",
        f"{figures['trace_error']:.0e}",
    ]
    heads = ["method", "points", "parameters", "GiB", "seconds, kernel", "seconds, eigenvalues", "sum against trace"]
    machine = conditions(options.device).replace("float32", "float64")
    store(options.docs, "kernel-memory", f"{machine}, seed 0.\n\n{table(heads, [row])}")
    stored = {"conditions": machine, "seed": 0, **provenance(), **figures}
    (options.docs / "results" / "kernel-memory.json").write_text(json.dumps(stored, indent=1) + "\n")


def _highest(device: str) -> int:
    """Bytes: the most that the process has held so far, on the device that computes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(tyro.cli(Options))
