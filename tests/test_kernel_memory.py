"""The benchmark of a large kernel's memory."""

import json
from pathlib import Path

import torch

from benchmarks.kernel_memory import Options, main


def test_a_small_kernel_is_measured_and_its_eigenvalues_meet_its_trace(tmp_path: Path) -> None:
    main(Options(samples=64, network="2x16", docs=tmp_path, threads=torch.get_num_threads()))
    stored = json.loads((tmp_path / "results" / "kernel-memory.json").read_text())
    assert stored["parameters"] == 16 * (21 + 1) + 16 * 17 + 17 + 2 * 2 * 16  # 10 octaves and x; two norms
    assert 0 <= stored["gib"] < 1 and stored["trace_error"] < 1e-12
    assert "| pe+cn | 64 |" in (tmp_path / "results" / "kernel-memory.md").read_text()
