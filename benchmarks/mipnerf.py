"""Trains and tabulates the tiny mip-NeRF with and without Cross Normalization: the tables of docs/RESULTS.md.

    python -m benchmarks.mipnerf compare SCENE_FOLDER --name lego --steps 3000
    python -m benchmarks.mipnerf attempt SCENE_FOLDER --name lego
    python -m benchmarks.mipnerf ablate SCENE_FOLDER --name example --steps 1000

Finished trainings are kept in the output folder and not repeated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import mipnerf_plans as plans
from benchmarks.processes import Result, train_all

PROGRAM = "benchmarks.training_runs"


def compare(
    data: Annotated[Path, tyro.conf.Positional],
    /,
    name: str,
    steps: int = 3000,
    grid_steps: int = 2000,
    grid_only: bool = False,
    output: Path = Path("outputs/benchmarks"),
    docs: Path = Path("docs"),
    jobs: int = 2,
) -> None:
    """Learning-rate grid for both sides, seeds at the best and at the published rate, equal seconds.

    Args:
        data: scene folder in Blender format.
        name: of the scene, in file names and headings.
        steps: of each training with three seeds.
        grid_steps: of each training of the learning-rate grid.
        grid_only: stops after the learning-rate grid.
        output: keeps the result of each training.
        docs: where results/mipnerf-NAME.json, .md and images/mipnerf-NAME.png go.
        jobs: trainings at a time, one thread each.
    """
    scene = str(data.resolve())
    grid = train_all(plans.grid(name, scene, grid_steps), output, jobs, PROGRAM)
    if grid_only:
        write(docs, f"mipnerf-{name}", grid, [grid_table(grid)])
        return
    best = {norm: plans.best_rate(grid, norm) for norm in plans.NORMS}
    seeds = train_all(plans.seeds(name, scene, steps, best), output, jobs, PROGRAM)
    ratio = step_ratio(seeds)
    equal = train_all(plans.equal_seconds(name, scene, steps, best, ratio), output, jobs, PROGRAM)
    tables = [grid_table(grid), seeds_table(seeds, equal, best, ratio)]
    write(docs, f"mipnerf-{name}", [*grid, *seeds, *equal], tables)
    plot(seeds, equal, best, docs / "images" / f"mipnerf-{name}.png", name)


def attempt(
    data: Annotated[Path, tyro.conf.Positional],
    /,
    name: str,
    steps: int = 2000,
    none_rate: float = 5e-3,
    cn_rate: float = 5e-3,
    output: Path = Path("outputs/benchmarks"),
    docs: Path = Path("docs"),
    jobs: int = 2,
) -> None:
    """What might make CN win more: one change each, at the published and at a higher learning rate, one seed.

    Args:
        data: scene folder in Blender format.
        name: of the scene, in file names and headings.
        steps: of each training.
        none_rate: higher learning rate of the plain network.
        cn_rate: higher learning rate of CN.
        output: keeps the result of each training.
        docs: where results/mipnerf-NAME-attempts.json and .md go.
        jobs: trainings at a time, one thread each.
    """
    runs = plans.attempts(name, str(data.resolve()), steps, {"none": none_rate, "cn": cn_rate})
    results = train_all(runs, output, jobs, PROGRAM)
    write(docs, f"mipnerf-{name}-attempts", results, [attempts_table(results)])


def ablate(
    data: Annotated[Path, tyro.conf.Positional],
    /,
    name: str,
    steps: int = 1000,
    learning_rate: float = 5e-3,
    seeds: tuple[int, ...] = (0,),
    output: Path = Path("outputs/benchmarks"),
    docs: Path = Path("docs"),
    jobs: int = 2,
) -> None:
    """Norms, statistics and placement at one learning rate.

    Args:
        data: scene folder in Blender format.
        name: of the scene, in file names and headings.
        steps: of each training.
        learning_rate: of all trainings.
        seeds: one training each.
        output: keeps the result of each training.
        docs: where results/mipnerf-NAME-ablation.json and .md go.
        jobs: trainings at a time, one thread each.
    """
    runs = plans.ablation(name, str(data.resolve()), steps, learning_rate, seeds)
    results = train_all(runs, output, jobs, PROGRAM)
    write(docs, f"mipnerf-{name}-ablation", results, [ablation_table(results)])


def step_ratio(results: Sequence[Result]) -> float:
    """Median over pairs of equal seed and learning rate kind: processor time of a CN step over that of a plain one."""
    seconds = {norm: [_step_seconds(r) for r in results if r["run"]["norm"] == norm] for norm in plans.NORMS}
    return statistics.median(seconds["cn"]) / statistics.median(seconds["none"])


def _step_seconds(result: Result) -> float:
    return result["seconds"] / result["run"]["steps"]


def _select(results: Sequence[Result], norm: str, rate: float) -> list[Result]:
    return [r for r in results if r["run"]["norm"] == norm and r["run"]["learning_rate"] == rate]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join([_row(*heads), _row(*["---"] * len(heads)), *rows])


def _conditions(results: Sequence[Result]) -> str:
    run, first = results[0]["run"], results[0]
    return (
        f"{run['steps']} steps of {run['rays']} rays, {run['depth']} x 64, 24 + 24 samples, "
        f"{first['views']} test views, {first['machine']}"
    )


def grid_table(results: Sequence[Result]) -> str:
    """Both sides at each learning rate, one seed."""
    rows = []
    for rate in sorted({r["run"]["learning_rate"] for r in results}):
        (plain,), (cross,) = _select(results, "none", rate), _select(results, "cn", rate)
        rows.append(
            _row(
                f"{rate:g}",
                f"{plain['psnr']:.2f}",
                f"{cross['psnr']:.2f}",
                f"{cross['psnr'] - plain['psnr']:+.2f}",
                f"{plain['ssim']:.4f}",
                f"{cross['ssim']:.4f}",
            )
        )
    heads = ["learning rate", "none PSNR", "CN PSNR", "CN - none", "none SSIM", "CN SSIM"]
    return f"One seed (0); {_conditions(results)}.\n\n{_table(heads, rows)}"


def seconds_to_reach(result: Result, psnr: float) -> float | None:
    """Processor seconds until a curve first reaches a PSNR, interpolated between its points."""
    before = None
    for point in result["curve"]:
        if point["psnr"] >= psnr:
            if before is None or point["psnr"] == before["psnr"]:
                return point["seconds"]
            share = (psnr - before["psnr"]) / (point["psnr"] - before["psnr"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def seeds_table(results: Sequence[Result], equal: Sequence[Result], best: dict[str, float], ratio: float) -> str:
    """Mean and standard deviation over seeds: at the published rate, and best against best."""
    rows = []
    for label, rates in {"published": dict.fromkeys(plans.NORMS, plans.PUBLISHED_RATE), "best": best}.items():
        plain = _select(results, "none", rates["none"])
        rivals = {kind: _select(runs, "cn", rates["cn"]) for kind, runs in (("steps", results), ("seconds", equal))}
        rows.append(
            _row(
                f"{label}: {rates['none']:g}",
                "none",
                plain[0]["run"]["steps"],
                _spread([r["psnr"] for r in plain]),
                "",
                _spread([r["ssim"] for r in plain], 4),
                _spread([r["seconds"] for r in plain], 0),
                "",
            )
        )
        for kind, cross in rivals.items():
            gains = [c["psnr"] - p["psnr"] for c, p in zip(cross, plain, strict=True)]
            rows.append(
                _row(
                    f"{label}: {rates['cn']:g}",
                    f"CN, equal {kind}",
                    cross[0]["run"]["steps"],
                    _spread([r["psnr"] for r in cross]),
                    _spread(gains) if min(gains) < 0 else f"+{_spread(gains)}",
                    _spread([r["ssim"] for r in cross], 4),
                    _spread([r["seconds"] for r in cross], 0),
                    _reached(cross, plain),
                )
            )
    heads = ["learning rate", "norm", "steps", "PSNR", "gain", "SSIM", "seconds", "seconds to none's PSNR / none's"]
    return (
        f"Three seeds (0, 1, 2), mean ± standard deviation; a CN step takes {ratio:.2f} times a plain one "
        f"(processor time); {_conditions(results)}.\n\n{_table(heads, rows)}"
    )


def _reached(cross: Sequence[Result], plain: Sequence[Result]) -> str:
    ratios = []
    for c, p in zip(cross, plain, strict=True):
        seconds = seconds_to_reach(c, p["curve"][-1]["psnr"])
        if seconds is None:
            return f"not reached with seed {c['run']['seed']}"
        ratios.append(seconds / p["seconds"])
    return _spread(ratios)


def attempts_table(results: Sequence[Result]) -> str:
    """Each attempt beside the unchanged CN and the plain network, which has the change too where it can have it."""
    groups: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        norm, kind, label, _ = result["run"]["name"].split("-attempt-")[1].split("-")
        groups.setdefault((kind, norm), {})[label.replace("_", " ")] = result
    rows = []
    for kind, heading in (("published", "published: "), ("best", "")):
        plain, cross = groups[kind, "none"], groups[kind, "cn"]
        for label, result in cross.items():
            rival = plain.get(label, plain["unchanged"])
            rows.append(
                _row(
                    f"{heading}{result['run']['learning_rate']:g}",
                    label,
                    result["run"]["steps"],
                    f"{rival['psnr']:.2f}",
                    f"{result['psnr']:.2f}",
                    f"{result['psnr'] - rival['psnr']:+.2f}",
                    f"{result['psnr'] - cross['unchanged']['psnr']:+.2f}",
                )
            )
    heads = ["learning rate", "change", "steps", "none", "CN", "CN - none", "CN - unchanged CN"]
    return f"Seed 0; Glorot weights (unchanged CN); {_conditions(results)}.\n\n{_table(heads, rows)}"


def ablation_table(results: Sequence[Result]) -> str:
    """All variants, and other statistics at evaluation where they were measured."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        label = result["run"]["name"].split("-ablation-")[1].rsplit("-", 2)[0]
        groups.setdefault(label, []).append(result)
    rows = []
    for label, group in groups.items():
        rows.append(_row(label, _spread([r["psnr"] for r in group]), _spread([r["ssim"] for r in group], 4)))
        for key in ("moving_average", "chunks"):
            if key in group[0]:
                psnrs, ssims = [r[key]["psnr"] for r in group], [r[key]["ssim"] for r in group]
                rows.append(_row(f"{label}, evaluated with {key.replace('_', ' ')}", _spread(psnrs), _spread(ssims, 4)))
    rate, seeds = results[0]["run"]["learning_rate"], sorted({r["run"]["seed"] for r in results})
    table = _table(["variant", "PSNR", "SSIM"], rows)
    return f"Learning rate {rate:g}, seeds {seeds}; {_conditions(results)}.\n\n{table}"


def write(docs: Path, stem: str, results: Sequence[Result], tables: Sequence[str]) -> None:
    """Stores results without their local paths, and the tables; prints the tables."""
    folder = docs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    public = {r["run"]["name"]: r | {"run": {k: v for k, v in r["run"].items() if k != "data"}} for r in results}
    (folder / f"{stem}.json").write_text(json.dumps(list(public.values()), indent=1) + "\n")
    text = "\n\n".join(tables) + "\n"
    (folder / f"{stem}.md").write_text(text)
    print(text)


def plot(results: Sequence[Result], equal: Sequence[Result], best: dict[str, float], path: Path, name: str) -> None:
    """PSNR against steps and against seconds, all seeds, at the published and at each side's best learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = [dict.fromkeys(plans.NORMS, plans.PUBLISHED_RATE), best]
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharey="row", layout="constrained")
    styles = {"none": ("tab:gray", "none"), "cn": ("tab:blue", "CN"), "equal": ("tab:orange", "CN, equal seconds")}
    for row, chosen in zip(axes, rates, strict=True):
        curves = {
            "none": _select(results, "none", chosen["none"]),
            "cn": _select(results, "cn", chosen["cn"]),
            "equal": _select(equal, "cn", chosen["cn"]),
        }
        for axis, key in zip(row, ("step", "seconds"), strict=True):
            for kind, group in curves.items():
                color, label = styles[kind]
                for i, result in enumerate(group):
                    xs, ys = zip(*[(point[key], point["psnr"]) for point in result["curve"]], strict=True)
                    axis.plot(xs, ys, color=color, label=None if i else label, linewidth=1.2, alpha=0.8)
            axis.set_xlabel("step" if key == "step" else "processor seconds")
            axis.grid(alpha=0.3)
        row[0].set_ylabel("test PSNR (dB)")
        row[0].set_title(f"{name}, learning rate none {chosen['none']:g}, CN {chosen['cn']:g}", loc="left", fontsize=10)
        row[0].legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"compare": compare, "attempt": attempt, "ablate": ablate})
