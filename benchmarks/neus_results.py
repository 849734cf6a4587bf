"""Trains and tabulates the tiny NeuS with and without norms: the tables of docs/RESULTS.md.

    python -m crossnorm_ns.data.make_scene dtu SCAN --resolution 128 --views 40 --seed 0
    python -m benchmarks.neus_results compare SCAN --name example
    python -m benchmarks.neus_results compare SCAN --name example-long --steps 2400 --seeds 0 --sides none cn-sdf \
        --learning-rates 0.002
    python -m benchmarks.neus_results ablate SCAN --name example
    python -m benchmarks.neus_results compare DTU/dtu_scan24 --name dtu_scan24 --downscale-factor 4 --steps 800 \
        --grid-steps 300 --seeds 0

Finished trainings are kept in the output folder and not repeated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.neus_pictures import draw_surfaces
from benchmarks.neus_training import Training
from benchmarks.processes import Result, train_all
from benchmarks.tables import store, table

LEARNING_RATES = (1e-3, 2e-3, 5e-3, 1e-2)
SIDES: dict[str, dict[str, Any]] = {"none": {"norm": "none"}, "cn": {}, "cn-sdf": {"color_norm": "none"}}
"""What is compared: no norm, CN in both networks, CN in the signed distance's network alone."""
PROGRAM = "benchmarks.neus_scores"

ABLATION: dict[str, dict[str, Any]] = {
    "none": {"norm": "none"},
    "CN in both networks": {},
    "CN in the signed distance's network": {"color_norm": "none"},
    "CN in the colour's network": {"sdf_norm": "none"},
    "BN in both networks": {"norm": "bn"},
    "LN in both networks": {"norm": "ln"},
    "GN in both networks": {"norm": "gn"},
    "CN, released form": {"variant": "released"},
    "CN, batch statistics in training": {"statistics": "batch"},
    "CN, scale 1 and shift 0 at the start": {"initialization": "default"},
    "CN, coupled gradients": {"coupled_gradients": True},
    "CN, batches of one picture": {"single_image": True},
    "none, batches of one picture": {"norm": "none", "single_image": True},
}
"""Changes to CN in both networks with the tiny preset's settings."""


def compare(
    data: Annotated[Path, tyro.conf.Positional],
    /,
    name: str,
    steps: int = 1200,
    grid_steps: int = 600,
    seeds: tuple[int, ...] = (0, 1, 2),
    sides: tuple[str, ...] = tuple(SIDES),
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    downscale_factor: int = 1,
    output: Path = Path("outputs/benchmarks/neus"),
    docs: Path = Path("docs"),
    jobs: int = 2,
) -> None:
    """Some learning rates for each side, then seeds at each side's best, at equal steps and at equal seconds.

    Args:
        data: scene folder in the layout of IDR and NeuS; with the example scan's reference beside it, or without one.
        name: of the scene, in file names.
        steps: of each training with these seeds.
        grid_steps: of each training of the learning-rate grid, seed 0.
        seeds: one training each.
        sides: none, cn (both networks), cn-sdf (the signed distance's alone); "none" has to be among them.
        learning_rates: tried for each side.
        downscale_factor: of the pictures.
        output: keeps runs, surfaces and results.
        docs: where results/neus-NAME.json, .md and images/neus-NAME.png go.
        jobs: trainings at a time, one thread each.
    """
    base = Training("", str(data.resolve()), "cn", 5e-3, steps, downscale_factor=downscale_factor)

    def trained(side: str, runs: Sequence[tuple[float, int, int]]) -> list[Result]:
        """Results of (learning rate, steps, seed)."""
        trainings = [
            replace(
                base,
                name=f"{name}-{side}-{rate:g}-{number}-s{seed}",
                learning_rate=rate,
                steps=number,
                seed=seed,
                **SIDES[side],
            )
            for rate, number, seed in runs
        ]
        return train_all(trainings, output, jobs, PROGRAM)

    grid = {side: trained(side, [(rate, grid_steps, 0) for rate in learning_rates]) for side in sides}
    best = {side: best_rate(results) for side, results in grid.items()}
    full = {side: trained(side, [(best[side], steps, seed) for seed in seeds]) for side in sides}
    ratios = {side: _seconds_per_step(results) / _seconds_per_step(full["none"]) for side, results in full.items()}
    results = {}
    for side, ratio in ratios.items():
        results[side] = full[side]
        if side != "none":
            runs = [(best[side], round(steps / ratio), seed) for seed in seeds]
            results[f"{side}, equal seconds"] = trained(side, runs)
    rows = [[label, f"{best[label.split(',')[0]]:g}", *_cells(group)] for label, group in results.items()]
    costs = " and ".join(f"{ratio:.2f} ({side})" for side, ratio in ratios.items() if side != "none")
    text = "\n\n".join(
        [
            f"Learning rates; the best of them is taken below. {_conditions(grid['none'])}",
            _grid_table(grid),
            f"Seeds {list(seeds)}, mean ± standard deviation; a step takes {costs} times one without a norm (processor "
            f"time). {_conditions(full['none'])}",
            table(["norm", "learning rate", *_HEADS], rows),
        ]
    )
    _write(docs, f"neus-{name}", text, [run for group in (*grid.values(), *results.values()) for run in group])
    files = {f"{side}, seed {seeds[0]}": output / f"{full[side][0]['run']['name']}.ply" for side in sides}
    there = {label: file for label, file in files.items() if file.exists()}
    if there:
        draw_surfaces(there, data, docs / "images" / f"neus-{name}.png")


def ablate(
    data: Annotated[Path, tyro.conf.Positional],
    /,
    name: str,
    steps: int = 600,
    learning_rate: float = 5e-3,
    seeds: tuple[int, ...] = (0,),
    output: Path = Path("outputs/benchmarks/neus"),
    docs: Path = Path("docs"),
    jobs: int = 2,
) -> None:
    """Where the norm stands, which norm, its start, its statistics, its gradients, and the batches; one learning rate.

    Args:
        data: example scan.
        name: of the scene, in file names.
        steps: of each training.
        learning_rate: of all trainings.
        seeds: one training each.
        output: keeps runs, surfaces and results.
        docs: where results/neus-NAME-ablation.json and .md go.
        jobs: trainings at a time, one thread each.
    """
    trainings = [
        replace(
            Training("", str(data.resolve()), "cn", learning_rate, steps, seed),
            name=f"{name}-ablation-{label.replace(' ', '_').replace(',', '')}-{learning_rate:g}-{steps}-s{seed}",
            **changes,
        )
        for label, changes in ABLATION.items()
        for seed in seeds
    ]
    results = train_all(trainings, output, jobs, PROGRAM)
    groups = [results[i : i + len(seeds)] for i in range(0, len(results), len(seeds))]
    rows = [[label, *_cells(group)] for label, group in zip(ABLATION, groups, strict=True)]
    text = f"Learning rate {learning_rate:g}, seeds {list(seeds)}. {_conditions(results)}\n\n"
    _write(docs, f"neus-{name}-ablation", text + table(["variant", *_HEADS], rows), results)


def best_rate(results: Sequence[Result]) -> float:
    """Learning rate with the lowest chamfer distance, or where no run has one with the highest PSNR."""
    compared = [r for r in results if "chamfer" in r]
    best = min(compared, key=lambda r: r["chamfer"]) if compared else max(results, key=lambda r: r["psnr"])
    return best["run"]["learning_rate"]


_HEADS = ["steps", "chamfer (mm)", "accuracy", "completeness", "PSNR in mask", "mask IoU", "seconds"]


def _cells(results: Sequence[Result]) -> list[str]:
    return [
        str(results[0]["run"]["steps"]),
        *[_spread(results, key, 2) for key in ("chamfer", "accuracy", "completeness", "psnr")],
        _spread(results, "mask_iou", 3),
        _spread(results, "seconds", 0),
    ]


def _spread(results: Sequence[Result], key: str, digits: int) -> str:
    values = [r[key] for r in results if key in r]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    missing = f" ({len(values)} of {len(results)})" if len(values) < len(results) else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{missing}"


def _grid_table(grid: Mapping[str, Sequence[Result]]) -> str:
    rows = []
    for results in zip(*grid.values(), strict=True):
        cells = [_spread([result], key, 3) for key in ("chamfer", "psnr", "mask_iou") for result in results]
        rows.append([f"{results[0]['run']['learning_rate']:g}", *cells])
    heads = [f"{side}: {score}" for score in ("chamfer", "PSNR", "mask IoU") for side in grid]
    return table(["learning rate", *heads], rows)


def _seconds_per_step(results: Sequence[Result]) -> float:
    return statistics.median(r["seconds"] / r["run"]["steps"] for r in results)


def _conditions(results: Sequence[Result]) -> str:
    training = results[0]["run"]
    return (
        f"{training['steps']} steps of 256 rays, networks 4 x 64 and 2 x 64, 24 + 24 samples; "
        f"every eighth view held out; {results[0]['machine']}."
    )


def _write(docs: Path, stem: str, text: str, results: Sequence[Result]) -> None:
    store(docs, stem, text)
    public = {}
    for result in results:
        run = {key: value for key, value in result["run"].items() if key != "data"}
        public[run["name"]] = {key: value for key, value in result.items() if key != "config"} | {"run": run}
    (docs / "results" / f"{stem}.json").write_text(json.dumps(list(public.values()), indent=1) + "\n")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"compare": compare, "ablate": ablate})
