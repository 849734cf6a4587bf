"""One training of the tiny NeuS with its scores: the program that `benchmarks.neus_results` starts for each."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.tables import conditions
from examples.neus_scores import evaluate
from examples.neus_training import Training, run_program, train

EXAMPLE_SCAN = 0
MESH_RESOLUTION = 160


def train_and_score(training: Training, folder: Path) -> dict[str, Any]:
    """What `train` returns, and scores of held-out views and of the surface, which is kept beside the run.

    Accuracy, completeness and chamfer are there where the scene has reference points beside it, as the example scan.
    """
    result = train(training, folder)
    scan = EXAMPLE_SCAN if (Path(training.data) / "Points").is_dir() else None
    side = evaluate(result, MESH_RESOLUTION, scan)
    side.surface.export(folder / f"{training.name}.ply")
    scores = {"psnr": side.psnr, "mask_iou": side.mask_iou, "machine": conditions()}
    if side.comparison is not None:
        found = side.comparison
        scores |= {"accuracy": found.accuracy, "completeness": found.completeness, "chamfer": found.overall}
    return result | scores


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"(nerfstudio|torch)\.")
    run_program(train_and_score)
