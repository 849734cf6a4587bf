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

from crossnorm_ns.finite import NonFiniteError, first_non_finite
from crossnorm_ns.interruption import InterruptedTraining, noted_signals
from crossnorm_ns.memory import keep_freed_memory
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
        last_metrics: of the last evaluation; empty if there was none.
        best_step: steps that the best network has had.
        steps: steps taken.
        seconds: of training, without evaluations.
        history: of all evaluations.
        ending: why training ended.
        trouble: where training diverged: step, tensor and last good checkpoint; None where it did not.
    """

    network: nn.Module
    metrics: dict[str, float]
    last_metrics: dict[str, float]
    best_step: int
    steps: int
    seconds: float
    history: list[Entry]
    ending: Ending
    trouble: str | None = None

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
    one evaluation more to choose its best network from.

    A loss, gradient, parameter or statistic that is not finite ends the run (`Run.trouble` says where); what was best
    before counts, and the checkpoint stays the last good one. SIGINT and SIGTERM end it after the step at hand, with
    all files written but `last.pt` with the moving averages of its norms.

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
        InterruptedTraining: by a signal.
    """
    keep_freed_memory()
    sizes = {"in_dim": task.in_dim, "out_dim": task.out_dim, "hidden": tuple(hidden)}
    training = Training(task, {"method": method, **sizes, **(network_options or {})}, options)
    files = None if folder is None else RunFolder(folder)
    history = [] if files is None else _open_folder(files, training, resume)
    trouble = None
    with noted_signals() as signals:
        try:
            try:
                ending = _train(training, history, files, progress, signals)
            finally:
                if files is not None and training.state.step > 0:
                    _write_networks(training, files)
            if files is not None:
                training.save(files)
        except NonFiniteError as error:
            ending, trouble = "diverged", f"{error}; the last good checkpoint is {_checkpoint(files)}"
    if signals:
        rest = "" if files is None else f": --resume goes on from {_checkpoint(files)}"
        raise InterruptedTraining(signals[0], f" after step {training.state.step}{rest}")
    state, last = training.state, history[-1] if history else {}
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
        trouble=trouble,
    )


def _checkpoint(files: RunFolder | None) -> str:
    return "none" if files is None or not files.checkpoint.exists() else str(files.checkpoint)


def _write_networks(training: Training, files: RunFolder) -> None:
    """Writes those networks whose numbers are finite."""
    for name, weights in (("best.pt", training.best_weights()), ("last.pt", training.network.state_dict())):
        if first_non_finite(weights.items()) is None:
            save_network(training.architecture, weights, files.path / name)


def _open_folder(files: RunFolder, training: Training, resume: bool) -> list[Entry]:
    """Restores the run in a folder, or makes the folder; returns the history so far."""
    history = []
    if files.checkpoint.exists():
        if not resume:
            raise RepresentationError(f"{files.path} holds a run already: resume it, or choose another folder")
        training.restore(files)
        history = [entry for entry in files.read_history() if entry["step"] <= training.state.step]
    files.remove_abandoned()
    files.keep_history(history)
    return history


def _train(
    training: Training,
    history: list[Entry],
    files: RunFolder | None,
    progress: Callable[[int, str], Progress],
    signals: Sequence[int],
) -> Ending:
    """Takes the steps that are left, up to a signal.

    Raises:
        NonFiniteError: the training has diverged.
    """
    options, state = training.options, training.state
    ending: Ending = "steps"
    with progress(options.steps, training.task.metric) as bar, _events(files, options) as write_events:
        if history:
            bar.update(state.step, history[-1])
        training.start_clock()
        while state.step < options.steps and ending == "steps" and not signals:
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
                if files is not None:
                    files.append_history(entry)
                write_events(entry)
                bar.update(state.step, entry)
                if not math.isfinite(entry["loss"]):
                    raise NonFiniteError(f"step {state.step}: the loss of the evaluation is not finite")
            if saves and files is not None:
                training.save(files)
            training.start_clock()
        training.stop_clock()
        if not history and not signals:  # a finished run whose history was lost
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
