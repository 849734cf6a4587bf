"""What a training of NeuS is worth: held-out views, and its surface beside a reference.

As a program it trains and scores: what `benchmarks.neus_results` starts for each training.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.neus_training import Training, train
from benchmarks.processes import run_program
from benchmarks.tables import conditions
from eval.errors import EvaluationError

EXAMPLE_SCAN = 0
"""The number of the scan that `crossnorm_ns.data.make_scene` writes."""


@dataclass
class Scores:
    """Of a finished run."""

    psnr: float
    """Decibels inside the masks of the held-out views, mean over views."""
    mask_iou: float
    """Of the opacities above a half with the masks of the held-out views, mean over views."""
    surface: Any
    """Mesh in world coordinates, millimetres for DTU; None where none was extracted."""
    comparison: Any
    """Of the surface with the scan's reference, where there is one, else None."""
    truth: Any
    """Picture of a held-out view, (height, width, 3)."""
    render: Any
    """The model's, (height, width, 3)."""
    normals: Any
    """The model's, as colours, (height, width, 3)."""


def evaluate(config: Path, mesh_resolution: int = 0, scan: Path | None = None) -> Scores:
    """Renders the held-out views of a saved run, extracts its surface and compares it with a reference.

    Args:
        config: config.yml of the run.
        mesh_resolution: grid points along each axis; 0 extracts no surface.
        scan: folder of the example scan, whose reference the surface is compared with; None: there is none.

    Raises:
        EvaluationError: there is no surface, or none that the reference can be compared with.
    """
    import numpy as np

    from eval.runs import load_run

    run = load_run(config, device="cpu")
    model: Any = run.pipeline.model
    dataset: Any = run.pipeline.datamanager.eval_dataset
    metrics, shown = [], {}
    for view in range(len(dataset)):
        outputs = model.get_outputs_for_camera(dataset.cameras[view : view + 1])
        metrics.append(model.get_image_metrics_and_images(outputs, dataset[view])[0])
        if view == 0:
            mask = dataset[view]["mask"]
            white = 1 - outputs["accumulation"]
            shown = {
                "truth": (dataset[view]["image"] * mask + 1 - mask).numpy(),
                "render": (outputs["rgb"] + white).numpy(),
                "normals": (outputs["normals_vis"] * outputs["accumulation"] + white).numpy(),
            }
    mesh, comparison = surface_of(config, mesh_resolution, scan, "cpu") if mesh_resolution else (None, None)
    return Scores(
        psnr=float(np.mean([found["psnr_mask"] for found in metrics])),
        mask_iou=float(np.mean([found["mask_iou"] for found in metrics])),
        surface=mesh,
        comparison=comparison,
        **shown,
    )


def surface_of(config: Path, resolution: int, scan: Path | None, device: str | None = None) -> tuple[Any, Any]:
    """Mesh of a saved run, and its comparison with the reference of the example scan, None where there is no scan.

    Raises:
        EvaluationError: there is no surface, or none that the reference can be compared with.
    """
    import numpy as np

    from eval.chamfer import compare, sample_triangles
    from eval.dtu_files import load_reference
    from eval.extract_mesh import extract_run_mesh

    mesh = extract_run_mesh(config, resolution, device=device)
    if scan is None:
        return mesh, None
    points = sample_triangles(np.array(mesh.vertices), np.array(mesh.faces))
    return mesh, compare(points, load_reference(scan, EXAMPLE_SCAN))


def chamfer_scores(comparison: Any) -> dict[str, float]:
    """Accuracy, completeness and chamfer distance in millimetres."""
    return {
        "accuracy": comparison.accuracy,
        "completeness": comparison.completeness,
        "chamfer": comparison.overall,
    }


def train_and_score(training: Training, folder: Path, mesh_resolution: int = 160) -> dict[str, Any]:
    """What `train` returns, and scores of held-out views and of the surface, which is kept beside the run.

    Accuracy, completeness and chamfer are there where the scene has reference points beside it, as the example scan,
    and where training has not lost the surface.
    """
    result, scan = train(training, folder), Path(training.data)
    config, has_reference = Path(result["config"]), (scan / "Points").is_dir()
    try:
        scores = evaluate(config, mesh_resolution, scan if has_reference else None)
    except EvaluationError as error:
        reason = str(error).partition(".ckpt: ")[2] or str(error)  # without its folder
        scores, result["error"] = evaluate(config), reason
    if scores.surface is not None:
        scores.surface.export(folder / f"{training.name}.ply")
    result |= {"psnr": scores.psnr, "mask_iou": scores.mask_iou, "machine": conditions()}
    if scores.comparison is not None:
        result |= chamfer_scores(scores.comparison)
    return result


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"(nerfstudio|torch)\.")
    run_program(Training, train_and_score)
