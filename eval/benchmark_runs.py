"""Carrying out the cells of a sweep, showing how far it is, and collecting what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossnorm_ns.files import atomic_file
from crossnorm_ns.jobs import Result, run_in_pool, run_on_slurm
from crossnorm_ns.paper_tables import TableName
from eval.benchmark_cells import Cell, CellBusyError, CellStoppedError, Processes

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {"psnr": "{:.2f} dB", "overall": "{:.2f} mm"}
"""The figure of a result that stands for it."""


@dataclass(frozen=True)
class _Job:
    cell: Cell
    processes: Processes

    def __call__(self) -> Result:
        return self.cell.carry_out(self.processes)

    def checkpoint(self) -> Any:
        """For submitit, where a job's time is over or its node is taken: ends the training, and queues it again."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        self.processes.stop_and_wait()
        return DelayedSubmission(_Job(self.cell, Processes()))


def carry_out(cells: Sequence[Cell], outcomes: Iterator[tuple[Cell, Result | Exception]]) -> None:
    """Shows how far all cells are until there are no more outcomes.

    A failure is noted in the cell's folder and leaves the others alone.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, get_renderable=lambda: progress_table(cells), refresh_per_second=1) as live:
        for cell, outcome in outcomes:
            if isinstance(outcome, Exception):
                if cell.failure is None and not isinstance(outcome, (CellBusyError, CellStoppedError)):
                    cell.note_failure(outcome)
                reason = cell.failure["reason"] if cell.failure else outcome
                live.console.print(f"{cell.name}: {reason}", soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.print()  # the table has left the line open


def run_local(cells: Sequence[Cell], workers: int) -> Iterator[tuple[Cell, Result | Exception]]:
    """Carries out cells on this machine; where it is left by an exception, their processes are ended."""
    with _stopping_pool(workers) as (pool, processes):
        for job, outcome in run_in_pool([_Job(cell, processes) for cell in cells], pool):
            yield job.cell, outcome


def run_on_cluster(
    cells: Sequence[Cell], folder: Path, options: dict[str, Any]
) -> Iterator[tuple[Cell, Result | Exception]]:
    """Carries out cells as jobs of SLURM; arguments as for `crossnorm_ns.jobs.run_on_slurm`."""
    for job, outcome in run_on_slurm([_Job(cell, Processes()) for cell in cells], folder, options):
        yield job.cell, outcome


@contextmanager
def _stopping_pool(workers: int) -> Iterator[tuple[ThreadPoolExecutor, Processes]]:
    """Threads that wait for processes; where it is left by an exception, all are ended."""
    processes = Processes()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool, processes
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise


def progress_table(cells: Sequence[Cell]) -> Table:
    """A line for each method and seed, a column for each scene: what came out, or what is being done."""
    from rich.table import Table

    scenes = list(dict.fromkeys(cell.scene.name for cell in cells))
    states = {(cell.method, cell.seed, cell.scene.name): _state(cell) for cell in cells}
    done = sum(cell.result is not None for cell in cells)
    table = Table(title=f"{done} of {len(cells)} cells are done")
    for head in ("method", "seed", *scenes):
        table.add_column(head)
    for method, seed in dict.fromkeys((cell.method, cell.seed) for cell in cells):
        table.add_row(method, str(seed), *(states[method, seed, scene] for scene in scenes))
    return table


def _state(cell: Cell) -> str:
    result = cell.result
    if result is not None:
        return _figure(result)
    failure = cell.failure
    if failure is None:
        return cell.state or "waiting"
    return failure["reason"].partition(":")[0] if failure["reason"].startswith("needs") else "failed"


def _figure(result: dict[str, Any]) -> str:
    return next((shown.format(result[name]) for name, shown in SHOWN.items() if result.get(name) is not None), "done")


def write_report(cells: Sequence[Cell], kind: TableName, output: Path) -> list[Path]:
    """Writes table.md and table.html from all results, see eval.report; nothing where there is no result."""
    from eval.report import write_tables
    from eval.report_results import read_figures
    from eval.report_tables import make_sections

    results = [cell.folder / "result.json" for cell in cells if cell.result is not None]
    if not results:
        return []
    sections = make_sections(read_figures(results, kind), kind)
    paths = [output / "table.md", output / "table.html"]
    for path, form in zip(paths, ("md", "html"), strict=True):
        with atomic_file(path) as file:
            file.write(write_tables(sections, form).encode())
    return paths
