"""Trainings in processes of their own, one thread each; what is finished is not repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossnorm_ns.memory import keep_freed_memory
from crossnorm_ns.provenance import provenance

_PROGRESS = "@progress"

Result = dict[str, Any]
"""What a training came to: `run` is what was asked, the rest is the program's."""


def train_all(runs: Sequence[Any], folder: Path, jobs: int, program: str) -> list[Result]:
    """Trains what has no result yet, `jobs` processes at a time, and returns all results in order.

    Args:
        runs: dataclasses with different `name`s, and `steps`.
        folder: keeps results and logs.
        jobs: processes at a time.
        program: module that carries out one of them and ends in `run_program`.

    Raises:
        RuntimeError: a training failed; its log is named.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda run: _train_in_process(run, folder, progress, program), runs))


def _train_in_process(run: Any, folder: Path, progress: Any, program: str) -> Result:
    path, log = folder / f"{run.name}.json", folder / f"{run.name}.log"
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["run"] == asdict(run):
            return stored
    task = progress.add_task(run.name, total=run.steps, note="starting")
    command = [sys.executable, "-m", program, json.dumps(asdict(run)), str(folder)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_PROGRESS):
                _, step, *note = line.split(maxsplit=2)
                progress.update(task, completed=int(step), note="".join(note).strip())
            else:
                output.write(line)
    progress.update(task, visible=False)
    if process.wait():
        raise RuntimeError(f"the training {run.name} failed: see {log}")
    return json.loads(path.read_text())


def report_progress(step: int, note: str = "") -> None:
    """Tells `train_all` how many steps are done."""
    print(f"{_PROGRESS} {step} {note}", flush=True)


def run_program(kind: type, work: Callable[[Any, Path], Result]) -> None:
    """What a program of `train_all` does: takes a run and a folder from the command line, writes the result there."""
    keep_freed_memory()
    run, folder = kind(**json.loads(sys.argv[1])), Path(sys.argv[2])
    finished = folder / f"{run.name}.json"
    temporary = finished.with_suffix(".tmp")
    temporary.write_text(json.dumps({"run": asdict(run)} | work(run, folder) | {"provenance": provenance()}))
    temporary.replace(finished)
