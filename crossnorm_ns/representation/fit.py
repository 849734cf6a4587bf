"""The fitting loop of all representation tasks."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.progress import Progress, no_progress
from crossnorm_ns.representation.run_folder import Entry, RunFolder, save_network
from crossnorm_ns.representation.tasks.base import Task
from crossnorm_ns.representation.training import Training

Ending = Literal["steps", "time", "diverged"]


@dataclass
class Run:
    """A network that has been fitted.

    Attributes:
        network: the best, calibrated: of all evaluations the one with the lowest training loss. (Tasks with indirect
            measurements do not see the truth, so quality is not asked.)
        metrics: of the best network; empty if training diverged before the first evaluation.
        last_metrics: of the last evaluation.
        best_step: steps that the best network has had.
        steps: steps taken.
        seconds: of training, without evaluations.
        history: of all evaluations.
        ending: why training ended.
    """

    network: nn.Module
    metrics: dict[str, float]
    last_metrics: dict[str, float]
    best_step: int
    steps: int
    seconds: float
    history: list[Entry]
    ending: Ending

    def highest(self, metric: str) -> dict[str, float] | None:
        """The highest value of a metric over all evaluations and its step: an iterate chosen by the truth.

        None if it was never finite.
        """
        entries = [entry for entry in self.history if math.isfinite(entry[metric])]
        if not entries:
            return None
        best = max(entries, key=lambda entry: entry[metric])
        return {metric: best[metric], "step": best["step"]}


def fit(
    task: Task,
    method: str,
    hidden: Sequence[int],
    options: FitOptions,
    *,
    network_options: dict[str, Any] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, str], Progress] = no_progress,
) -> Run:
    """Fits a network to a task.

    Everything random follows from `options.seed`: on the CPU, with the same number of threads, two runs are equal to
    the bit, and so is a run that was interrupted and resumed. The exception is `max_seconds`: where it ends a run, and
    so where its last evaluation is, depends on the clock; a run that goes on from there takes the same steps, but has
    one evaluation more to choose its best network from. Non-finite losses end the run; what was best before counts.
    `best.pt` and `last.pt` are written also where training is interrupted, the latter then with the moving averages of
    its norms.

    Args:
        task: on the device to train on.
        method: see `make_network`.
        hidden: width of each hidden layer.
        options: of the optimisation.
        network_options: those of `make_network`.
        folder: for `checkpoint.pt`, `history.jsonl`, `best.pt`, `last.pt`; None keeps everything in memory.
        resume: goes on from the checkpoint in `folder`, if there is one.
        progress: makes what shows the progress, from the number of steps and the name of the metric.

    Raises:
        RepresentationError: unknown method or options, `folder` holds another run, or a run and `resume` is not set.
    """
    sizes = {"in_dim": task.in_dim, "out_dim": task.out_dim, "hidden": tuple(hidden)}
    training = Training(task, {"method": method, **sizes, **(network_options or {})}, options)
    files = None if folder is None else RunFolder(folder)
    history = [] if files is None else _open_folder(files, training, resume)
    try:
        ending = _train(training, history, files, progress)
    finally:
        if files is not None and training.state.step > 0:
            save_network(training.architecture, training.best_weights(), files.path / "best.pt")
            save_network(training.architecture, training.network.state_dict(), files.path / "last.pt")
    if files is not None:
        training.save(files)
    state, last = training.state, history[-1]
    best = copy.deepcopy(training.network)
    best.load_state_dict(training.best_weights())
    return Run(
        network=best.eval(),
        metrics=state.best_metrics,
        last_metrics={name: float(last[name]) for name in last if name not in ("step", "seconds", "learning_rate")},
        best_step=state.best_step,
        steps=state.step,
        seconds=state.seconds,
        history=history,
        ending=ending,
    )


def _open_folder(files: RunFolder, training: Training, resume: bool) -> list[Entry]:
    """Restores the run in a folder, or makes the folder; returns the history so far."""
    history = []
    if files.checkpoint.exists():
        if not resume:
            raise RepresentationError(f"{files.path} holds a run already: resume it, or choose another folder")
        training.restore(files)
        history = [entry for entry in files.read_history() if entry["step"] <= training.state.step]
    files.keep_history(history)
    return history


def _train(
    training: Training,
    history: list[Entry],
    files: RunFolder | None,
    progress: Callable[[int, str], Progress],
) -> Ending:
    options, state = training.options, training.state
    ending: Ending = "steps"
    with progress(options.steps, training.task.metric) as bar, _events(files, options) as write_events:
        if history:
            bar.update(state.step, history[-1])
            ending = "steps" if math.isfinite(history[-1]["loss"]) else "diverged"
        training.start_clock()
        while state.step < options.steps and ending == "steps":
            training.step()
            bar.advance(state.step)
            if options.max_seconds is not None:
                training.finish_queue()
                ending = "time" if training.seconds >= options.max_seconds else ending
            last = state.step == options.steps or ending == "time"
            evaluates, saves = last or state.step % options.evaluate_every == 0, state.step % options.save_every == 0
            if not (evaluates or saves):
                continue
            training.stop_clock()
            if evaluates:
                entry = training.evaluate()
                history.append(entry)
                ending = ending if math.isfinite(entry["loss"]) else "diverged"
                if files is not None:
                    files.append_history(entry)
                write_events(entry)
                bar.update(state.step, entry)
            if saves and files is not None:
                training.save(files)
            training.start_clock()
        training.stop_clock()
        if not history:  # a finished run whose history was lost
            history.append(training.evaluate())
    return ending


@contextlib.contextmanager
def _events(files: RunFolder | None, options: FitOptions) -> Iterator[Callable[[Entry], None]]:
    """Writes entries of the history for TensorBoard, if that is asked for."""
    if files is None or not options.tensorboard:
        yield lambda entry: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RepresentationError("TensorBoard's package is not installed: pip install tensorboard") from error
    with SummaryWriter(str(files.path)) as writer:

        def write(entry: Entry) -> None:
            for name in entry.keys() - {"step"}:
                writer.add_scalar(name, entry[name], int(entry["step"]))

        yield write
