"""CN in other methods beside their plain forms: VolSDF, and nerfstudio's own vanilla NeRF and nerfacto.

    python -m benchmarks.elsewhere                       # on the GPU if there is one
    python -m benchmarks.elsewhere --methods vanilla-nerf --resolution 24 --vanilla-nerf.steps 20   # a look on a CPU

Trains each method without a norm and with CN on the built-in example scene (VolSDF: the example scan), at the same
multiples of its preset's learning rates. The rate of each side is chosen on validation views, and both are compared
at equal steps and at equal seconds. The plain sides of nerfstudio's methods are nerfstudio's models to the bit, on the
same trainer. Finished trainings are kept in the output folder and not repeated.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import tyro

from benchmarks.elsewhere_tables import SIDES, Verdict, grid_table, verdict, verdict_table
from benchmarks.elsewhere_training import HELD_OUT_EVERY, Method, Preset, Training
from benchmarks.processes import Result, train_all
from benchmarks.tables import store

PROGRAM = "benchmarks.elsewhere_training"
AT_ONCE = 6
"""Trainings at a time, at most, where they share a GPU."""
_SETTINGS: dict[Method, str] = {
    "vanilla-nerf": "nerfstudio's settings",
    "nerfacto": "plain PyTorch, nerfstudio's settings for Blender scenes",
    "volsdf": "with masks, rays of all pictures in a batch, held-out pictures on white",
}
_LOCAL_OPTIONS = ("--output", "--docs")


@dataclass
class Size:
    """How a method is trained."""

    steps: int
    """Of each training."""
    rays: int
    """Of each step."""
    rates: tuple[float, ...]
    """Multiples of the preset's learning rates of all groups of parameters, tried for both sides."""


@dataclass
class Options:
    """Trains, compares, and writes docs/results/elsewhere.md and .json."""

    methods: tuple[Method, ...] = get_args(Method)
    """Which are trained, one after the other."""
    vanilla_nerf: Size = field(default_factory=lambda: Size(1000, 512, (1, 3, 10)))
    """nerfstudio's vanilla NeRF: both presets have its published 5e-4."""
    nerfacto: Size = field(default_factory=lambda: Size(600, 1024, (1 / 3, 1, 3)))
    """nerfstudio's nerfacto in plain PyTorch: both presets have its published 1e-2."""
    volsdf: Size = field(default_factory=lambda: Size(600, 256, (1, 3, 10)))
    """VolSDF: the full preset has its published 5e-4, the tiny one 2e-3."""
    seeds: tuple[int, ...] = (0,)
    """One training each at each rate; tables show means."""
    preset: Preset | None = None
    """full: networks and samples as registered. tiny: fewer samples, smaller hash grids, VolSDF's tiny networks. By
    default full on a GPU and tiny without one."""
    moments: int = 8
    """Renderings of the held-out views in each training, evenly spaced; equal seconds are read between them."""
    processes: int | None = None
    """Trainings at a time. By default those of a method together on a GPU, at most 6, and 2 without one."""
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
            results += train_all(runs, options.output, _processes(options, len(runs)), PROGRAM)
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
    folder = options.output / f"{kind}-{size}-{train}-{held_out}"
    if not folder.exists():
        if kind == "scan":
            make_scene.dtu(folder, resolution=size, views=2 * held_out * HELD_OUT_EVERY)
        else:
            make_scene.blender(folder, resolution=size, train=train, val=held_out, test=held_out)
    return folder


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _processes(options: Options, count: int) -> int:
    return options.processes or (min(count, AT_ONCE) if _on_gpu() else 2)


def report(options: Options, results: Sequence[Result]) -> tuple[str, list[Verdict]]:
    """All tables, and the verdicts."""
    by_method = {m: [r for r in results if r["run"]["method"] == m] for m in options.methods}
    by_method = {method: mine for method, mine in by_method.items() if mine}
    verdicts = [found for mine in by_method.values() if (found := verdict(mine)) is not None]
    parts = [
        f"Seeds {list(options.seeds)}, pictures of {options.resolution}x{options.resolution} pixels, "
        f"{results[0]['machine']}. The learning rate of each side is the one with the highest "
        "PSNR on the validation views at the end (the scan has none: every second of its held-out views serves for "
        'that, and the others are the test); "edge": the lowest or the highest of those that were tried. Equal '
        "seconds: CN when the plain side has done all its steps, interpolated between renderings on the way.",
        f"`{command()}`",
        verdict_table(verdicts),
    ]
    for method, mine in by_method.items():
        parts += [f"## {method}", _conditions(options, mine), grid_table(mine)]
    return "\n\n".join(parts), verdicts


def _conditions(options: Options, results: Sequence[Result]) -> str:
    run = results[0]["run"]
    clock = "processor seconds inside training steps"
    if results[0]["device"] != "cpu":
        at_once = _processes(options, len(results))
        clock = f"seconds inside training steps by the clock, {at_once} trainings at a time on the GPU"
    precision = ", mixed precision" if any(result.get("mixed_precision") for result in results) else ""
    settings = _SETTINGS[run["method"]]
    return f"{run['steps']} steps of {run['rays']} rays, {run['preset']} preset{precision}, {settings}; {clock}."


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
    valid = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has no NaN
    (options.docs / "results" / "elsewhere.json").write_text(json.dumps(valid, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
