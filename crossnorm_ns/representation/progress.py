"""What shows the progress of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from crossnorm_ns.representation.run_folder import Entry

_LABELS = {"psnr": "PSNR {:.2f} dB", "iou": "IoU {:.4f}"}


@runtime_checkable
class Progress(AbstractContextManager, Protocol):
    """Entered when training begins, left when it ends."""

    def advance(self, step: int) -> None:
        """Told after each step how many there have been."""
        ...

    def update(self, step: int, entry: Entry) -> None:
        """Told after each evaluation what it gave."""
        ...


class _NoProgress(AbstractContextManager):
    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, step: int) -> None:
        """Shows nothing."""

    def update(self, step: int, entry: Entry) -> None:
        """Shows nothing."""


class _Bar(AbstractContextManager):
    """A bar with steps, the latest metric, and the time left."""

    def __init__(self, steps: int, metric: str, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
        ]
        times = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        self._progress = RichProgress(*columns, *times, console=Console(stderr=True))
        self._task = self._progress.add_task(title, total=steps, now="")
        self._metric = metric

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def update(self, step: int, entry: Entry) -> None:
        now = _LABELS[self._metric].format(entry[self._metric]) if self._metric in entry else ""
        self._progress.update(self._task, completed=step, now=now)


def no_progress(steps: int, metric: str) -> Progress:
    """Shows nothing."""
    return _NoProgress()


def progress_bar(title: str):
    """A bar on standard error, to be given to `fit`."""
    return lambda steps, metric: _Bar(steps, metric, title)
