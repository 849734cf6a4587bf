"""The runs of a table: a grid of inputs, networks, methods and learning rates, carried out side by side."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from crossnorm_ns.interruption import InterruptedTraining, raised_signals
from crossnorm_ns.jobs import run_in_pool
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.presets import PRESETS, PresetName, TaskName, family, open_task
from crossnorm_ns.representation.run_folder import RunFolder, first_difference
from crossnorm_ns.representation.runs import RunControl, RunSpec, execute


@dataclass(frozen=True)
class Cell:
    """One run of a table and its folder."""

    spec: RunSpec
    folder: Path
    device: str | None = None

    def finished(self) -> dict[str, Any] | None:
        """Its result, if it is there.

        Raises:
            RepresentationError: the folder holds the result of another run.
        """
        files = RunFolder(self.folder)
        if not files.result.exists():
            return None
        result = files.read_result()
        before = {**result["spec"], **result.get("configuration", {})}
        difference = first_difference(before, {**self.spec.as_json(), **self.spec.configuration()})
        if difference is not None:
            raise RepresentationError(
                f"{self.folder} holds the result of another run ({difference}): choose another output folder"
            )
        return result

    def __call__(self) -> dict[str, Any]:
        """Carries it out, from its checkpoint if it was interrupted."""
        return execute(self.spec, self.folder, RunControl(device=self.device, resume=True))

    def checkpoint(self) -> Any:
        """For submitit, where a job's time is over or its node is taken: queues it again, which goes on as above."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Grid:
    """What a table compares.

    Attributes:
        task: its name.
        inputs: files of the signals; their names without suffix differ.
        methods: columns.
        networks: layers x width; empty takes the preset's.
        learning_rates: tried for every method; empty takes the preset's for each family.
        tune: where `learning_rates` is empty, tries the preset's three for each family.
        preset: its name.
        steps: None takes the preset's.
        seed: of all runs.
    """

    task: TaskName
    inputs: Sequence[Path]
    methods: Sequence[str]
    networks: Sequence[str] = ()
    learning_rates: Sequence[float] = ()
    tune: bool = False
    preset: PresetName = "quick"
    steps: int | None = None
    seed: int = 0

    def cells(self, output: Path, device: str | None = None) -> list[Cell]:
        """All runs, after checks of the inputs.

        Raises:
            RepresentationError: nothing to compare, equal names, or an input, method or network that cannot be used.
        """
        for name in ("inputs", "methods"):
            if not getattr(self, name):
                raise RepresentationError(f"a table needs {name}: give at least one")
        stems = [path.stem for path in self.inputs]
        if len(set(stems)) < len(stems):
            raise RepresentationError("two inputs have the same name: results are kept by name")
        preset, cells = PRESETS[self.preset][self.task], []
        for path in self.inputs:
            for network in self.networks or preset.networks:
                for method in self.methods:
                    for rate in self._rates(method):
                        spec = RunSpec(self.task, path, method, self.preset, network, rate, self.steps, self.seed)
                        folder = output / "cells" / path.stem / network / method / f"{spec.completed().learning_rate:g}"
                        cells.append(Cell(spec.completed(), folder, device))
        for path in self.inputs:
            open_task(self.task, path, preset)
        return cells

    def _rates(self, method: str) -> Sequence[float | None]:
        if self.learning_rates:
            return self.learning_rates
        if self.tune and family(method) in (tuning := PRESETS[self.preset][self.task].tuning):
            return tuning[family(method)]
        return [None]


def run_local(cells: Sequence[Cell], workers: int) -> Iterator[tuple[Cell, dict[str, Any] | Exception]]:
    """Carries out cells in processes of their own; yields each result, or what was raised, when it is there.

    Where it is left early, the cells at hand are saved before.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
        try:
            for job, outcome in run_in_pool([_WorkerJob(cell) for cell in cells], pool):
                if isinstance(outcome, BrokenProcessPool):
                    outcome = RepresentationError(  # noqa: PLW2901
                        f"one of the {workers} worker processes was killed, most likely because memory ran out, which "
                        "ends them all: give fewer --workers; the same command does what is missing"
                    )
                yield job.cell, outcome
        except BaseException:
            for worker in active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(num_threads: int) -> None:
    """Prepares a worker: SIGTERM is for the cell at hand, and the SIGINT of a terminal for the parent."""
    import torch

    torch.set_num_threads(min(num_threads, torch.get_num_threads()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)


@dataclass(frozen=True)
class _WorkerJob:
    """Carries out a cell in a worker, which begins no other one after a signal."""

    cell: Cell

    def __call__(self) -> dict[str, Any]:
        if _stopped:
            raise _stopped[0]
        try:
            with raised_signals():
                return self.cell()
        except InterruptedTraining as stop:
            _stopped.append(stop)
            raise


_stopped: list[InterruptedTraining] = []
