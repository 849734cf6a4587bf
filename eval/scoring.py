"""Scoring the test views of a scene, one after the other."""

from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.errors import EvaluationError
from eval.protocols import PROTOCOLS, Protocol, ProtocolName, Scores
from eval.results import Evaluation, ImageResult
from eval.views import View, Views

SAME = 1 / 255 + 1e-6
"""Largest difference that 8 bits, rounded or cut off, explain between a true image and a copy of it."""


def evaluate(
    views: Views,
    protocol: ProtocolName = "mipnerf",
    on_view: Callable[[View, Scores], None] | None = None,
) -> Evaluation:
    """Scores each view and shows progress and time left on standard error.

    Args:
        views: From `eval.views.views_of_run` or `views_of_renders`; used up by this.
        protocol: How images are compared.
        on_view: Called with each view and its scores.

    Raises:
        EvaluationError: a render is not finite or of another size than the truth, or too small for SSIM; or all are
            the true images themselves.
    """
    subject = views.subject
    all_true = True
    images: list[ImageResult] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    columns = (*columns, TextColumn("{task.fields[mean]}"))
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        task = progress.add_task(f"Evaluating {subject.scene.name}", total=len(subject.indices), mean="")
        for view in views.frames:
            scores = _score(view, PROTOCOLS[protocol])
            images.append(ImageResult(view.name, *scores))
            all_true = all_true and bool(np.abs(view.render - view.truth).max() <= SAME)
            mean = sum(image.psnr for image in images) / len(images)
            progress.update(task, advance=1, mean=f"PSNR {mean:.2f} dB")
            if on_view is not None:
                on_view(view, scores)
    if all_true:
        raise EvaluationError(
            f"Every render equals its true image in {subject.scene}: these are the true images, give the renders."
        )
    return Evaluation(PROTOCOLS[protocol], subject, tuple(images))


def _score(view: View, protocol: Protocol) -> Scores:
    if not np.isfinite(view.render).all():
        raise EvaluationError(f"Frame {view.name}: the render holds NaN or infinity, so it has no PSNR.")
    try:
        return protocol.score(view.render, view.truth)
    except ValueError as error:
        raise EvaluationError(f"Frame {view.name}: {error}") from error
