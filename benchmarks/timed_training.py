"""A training on nerfstudio's trainer, and what it takes: seconds inside training steps alone, scores on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from benchmarks.processes import report_progress

Curve = list[dict[str, float]]
"""Step, seconds so far, and scores, at some moments of a training."""


class TimedTraining(NamedTuple):
    """What has been trained."""

    trainer: Any
    seconds: float
    """Inside training steps: of this process's processor, or on a GPU of the clock."""
    curve: Curve


def train_timed(
    config: Any, moments: Collection[int] = (), measure: Callable[[Any], dict[str, float]] | None = None
) -> TimedTraining:
    """Trains and saves a run as ns-train does, on the device that it would choose, with test views for evaluation.

    Args:
        config: of the trainer, complete.
        moments: numbers of steps after which norms are calibrated and `measure` is asked, without effect on training.
        measure: scores of a trainer's model.

    Raises:
        NonFiniteError: a number of the training is no longer finite.
    """
    from nerfstudio.scripts.train import _set_random_seed

    from crossnorm_ns.engine.random_state import preserved_random_state
    from crossnorm_ns.finite import NonFiniteError

    config.save_config()
    _set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="test")
    now, step_once = _clock(trainer.device), trainer.train_iteration
    seconds, curve, broken = 0.0, [], []

    def timed(step: int) -> Any:
        nonlocal seconds
        start = now()
        try:
            result = step_once(step)
        except NonFiniteError as error:
            broken.append(error)
            raise
        seconds += now() - start
        report_progress(step + 1, f"{seconds:.1f} s")
        return result

    def evaluate(step: int) -> None:
        if measure is not None and step + 1 in moments:
            trainer.calibrate_norms()
            with preserved_random_state():
                curve.append({"step": step + 1, "seconds": seconds} | measure(trainer))

    trainer.train_iteration, trainer.eval_iteration = timed, evaluate
    try:
        trainer.train()
    except SystemExit:
        if broken:
            raise broken[0] from None
        raise
    finally:
        _close_event_files()
    return TimedTraining(trainer, seconds, curve)


def _close_event_files() -> None:
    """Whose threads would write on, also where the run's folder is being removed."""
    from nerfstudio.utils import writer

    for events in [each for each in writer.EVENT_WRITERS if isinstance(each, writer.TensorboardWriter)]:
        events.tb_writer.close()
        writer.EVENT_WRITERS.remove(events)


def _clock(device: str) -> Callable[[], float]:
    import torch

    def of_device() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return of_device if torch.device(device).type == "cuda" else time.process_time
