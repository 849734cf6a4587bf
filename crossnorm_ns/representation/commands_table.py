"""The command that compares methods: table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from crossnorm_ns.interruption import raised_signals
from crossnorm_ns.limits import NOT_EMPTY, Count, Device, InputFile, OutputFolder, Positive, Seed, between
from crossnorm_ns.networks import PAPER_METHODS, MethodName
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.presets import NetworkName, PresetName, TaskName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossnorm_ns.representation.cells import Cell


@dataclass(kw_only=True)
class TableCommand:
    """Compares methods x networks x inputs x learning rates, in the shape of the paper's table and beside its numbers.

    Finished runs are kept in the output folder, interrupted ones go on from their checkpoints: the same command again
    does what is missing. Each method is shown at the best of its learning rates (in the mean over all inputs).
    """

    task: tyro.conf.Positional[TaskName]
    """What is represented."""
    inputs: Annotated[tuple[InputFile, ...], NOT_EMPTY]
    """Files of the signals."""
    methods: Annotated[tuple[MethodName, ...], NOT_EMPTY] = PAPER_METHODS
    """Columns. By default the paper's 13."""
    networks: tuple[NetworkName, ...] = ()
    """Hidden layers x width, such as 10x28. By default the preset's."""
    learning_rates: tuple[Positive, ...] = ()
    """Tried for every method. By default one for each family of methods, the preset's."""
    tune: bool = False
    """Tries three learning rates for each family of methods, the preset's."""
    preset: PresetName = "quick"
    """quick: minutes on two CPU cores. paper: the paper's configuration."""
    steps: Count | None = None
    """Of each run. By default the preset's."""
    seed: Seed = 0
    """Of all runs."""
    output: OutputFolder | None = None
    """Folder of runs and results. By default outputs/representation/table-TASK-PRESET."""
    executor: Literal["local", "slurm"] = "local"
    """local: processes on this machine. slurm: jobs of a cluster, through submitit."""
    workers: Annotated[int, between(1, 1024)] | None = None
    """Processes of the local executor; they share the cores. By default one for each core, or one with a GPU."""
    device: Device | None = None
    """cpu, cuda, cuda:1, ... By default the GPU if there is one."""
    slurm_partition: str | None = None
    """Partition of the jobs."""
    slurm_minutes: Count = 240
    """Time limit of each job."""
    slurm_cpus: Annotated[int, between(1, 1024)] = 2
    """Cores of each job."""
    slurm_gpus: Annotated[int, between(0, 1024)] = 0
    """GPUs of each job."""

    def run(self) -> None:
        """Does the runs that are missing, writes the report and prints the tables.

        Raises:
            RepresentationError: inputs or options that cannot be used, or no run that succeeded.
            InterruptedTraining: by a signal.
        """
        from rich.console import Console

        from crossnorm_ns.representation.cells import Grid
        from crossnorm_ns.representation.presets import PRESETS
        from crossnorm_ns.representation.table_report import write_report
        from crossnorm_ns.representation.table_results import TableResults

        grid = Grid(
            self.task,
            self.inputs,
            self.methods,
            self.networks,
            self.learning_rates,
            self.tune,
            self.preset,
            self.steps,
            self.seed,
        )
        output = self.output or Path("outputs/representation") / f"table-{self.task}-{self.preset}"
        cells = grid.cells(output, self.device)
        with raised_signals(": finished runs are kept, the others saved; the same command goes on"):
            finished, failures = self._finish(cells, output)
        if not finished:
            raise RepresentationError(f"no run succeeded; the first said: {failures[0]}")
        networks = self.networks or PRESETS[self.preset][self.task].networks
        results = TableResults(self.task, [path.stem for path in self.inputs], networks, self.methods, finished)
        console = Console()
        for table in write_report(results, grid, failures, output):
            _print(table, Console(width=max(console.width, 28 + 9 * len(self.methods))))
        for line in (*results.disagreements(), *failures):
            console.print(line, highlight=False, markup=False)
        console.print(f"wrote {output / 'table.html'}", soft_wrap=True, highlight=False, markup=False)
        if failures:
            raise SystemExit(1)

    def _finish(self, cells: list[Cell], output: Path) -> tuple[list[tuple[Cell, dict[str, Any]]], list[str]]:
        """Results of all cells, and what those that failed said."""
        from rich.console import Console
        from rich.progress import Progress

        results, failures = {cell.folder: cell.finished() for cell in cells}, []
        missing = [cell for cell in cells if results[cell.folder] is None]
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(f"{self.task} table", total=len(cells), completed=len(cells) - len(missing))
            for cell, outcome in self._outcomes(missing, output):
                name = f"{cell.spec.input.stem} {cell.spec.network} {cell.spec.method} {cell.spec.learning_rate:g}"
                if isinstance(outcome, Exception):
                    failures.append(f"{name} failed: {outcome or type(outcome).__name__}")
                    progress.console.print(failures[-1], highlight=False, markup=False)
                else:
                    results[cell.folder] = outcome
                progress.advance(task)
        finished = [(cell, results[cell.folder]) for cell in cells]
        return [(cell, result) for cell, result in finished if result is not None], failures

    def _outcomes(self, missing: list[Cell], output: Path) -> Iterator[tuple[Cell, dict[str, Any] | Exception]]:
        from crossnorm_ns.jobs import run_on_slurm, slurm_options
        from crossnorm_ns.representation.cells import run_local
        from crossnorm_ns.representation.runs import choose_device

        if not missing:
            return iter(())
        if self.executor == "local":
            on_gpu = choose_device(self.device).type == "cuda"
            workers = self.workers or (1 if on_gpu else os.cpu_count() or 1)
            return run_local(missing, min(workers, len(missing)))
        options = slurm_options(self.slurm_minutes, self.slurm_cpus, self.slurm_gpus, self.slurm_partition)
        return run_on_slurm(missing, output / "slurm", options)


def _print(table: Any, console: Any) -> None:
    from rich.table import Table

    shown = Table(title=table.title)
    for i, head in enumerate(table.heads):
        shown.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
