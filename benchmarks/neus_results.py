"""Trains and tabulates the tiny NeuS with and without norms: the tables of docs/RESULTS.md.

    python -m crossnorm_ns.data.make_scene dtu SCAN --resolution 128 --views 40 --seed 0
    python -m benchmarks.neus_results compare SCAN --name example
    python -m benchmarks.neus_results ablate SCAN --name example
    python -m benchmarks.neus_results compare DTU/dtu_scan24 --name dtu_scan24 --downscale-factor 4 --seeds 0

Finished trainings are kept in the output folder and not repeated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.neus_pictures import draw_surfaces
from benchmarks.neus_training import Training
from benchmarks.processes import Result, train_all
from benchmarks.tables import store, table

LEARNING_RATES = (1e-3, 2e-3, 5e-3, 1e-2)
NORMS = ("none", "cn")
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
    downscale_factor: int = 1,
    output: Path = Path("outputs/benchmarks/neus"),
    docs: Path = Path("docs"),
    jobs: int = 2,
) -> None:
    """Four learning rates for both sides, then seeds at each side's best, at equal steps and at equal seconds.

    Args:
        data: scene folder in the layout of IDR and NeuS; with the example scan's reference beside it, or without one.
        name: of the scene, in file names.
        steps: of each training with these seeds.
        grid_steps: of each training of the learning-rate grid, seed 0.
        seeds: one training each.
        downscale_factor: of the pictures.
        output: keeps runs, surfaces and results.
        docs: where results/neus-NAME.json, .md and images/neus-NAME.png go.
        jobs: trainings at a time, one thread each.
    """
    base = Training("", str(data.resolve()), "cn", 5e-3, steps, downscale_factor=downscale_factor)

    def named(norm: str, rate: float, steps: int, seed: int) -> Training:
        label = f"{name}-{norm}-{rate:g}-{steps}-s{seed}"
        return replace(base, name=label, norm=norm, learning_rate=rate, steps=steps, seed=seed)

    def trained(trainings: Sequence[Training]) -> list[Result]:
        return train_all(trainings, output, jobs, PROGRAM)

    grid = trained([named(norm, rate, grid_steps, 0) for rate in LEARNING_RATES for norm in NORMS])
    best = {norm: best_rate(grid, norm) for norm in NORMS}
    equal_steps = trained([named(norm, best[norm], steps, seed) for seed in seeds for norm in NORMS])
    sides = {norm: [r for r in equal_steps if r["run"]["norm"] == norm] for norm in NORMS}
    ratio = statistics.median(_seconds(sides["cn"])) / statistics.median(_seconds(sides["none"]))
    fewer = round(steps / ratio)
    sides["cn, equal seconds"] = trained([named("cn", best["cn"], fewer, seed) for seed in seeds])
    rows = [[label, f"{best[label.split(',')[0]]:g}", *_cells(results)] for label, results in sides.items()]
    heads = ["norm", "learning rate", *_HEADS]
    text = "\n\n".join(
        [
            f"Learning rates; the best of them is taken below. {_conditions(grid)}",
            _grid_table(grid),
            f"Seeds {list(seeds)}, mean ± standard deviation; a CN step takes {ratio:.2f} times a plain one (processor "
            f"time). {_conditions(equal_steps)}",
            table(heads, rows),
        ]
    )
    _write(docs, f"neus-{name}", text, [*grid, *equal_steps, *sides["cn, equal seconds"]])
    files = {f"{norm}, seed {seeds[0]}": output / f"{sides[norm][0]['run']['name']}.ply" for norm in NORMS}
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


def best_rate(results: Sequence[Result], norm: str) -> float:
    """Learning rate of a norm with the lowest chamfer distance, or where no run has one with the highest PSNR."""
    mine = [r for r in results if r["run"]["norm"] == norm]
    compared = [r for r in mine if "chamfer" in r]
    best = min(compared, key=lambda r: r["chamfer"]) if compared else max(mine, key=lambda r: r["psnr"])
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


def _grid_table(results: Sequence[Result]) -> str:
    rows = []
    for rate in LEARNING_RATES:
        sides = {r["run"]["norm"]: [r] for r in results if r["run"]["learning_rate"] == rate}
        cells = [_spread(sides[norm], key, 3) for key in ("chamfer", "psnr", "mask_iou") for norm in NORMS]
        rows.append([f"{rate:g}", *cells])
    heads = [f"{norm}: {score}" for score in ("chamfer", "PSNR", "mask IoU") for norm in ("none", "CN")]
    return table(["learning rate", *heads], rows)


def _seconds(results: Sequence[Result]) -> list[float]:
    return [r["seconds"] / r["run"]["steps"] for r in results]


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
