"""CN in other methods beside their plain forms: VolSDF, and nerfstudio's own vanilla NeRF and nerfacto.

    python -m benchmarks.elsewhere                       # on the GPU if there is one
    python -m benchmarks.elsewhere --methods vanilla-nerf --resolution 24 --vanilla-nerf.steps 20   # a look on a CPU

Trains each method without a norm and with CN on the built-in example scene (VolSDF: the example scan), at the same
multiples of its published learning rates. The rate of each side is chosen on validation views, and both are compared at
equal steps and at equal seconds. The plain sides of nerfstudio's methods are nerfstudio's models to the bit, on the same
trainer. Finished trainings are kept in the output folder and not repeated.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tyro

from benchmarks.elsewhere_training import HELD_OUT_EVERY, Method, Preset, Training
from benchmarks.mipnerf import seconds_to_reach
from benchmarks.processes import Result, train_all
from benchmarks.tables import store, table

PROGRAM = "benchmarks.elsewhere_training"
SIDES = ("none", "cn")
_LOCAL_OPTIONS = ("--output", "--docs")


@dataclass
class Size:
    """How a method is trained."""

    steps: int
    """Of each training."""
    rays: int
    """Of each step."""
    rates: tuple[float, ...]
    """Multiples of the published learning rates of all groups of parameters, tried for both sides."""


@dataclass
class Options:
    """Trains, compares, and writes docs/results/elsewhere.md and .json."""

    methods: tuple[Method, ...] = get_args(Method)
    """Which are trained, one after the other."""
    vanilla_nerf: Size = field(default_factory=lambda: Size(1000, 512, (1, 3, 10)))
    """nerfstudio's vanilla NeRF, published at 5e-4."""
    nerfacto: Size = field(default_factory=lambda: Size(600, 1024, (1 / 3, 1, 3)))
    """nerfstudio's nerfacto in plain PyTorch, published at 1e-2."""
    volsdf: Size = field(default_factory=lambda: Size(600, 256, (1, 3, 10)))
    """VolSDF, published at 5e-4; its tiny preset has 2e-3."""
    seeds: tuple[int, ...] = (0,)
    """One training each at each rate; tables show means."""
    preset: Preset | None = None
    """full: networks and samples as registered. tiny: fewer samples, smaller hash grids, VolSDF's tiny networks. By
    default full on a GPU and tiny without one."""
    moments: int = 8
    """Renderings of the held-out views in each training, evenly spaced; equal seconds are read between them."""
    processes: int | None = None
    """Trainings at a time. By default those of a method at once on a GPU, whose time they share, and 2 without one."""
    resolution: int = 100
    """Width and height of all pictures."""
    train_views: int = 60
    """Of the scene; the scan has ten times --held-out-views."""
    held_out_views: int = 5
    """For the test, and as many for the choice of the learning rate."""
    mesh_resolution: int = 160
    """Grid points along each axis, for VolSDF's surfaces."""
    output: Path = Path("outputs/benchmarks/elsewhere")
    """Keeps scenes and the result of each training."""
    docs: Path = Path("docs")
    """Where results/elsewhere.md and elsewhere.json go."""


def main(options: Options) -> None:
    """Trains one method after the other; what has been measured is written after each.

    Raises:
        SystemExit: trainings failed, each of which is named; those of the other methods are written all the same.
    """
    results: list[Result] = []
    failures = []
    for method in options.methods:
        runs = trainings(method, options)
        try:
            results += train_all(runs, options.output, _processes(options, runs), PROGRAM)
        except RuntimeError as error:
            failures.append(str(error))
            continue
        write(options, results)
    if failures:
        sys.exit("\n".join(failures))


def trainings(method: Method, options: Options) -> list[Training]:
    """Both sides at all rates with all seeds; neighbours differ in their side alone."""
    size: Size = getattr(options, method.replace("-", "_"))
    preset = options.preset or ("full" if _on_gpu() else "tiny")
    data = str(scene(method, options))
    return [
        Training(
            f"{method}-{norm}-{rate:.3g}-{size.steps}-s{seed}",
            data,
            method,
            norm,
            rate,
            size.steps,
            size.rays,
            preset,
            seed,
            options.moments,
            options.mesh_resolution,
        )
        for seed in options.seeds
        for rate in size.rates
        for norm in SIDES
    ]


def scene(method: Method, options: Options) -> Path:
    """The example scene, or for VolSDF the example scan, written where it is not there yet."""
    from crossnorm_ns.data import make_scene

    size, train, held_out = options.resolution, options.train_views, options.held_out_views
    kind = "scan" if method == "volsdf" else "scene"
    folder = options.output.resolve() / f"{kind}-{size}-{train}-{held_out}"
    if not folder.exists():
        if kind == "scan":
            make_scene.dtu(folder, resolution=size, views=2 * held_out * HELD_OUT_EVERY)
        else:
            make_scene.blender(folder, resolution=size, train=train, val=held_out, test=held_out)
    return folder


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _processes(options: Options, runs: Sequence[Training]) -> int:
    return options.processes or (len(runs) if _on_gpu() else 2)


@dataclass
class Verdict:
    """Both sides of a method at the learning rates that were best for them; means over seeds."""

    method: str
    rates: dict[str, float]
    """Learning rates by side."""
    at_edge: dict[str, bool]
    """Whether that was the lowest or the highest of those that were tried, by side."""
    plain: dict[str, float]
    """Scores."""
    equal_steps: dict[str, float]
    """CN's scores at the end."""
    equal_seconds: dict[str, float]
    """CN's scores when the plain side had finished; NaN where CN had not been looked at by then."""
    step_ratio: float
    """Seconds of a CN step over those of a plain one."""
    to_plain: float | None
    """Seconds until CN had the plain side's last PSNR over the plain side's; None where it never had it."""


def verdict(results: Sequence[Result]) -> Verdict | None:
    """Of the results of one method; None where a side broke off at all its learning rates."""
    best: dict[str, list[Result]] = {}
    at_edge: dict[str, bool] = {}
    for side in SIDES:
        groups = [group for group in _groups(results) if group[0]["run"]["norm"] == side]
        whole = [group for group in groups if not any("error" in result for result in group)]
        if not whole:
            return None
        best[side] = max(whole, key=lambda group: _mean(group, "validation_psnr"))
        at_edge[side] = best[side] in (groups[0], groups[-1])
    plain, cross = best["none"], best["cn"]
    pairs = list(zip(plain, cross, strict=True))
    at_time = [scores_after(cn["curve"], none["seconds"]) for none, cn in pairs]
    reached = [seconds_to_reach(cn, none["psnr"]) for none, cn in pairs]
    shares = [seconds / none["seconds"] for seconds, none in zip(reached, plain, strict=True) if seconds is not None]
    scores = [name for name in ("psnr", "ssim", "chamfer") if all(name in r for r in (*plain, *cross))]
    return Verdict(
        method=plain[0]["run"]["method"],
        rates={side: group[0]["learning_rate"] for side, group in best.items()},
        at_edge=at_edge,
        plain={name: _mean(plain, name) for name in scores},
        equal_steps={name: _mean(cross, name) for name in scores},
        equal_seconds={name: statistics.mean(found[name] for found in at_time) for name in ("psnr", "ssim")},
        step_ratio=_mean(cross, "seconds") / _mean(plain, "seconds"),
        to_plain=statistics.mean(shares) if len(shares) == len(pairs) else None,
    )


def scores_after(curve: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float]:
    """PSNR and SSIM after so many seconds of training, interpolated; NaN before the first moment of the curve."""
    times = [point["seconds"] for point in curve]
    return {
        name: float(np.interp(seconds, times, [point[name] for point in curve], left=np.nan))
        for name in ("psnr", "ssim")
    }


def _groups(results: Sequence[Result]) -> list[list[Result]]:
    """The seeds of each side at each rate, in the order of the rates."""
    keys = {(r["run"]["rate"], r["run"]["norm"]) for r in results}
    order = sorted(keys, key=lambda key: (key[0], SIDES.index(key[1])))
    return [[r for r in results if (r["run"]["rate"], r["run"]["norm"]) == key] for key in order]


def _mean(results: Sequence[Result], name: str) -> float:
    return statistics.mean(result[name] for result in results)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Best against best, a row for each method."""
    rows = []
    for found in verdicts:
        rates = [f"{found.rates[side]:.2g}{' (edge)' if found.at_edge[side] else ''}" for side in SIDES]
        plain, steps, seconds = found.plain, found.equal_steps, found.equal_seconds
        rows.append(
            [
                found.method,
                *rates,
                f"{plain['psnr']:.2f}",
                *(_with_gain(scores["psnr"], plain["psnr"]) for scores in (steps, seconds)),
                " / ".join(f"{scores['ssim']:.3f}" for scores in (plain, steps, seconds)),
                " / ".join(f"{scores['chamfer']:.2f}" for scores in (plain, steps)) if "chamfer" in plain else "-",
                f"{found.step_ratio:.2f}",
                "not reached" if found.to_plain is None else f"{found.to_plain:.2f}",
            ]
        )
    heads = [
        "method",
        "rate: none",
        "rate: CN",
        "PSNR: none",
        "CN, equal steps",
        "CN, equal seconds",
        "SSIM: none / CN, steps / CN, seconds",
        "chamfer (mm): none / CN",
        "CN's step / none's",
        "seconds to none's PSNR / none's",
    ]
    return table(heads, rows)


def _with_gain(psnr: float, plain: float) -> str:
    return "-" if np.isnan(psnr) else f"{psnr:.2f} ({psnr - plain:+.2f})"


def grid_table(results: Sequence[Result]) -> str:
    """All sides and rates of one method."""
    rows = []
    for group in _groups(results):
        run = group[0]["run"]
        cells = [_cell(group, name, digits) for name, digits in _GRID_CELLS.items()]
        rows.append([run["norm"], f"{group[0]['learning_rate']:.2g}", f"{run['rate']:.3g}", *cells])
    broken = dict.fromkeys(r["error"] for r in results if "error" in r)
    lost = dict.fromkeys(r["surface_error"] for r in results if "surface_error" in r)
    notes = "".join(f"\n\n{reason}" for reason in (*broken, *lost))
    heads = ["norm", "learning rate", "of the published", "PSNR", "SSIM", "validation PSNR", "chamfer (mm)", "seconds"]
    return table(heads, rows) + notes


_GRID_CELLS = {"psnr": 2, "ssim": 3, "validation_psnr": 2, "chamfer": 2, "seconds": 1}


def _cell(group: Sequence[Result], name: str, digits: int) -> str:
    if any("error" in result for result in group):
        return "broke off"
    return f"{_mean(group, name):.{digits}f}" if all(name in result for result in group) else "-"


def report(options: Options, results: Sequence[Result]) -> tuple[str, list[Verdict]]:
    """All tables, and the verdicts."""
    by_method = {m: [r for r in results if r["run"]["method"] == m] for m in options.methods}
    by_method = {method: mine for method, mine in by_method.items() if mine}
    verdicts = [found for mine in by_method.values() if (found := verdict(mine)) is not None]
    device, first = results[0]["device"], results[0]
    clock = (
        f"seconds inside training steps, of the clock; {{at_once}} share the {device}"
        if device != "cpu"
        else "processor seconds inside training steps"
    )
    parts = [
        f"Seeds {list(options.seeds)}, pictures of {options.resolution}x{options.resolution} pixels, {device}, "
        f"{first['machine']}. The learning rate of each side is the one with the highest PSNR on the validation views at "
        "the end (the scan has none: every second of its held-out views serves for that, and the others are the test). "
        "Equal seconds: CN when the plain side has done all its steps, interpolated between renderings on the way.",
        f"`{command()}`",
        verdict_table(verdicts),
    ]
    for method, mine in by_method.items():
        run = mine[0]["run"]
        at_once = f"{_processes(options, [Training(**r['run']) for r in mine])} trainings"
        parts += [
            f"## {method}",
            f"{run['steps']} steps of {run['rays']} rays, {run['preset']} preset; {clock.format(at_once=at_once)}.",
            grid_table(mine),
        ]
    return "\n\n".join(parts), verdicts


def command() -> str:
    """As it was given, without where things are kept."""
    arguments = iter(sys.argv[1:])
    kept = [word for word in arguments if not (word in _LOCAL_OPTIONS and next(arguments))]
    return shlex.join(["python", "-m", "benchmarks.elsewhere", *kept])


def write(options: Options, results: Sequence[Result]) -> None:
    """Stores the tables, and the results without their local paths."""
    text, verdicts = report(options, results)
    store(options.docs, "elsewhere", text)
    public = [r | {"run": {key: value for key, value in r["run"].items() if key != "data"}} for r in results]
    content = {"command": command(), "verdicts": [asdict(found) for found in verdicts], "trainings": public}
    (options.docs / "results" / "elsewhere.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
