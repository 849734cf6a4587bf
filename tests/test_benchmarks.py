"""The benchmark's arithmetic, and the demo as a user runs it, made small."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.mipnerf import attempts_table, grid_table, seconds_to_reach, seeds_table, step_ratio
from benchmarks.mipnerf_plans import attempts, best_rate, equal_seconds, grid

ROOT = Path(__file__).parents[1]


def result(norm: str, rate: float, psnr: float, seed: int = 0, seconds: float = 10.0, steps: int = 100) -> dict:
    run = {"norm": norm, "learning_rate": rate, "seed": seed, "steps": steps, "rays": 256, "depth": 8, "name": "n"}
    curve = [{"seconds": seconds / 2, "psnr": psnr - 2}, {"seconds": seconds, "psnr": psnr}]
    return {"run": run, "psnr": psnr, "ssim": 0.9, "seconds": seconds, "views": 3, "curve": curve, "machine": "m"}


def test_seconds_to_reach_a_psnr_are_interpolated_between_curve_points() -> None:
    run = result("cn", 1e-3, 30.0, seconds=20.0)
    assert seconds_to_reach(run, 29.0) == pytest.approx(15.0)
    assert seconds_to_reach(run, 28.0) == 10.0
    assert seconds_to_reach(run, 30.1) is None


def test_best_rate_is_the_one_with_the_highest_psnr_of_that_norm() -> None:
    results = [result("none", 1e-3, 20), result("none", 1e-2, 22), result("cn", 1e-3, 25), result("cn", 1e-2, 24)]
    assert best_rate(results, "none") == 1e-2
    assert best_rate(results, "cn") == 1e-3


def test_equal_seconds_runs_have_fewer_steps_by_the_ratio_of_step_times() -> None:
    results = [result("none", 1e-3, 20, seconds=10), result("cn", 1e-3, 21, seconds=15)]
    ratio = step_ratio(results)
    assert ratio == pytest.approx(1.5)
    assert {run.steps for run in equal_seconds("s", "d", 300, {"none": 1e-3, "cn": 1e-3}, ratio)} == {200}


def test_both_sides_are_trained_at_the_same_learning_rates() -> None:
    runs = grid("s", "d", 100)
    rates = {norm: [run.learning_rate for run in runs if run.norm == norm] for norm in ("none", "cn")}
    assert rates["none"] == rates["cn"]
    assert len(rates["cn"]) >= 5 and min(rates["cn"]) == 5e-4 and max(rates["cn"]) == 4e-2


def test_tables_show_losses_as_losses() -> None:
    pairs = [result("none", 5e-4, 20), result("cn", 5e-4, 19.5)]
    assert "| 0.0005 | 20.00 | 19.50 | -0.50 |" in grid_table(pairs)
    seeds = [result(norm, 5e-4, psnr, seed) for seed in range(3) for norm, psnr in (("none", 20), ("cn", 19 + seed))]
    equal = [r for r in seeds if r["run"]["norm"] == "cn"]
    text = seeds_table(seeds, equal, {"none": 5e-4, "cn": 5e-4}, 1.5)
    assert "0.00 ± 1.00" in text
    assert "not reached with seed 0" in text


def test_attempts_are_compared_with_the_unchanged_run_and_with_the_plain_network() -> None:
    tried = [
        result(run.norm, run.learning_rate, psnr) | {"run": asdict(run)}
        for run in attempts("s", "d", 100, {"none": 1e-2, "cn": 2e-3})
        for psnr in [{"none": 20.0, "cn": 21.0}[run.norm] - 1.5 * ("frozen" in run.name) + ("rays" in run.name)]
    ]
    table = attempts_table(tried)
    assert "| published: 0.0005 | unchanged | 100 | 20.00 | 21.00 | +1.00 | +0.00 |" in table
    assert "| 0.002 | frozen late | 100 | 20.00 | 19.50 | -0.50 | -1.50 |" in table
    assert "| 0.002 | 512 rays half the steps | 50 | 21.00 | 22.00 | +1.00 | +1.00 |" in table


@pytest.mark.slow
def test_demo_trains_both_methods_and_writes_its_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo", "--output", str(tmp_path), "--steps", "4"]
    small = ["--resolution", "24", "--train", "6", "--test", "3"]
    done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mipnerf-ref" in done.stdout and "mipnerf-cn" in done.stdout
    report = (tmp_path / "report.html").read_text()
    assert report.count("<tr>") == 3 and "data:image/png;base64," in report
    assert (tmp_path / "report.png").stat().st_size > 10_000
    for method in ("mipnerf-ref", "mipnerf-cn"):
        scores = json.loads((tmp_path / f"{method}-eval.json").read_text())
        assert scores["protocol"] == "mipnerf" and scores["num_images"] == 3
        assert f"{scores['psnr']:.2f}" in report
        (config,) = tmp_path.glob(f"runs/*/*/{method}/config.yml")
        assert list(config.parent.glob("nerfstudio_models/*.ckpt"))
