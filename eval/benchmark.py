"""Trains and evaluates methods x scenes x seeds: python -m eval.benchmark --help"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from crossnorm_ns.limits import Count, GridSide, InputFolder, OutputFolder, PictureSide, between
from eval.command import run_command
from eval.protocols import ProtocolName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nerfstudio.engine.trainer import TrainerConfig

    from eval.benchmark_cells import Cell

Kind = Literal["blender", "dtu"]
MARKERS = {"blender": "transforms_train.json", "dtu": "cameras_sphere.npz"}
"""The file that makes a folder a scene."""
OUR_PARSERS = {
    "blender": ("blender-cn", "BlenderCNDataParserConfig"),
    "dtu": ("dtu-cn", "DTUCNDataParserConfig"),
}
"""Name and class of the dataparser whose methods average pictures to a smaller size."""
PARSERS = {"blender": ("blender-data", "BlenderDataParserConfig"), "dtu": ("dtu-cn", "DTUCNDataParserConfig")}
"""Name and class of the one for other methods, those of nerfstudio."""


@dataclass
class Arguments:
    """Trains methods on scenes with several seeds, evaluates every run and writes the paper's table.

    Every cell (method, scene, seed) is a job by itself: ns-train, then eval.blender or eval.dtu_chamfer. Finished cells
    are kept, interrupted ones go on, failed ones are listed with their logs: the same command again does what is
    missing. What stands after -- goes to ns-train: -- --max-num-iterations 30000 --machine.num-devices 2
    """

    kind: tyro.conf.Positional[Kind]
    """blender: scenes with transforms_train.json. dtu: scans with cameras_sphere.npz."""
    data: InputFolder
    """Folder that holds the scenes' folders; those of scans have their number in the name (dtu_scan24)."""
    methods: str
    """Registered methods, with commas between: mipnerf-ref,mipnerf-cn,vanilla-nerf,nerfacto."""
    scenes: str = "all"
    """Names of scenes' folders, with commas between; or all."""
    seeds: Annotated[int, between(1, 10_000)] = 1
    """How many: 3 is 0, 1 and 2."""
    output: OutputFolder | None = None
    """Folder for runs, logs and tables. By default outputs/benchmark-blender or outputs/benchmark-dtu."""
    retry_failed: bool = False
    """Does cells again that failed before."""
    protocol: ProtocolName = "mipnerf"
    """blender: how images are compared, see eval.blender."""
    every: Count = 1
    """blender: evaluates test frames 0, N, 2N, ... only."""
    dataset_dir: InputFolder | None = None
    """dtu: DTU's evaluation files (Points, ObsMask). By default each scene's own folder, as make_scene writes it."""
    resolution: GridSide = 512
    """dtu: grid points along each axis for marching cubes."""
    downscale_factor: PictureSide = 1
    """How many times smaller than the scenes' pictures all methods train and are evaluated."""
    dataparser: str | None = None
    """Dataparser of all methods. By default a method's own where it reads such scenes, else blender-data, or dtu-cn.
    One with options stands at the end of what goes to ns-train: -- dtu-cn --eval-mode interval"""
    executor: Literal["local", "slurm"] = "local"
    """local: processes on this machine. slurm: jobs of a cluster, through submitit."""
    workers: Annotated[int, between(1, 1024)] = 1
    """Cells side by side on this machine."""
    slurm_partition: str | None = None
    """Partition of the jobs."""
    slurm_minutes: Count = 1440
    """Time limit of each job."""
    slurm_cpus: Annotated[int, between(1, 1024)] = 8
    """Cores of each job."""
    slurm_gpus: Annotated[int, between(0, 1024)] = 1
    """GPUs of each job."""


def main(arguments: Arguments, training: tuple[str, ...] = ()) -> None:
    """Does the cells that are missing, and writes the tables.

    Args:
        arguments: what to do.
        training: options of ns-train, for all cells.

    Raises:
        EvaluationError: options, methods or scenes that cannot be used, or an output folder of another sweep.
        SystemExit: a cell has failed, or a signal came.
    """
    from rich.console import Console

    from eval.benchmark_runs import carry_out, write_report
    from eval.errors import EvaluationError

    output = arguments.output or Path("outputs") / f"benchmark-{arguments.kind}"
    cells = make_cells(arguments, output, training)
    for cell in cells:
        cell.check()
    missing = [cell for cell in cells if cell.result is None and (arguments.retry_failed or cell.failure is None)]
    for cell in missing:
        cell.forget()
        if cell.obstacle:
            cell.note_failure(EvaluationError(cell.obstacle))
    carry_out(cells, _outcomes(arguments, [cell for cell in missing if not cell.obstacle], output))
    console = Console()
    failed = [(cell, cell.failure) for cell in cells if cell.result is None and cell.failure is not None]
    for cell, failure in failed:
        log = f" (log: {failure['log']})" if failure["log"] else ""
        console.print(f"{cell.name}: {failure['reason']}{log}", soft_wrap=True, highlight=False, markup=False)
    for path in write_report(cells, arguments.kind, output):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)
    unfinished = sum(cell.result is None for cell in cells)
    if unfinished:
        hint = "; --retry-failed does those again that failed" if failed else ""
        print(f"{unfinished} of {len(cells)} cells are not done{hint}.", file=sys.stderr)
        raise SystemExit(1)


def _outcomes(
    arguments: Arguments, missing: list[Cell], output: Path
) -> Iterator[tuple[Cell, dict[str, Any] | Exception]]:
    from crossnorm_ns.jobs import slurm_options
    from eval.benchmark_runs import run_local, run_on_cluster

    if arguments.executor == "local" or not missing:
        return run_local(missing, arguments.workers)
    options = slurm_options(
        arguments.slurm_minutes, arguments.slurm_cpus, arguments.slurm_gpus, arguments.slurm_partition
    )
    return run_on_cluster(missing, output / "slurm", options)


def make_cells(arguments: Arguments, output: Path, training: tuple[str, ...]) -> list[Cell]:
    """All cells, after checks of options, methods and scenes.

    Raises:
        EvaluationError: one of them cannot be used.
    """
    import os

    from nerfstudio.configs.dataparser_configs import all_dataparsers

    from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
    from eval.benchmark_cells import Cell
    from eval.errors import EvaluationError

    if arguments.dataparser not in (None, *all_dataparsers):
        raise EvaluationError(f"--dataparser: nerfstudio knows no dataparser {arguments.dataparser}.")
    given = next((word for word in training if word in all_dataparsers), None)
    if given is not None and (arguments.dataparser is not None or arguments.downscale_factor != 1):
        raise EvaluationError(
            f"What stands after -- names the dataparser {given}: leave out --dataparser and --downscale-factor."
        )
    scenes, methods = find_scenes(arguments), find_methods(arguments.methods)
    threads = max(1, (os.cpu_count() or 1) // arguments.workers) if arguments.executor == "local" else None
    device = () if arguments.executor == "slurm" or _has_gpu() or "--machine.device-type" in training else _ON_CPU
    return [
        Cell(
            method=method,
            scene=scene,
            seed=seed,
            folder=output.resolve() / "cells" / scene.name / method / f"seed-{seed}",
            training=(*device, *_smaller(arguments, config), *training),
            dataparser="" if given else _dataparser(arguments, config),
            evaluation=_evaluation(arguments, scene),
            resumes=isinstance(config, CrossNormTrainerConfig),
            threads=threads,
            obstacle=_obstacle(arguments, method, config),
        )
        for scene in scenes
        for method, config in methods.items()
        for seed in range(arguments.seeds)
    ]


def find_scenes(arguments: Arguments) -> list[Path]:
    """Folders of the scenes asked for.

    Raises:
        EvaluationError: there are none, or one is not there.
    """
    from eval.dtu_files import scan_of
    from eval.errors import EvaluationError

    marker = MARKERS[arguments.kind]
    there = {path.parent.name: path.parent for path in sorted(arguments.data.resolve().glob(f"*/{marker}"))}
    if not there:
        raise EvaluationError(f"--data {arguments.data} holds no folder with {marker}: give the folder of all scenes.")
    names = list(there) if arguments.scenes == "all" else _listed(arguments.scenes)
    for name in names:
        if name not in there:
            raise EvaluationError(f"--scenes: there is no {name} in {arguments.data}, only {', '.join(there)}.")
        if arguments.kind == "dtu" and scan_of(Path(name)) is None:
            raise EvaluationError(f"--data: the name {name} has no number of a scan: call the folder dtu_scan24.")
    if not names:
        raise EvaluationError("--scenes is empty: give names of scenes, or all.")
    return [there[name] for name in names]


def find_methods(names: str) -> dict[str, TrainerConfig]:
    """Methods asked for, and their configurations.

    Raises:
        EvaluationError: there are none, or nerfstudio knows no such method.
    """
    from nerfstudio.configs.method_configs import all_methods

    from eval.errors import EvaluationError

    found = {}
    for name in _listed(names):
        if name not in all_methods:
            raise EvaluationError(f"--methods: nerfstudio knows no method {name}; it knows {', '.join(all_methods)}.")
        found[name] = all_methods[name]
    if not found:
        raise EvaluationError("--methods is empty: give names of methods, with commas between.")
    return found


def _obstacle(arguments: Arguments, method: str, config: TrainerConfig) -> str:
    from crossnorm_ns.models.surface import SurfaceModelConfig

    if arguments.kind == "blender" or isinstance(getattr(config.pipeline, "model", None), SurfaceModelConfig):
        return ""
    return f"needs a signed distance: {method} has no surface that eval.dtu_chamfer can measure"


def _dataparser(arguments: Arguments, config: TrainerConfig) -> str:
    """Subcommand of ns-train and its options; empty leaves the method's own."""
    if _averages(arguments, config) and arguments.downscale_factor != 1:
        return f"{OUR_PARSERS[arguments.kind][0]} --downscale-factor {arguments.downscale_factor}"
    if arguments.dataparser is not None:
        return arguments.dataparser
    name, kind = PARSERS[arguments.kind]
    return "" if _own_parser(config) in (kind, OUR_PARSERS[arguments.kind][1]) else name


def _smaller(arguments: Arguments, config: TrainerConfig) -> tuple[str, ...]:
    """The option by which nerfstudio makes pictures smaller, for methods that our dataparsers do not do it for."""
    if arguments.downscale_factor == 1 or _averages(arguments, config):
        return ()
    return ("--pipeline.datamanager.camera-res-scale-factor", str(1 / arguments.downscale_factor))


def _averages(arguments: Arguments, config: TrainerConfig) -> bool:
    name, kind = OUR_PARSERS[arguments.kind]
    return _own_parser(config) == kind and arguments.dataparser in (None, name)


def _own_parser(config: TrainerConfig) -> str:
    datamanager: Any = config.pipeline.datamanager
    return type(getattr(datamanager, "dataparser", None)).__name__


_ON_CPU = ("--machine.device-type", "cpu")


def _evaluation(arguments: Arguments, scene: Path) -> tuple[str, ...]:
    from eval.dtu_files import scan_of

    data = ("--data", str(scene))
    if arguments.kind == "blender":
        return ("eval.blender", *data, "--protocol", arguments.protocol, "--every", str(arguments.every))
    reference, scan = (arguments.dataset_dir or scene).resolve(), scan_of(Path(scene.name))
    where = ("--dataset-dir", str(reference), "--scan", str(scan))
    return ("eval.dtu_chamfer", *data, *where, "--resolution", str(arguments.resolution))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _listed(names: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def run() -> None:
    """The command."""
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    run_command(
        Arguments,
        lambda arguments: main(arguments, tuple(words[place + 1 :])),
        "python -m eval.benchmark",
        words[:place],
    )


if __name__ == "__main__":
    run()
