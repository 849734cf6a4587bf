"""One training of the tiny NeuS with its scores: the program that `benchmarks.neus_results` starts for each."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.tables import conditions
from eval.errors import EvaluationError
from examples.neus_scores import evaluate
from examples.neus_training import Training, run_program, train

EXAMPLE_SCAN = 0


def train_and_score(training: Training, folder: Path, mesh_resolution: int = 160) -> dict[str, Any]:
    """What `train` returns, and scores of held-out views and of the surface, which is kept beside the run.

    Accuracy, completeness and chamfer are there where the scene has reference points beside it, as the example scan,
    and where training has not lost the surface.
    """
    result = train(training, folder)
    scan = EXAMPLE_SCAN if (Path(training.data) / "Points").is_dir() else None
    try:
        side = evaluate(result, mesh_resolution, scan)
    except EvaluationError as error:
        print(error)
        side = evaluate(result)
    if side.surface is not None:
        side.surface.export(folder / f"{training.name}.ply")
    scores = {"psnr": side.psnr, "mask_iou": side.mask_iou, "machine": conditions()}
    if side.comparison is not None:
        found = side.comparison
        scores |= {"accuracy": found.accuracy, "completeness": found.completeness, "chamfer": found.overall}
    return result | scores


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"(nerfstudio|torch)\.")
    run_program(train_and_score)
