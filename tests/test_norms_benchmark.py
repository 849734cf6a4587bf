"""The norms' benchmark: it judges its figures rightly, and measures all of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import norms

ROOT = Path(__file__).parents[1]
TIME = "CN released, forward + backward / batch norm"
SPEED = "CN, times faster than the released formula in eager PyTorch"
KEPT = "CN, bytes kept for backward / batch norm"


@pytest.mark.parametrize(
    ("figure", "met", "missed"), [(TIME, 1.5, 1.51), (SPEED, 8.0, 7.9), (KEPT, 1.03, 1.04), (TIME, 0.5, float("nan"))]
)
def test_a_figure_is_missed_when_it_is_worse_than_it_must_be(figure: str, met: float, missed: float) -> None:
    rows = [norms.judged(figure, case, value) for case, value in (("6144x64", met), ("100x64", missed))]
    (complaint,) = norms.complaints(rows)
    assert figure in complaint and "100x64" in complaint


@pytest.mark.parametrize(("measured", "status"), [(1.4, None), (1.6, 1)])
def test_check_fails_when_a_figure_is_missed(
    measured: float, status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [(TIME, "6144x64", measured), (SPEED, "6144x64", 9.0)]
    monkeypatch.setattr(norms, "_measurements", lambda plan: figures)
    options = norms.Options(check=True, docs=tmp_path, threads=torch.get_num_threads())
    if status is None:
        norms.main(options)
    else:
        with pytest.raises(SystemExit, match=re.escape(f"{TIME}, 6144x64: 1.6, not 1.5")):
            norms.main(options)
    assert len(json.loads((tmp_path / "results" / "norms.json").read_text())["rows"]) == 2


def test_memory_is_counted_exactly() -> None:
    size, channels = 512 * 32 * 4, 32 * 4
    kept, forward, backward = norms.memory_of(lambda x, weight, bias: x * weight + bias, 512, 32)
    assert (kept, forward) == (size + channels, 2 * size)  # x and weight are kept; a product, then the sum beside it
    assert size < backward < 3 * size


@pytest.mark.slow
def test_every_figure_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.norms", "--quick", "--threads", "1", "--docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results" / "norms.json").read_text())["rows"]
    assert {row["figure"] for row in rows} == set(norms.BOUNDS)
    table = (tmp_path / "results" / "norms.md").read_text()
    assert table.strip() == done.stdout.strip()
    assert all(figure in table for figure in norms.BOUNDS)
