"""What is trained for docs/RESULTS.md: learning-rate grids, seeds, equal seconds, ablations, attempts to gain more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.training_runs import Run

LEARNING_RATES = (5e-4, 2e-3, 5e-3, 1e-2, 2e-2, 4e-2)
PUBLISHED_RATE = 5e-4
SEEDS = (0, 1, 2)
NORMS = ("none", "cn")


def plain_run(scene: str, data: str, norm: str, rate: float, steps: int, seed: int) -> Run:
    """The tiny preset with a norm, at a learning rate."""
    return Run(f"{scene}-{norm}-{rate:g}-{steps}-s{seed}", data, norm, rate, steps, seed)


def grid(scene: str, data: str, steps: int) -> list[Run]:
    """Both sides at every learning rate, one seed."""
    runs = [plain_run(scene, data, norm, rate, steps, seed=0) for rate in LEARNING_RATES for norm in NORMS]
    return [replace(run, num_curve_points=1) for run in runs]


def best_rate(results: Sequence[dict[str, Any]], norm: str) -> float:
    """Learning rate with the highest final PSNR of a norm in a grid's results."""
    mine = [r for r in results if r["run"]["norm"] == norm]
    return max(mine, key=lambda r: r["psnr"])["run"]["learning_rate"]


def seeds(scene: str, data: str, steps: int, best: dict[str, float]) -> list[Run]:
    """All seeds at each side's best learning rate and at the published one."""
    return [
        plain_run(scene, data, norm, rate, steps, seed)
        for seed in SEEDS
        for norm in NORMS
        for rate in sorted({PUBLISHED_RATE, best[norm]})
    ]


def equal_seconds(scene: str, data: str, steps: int, best: dict[str, float], ratio: float) -> list[Run]:
    """CN with as many steps, its schedule with them, as fit into the time of the plain network."""
    fewer = round(steps / ratio)
    return [
        plain_run(scene, data, "cn", rate, fewer, seed)
        for seed in SEEDS
        for rate in sorted({PUBLISHED_RATE, best["cn"]})
    ]


def ablation(scene: str, data: str, steps: int, rate: float, seeds: Sequence[int]) -> list[Run]:
    """Norms, statistics of the levels and at evaluation, placement; one learning rate."""
    runs = []
    for seed in seeds:
        base = Run("", data, "cn", rate, steps, seed, num_curve_points=1)
        for label, changes in {
            "none": {"norm": "none"},
            "bn": {"norm": "bn"},
            "ln": {"norm": "ln"},
            "gn": {"norm": "gn"},
            "cn-released": {"statistics_at_evaluation": True},
            "cn-paper": {"variant": "paper"},
            "shared": {"model": "SharedStatistics", "statistics_at_evaluation": True},
            "first-layer-plain": {"model": "FirstLayerPlain"},
            "trunk-only": {"model": "TrunkOnly"},
            "trunk-without-first": {"model": "TrunkWithoutFirst"},
        }.items():
            runs.append(replace(base, name=f"{scene}-ablation-{label}-{rate:g}-s{seed}", **changes))
    return runs


def attempts(scene: str, data: str, steps: int, best: dict[str, float]) -> list[Run]:
    """One change each to CN with Glorot weights, as published, beside the unchanged run; one seed.

    What changes the speed of learning is tried at the published and at the given learning rate, the rest at the latter;
    what is not a matter of norms, on the plain network as well.
    """
    speed: dict[str, dict[str, Any]] = {
        "unchanged": {},
        "weights x0.5": {"weight_scale": 0.5},
        "weights x0.25": {"weight_scale": 0.25},
        "norm rate x10": {"norm_rate": 10.0},
        "first layer plain": {"model": "FirstLayerPlain"},
    }
    mine: dict[str, dict[str, Any]] = {
        "paper form": {"variant": "paper"},
        "identity init": {"initialization": "identity"},
        "renormalised": {"statistics": "renorm"},
        "renormalised late": {"late_statistics": "renorm", "late_from": 0.7},
        "frozen late": {"late_statistics": "frozen", "late_from": 0.7},
        "gamma decay 0.1": {"gamma_decay": 0.1},
    }
    both: dict[str, dict[str, Any]] = {
        "512 rays, half the steps": {"rays": 512, "steps": steps // 2},
        "no warmup": {"delay_steps": 0},
        "final multiplier 0.01": {"final_multiplier": 0.01},
    }
    runs = []
    for label, change in (speed | mine | both).items():
        for kind in ("published", "best") if label in speed else ("best",):
            for norm in NORMS if label == "unchanged" or label in both else ("cn",):
                rate = PUBLISHED_RATE if kind == "published" else best[norm]
                name = f"{scene}-attempt-{norm}-{kind}-{label.replace(' ', '_').replace(',', '')}-{steps}"
                base = Run(name, data, norm, rate, steps, weight_scale=1.0, num_curve_points=1)
                runs.append(replace(base, **change))
    return runs
