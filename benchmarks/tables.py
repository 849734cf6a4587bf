"""How the benchmarks write what they measured: tables in Markdown, and under which conditions."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from crossnorm_ns import kernels
from crossnorm_ns.provenance import processor, provenance_line


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def store(docs: Path, stem: str, text: str) -> None:
    """Prints a result with the commit that it comes from, and keeps it in docs/results/STEM.md."""
    folder = docs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{text}\n\n{provenance_line()}"
    (folder / f"{stem}.md").write_text(text + "\n")
    print(text)


def conditions(device: str = "cpu") -> str:
    """Machine and its instructions or GPU, threads, torch, kernels: what a time depends on."""
    kernel = "compiled" if kernels.chooses_kernel(torch.zeros(1, 1, device=device)) else "plain"
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {kernel} kernels, float32"
    return (
        f"{platform.machine()}, {processor()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {kernel} kernels, float32"
    )
