"""What a finished training of NeuS is worth: held-out views, and its surface beside a reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Side:
    """One method's training and evaluation."""

    training: dict[str, Any]
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


def evaluate(training: dict[str, Any], mesh_resolution: int = 0, scan: int | None = None) -> Side:
    """Renders the held-out views of a saved run, extracts its surface and compares it with a reference.

    Args:
        training: what `train` of `examples.neus_training` returns.
        mesh_resolution: grid points along each axis; 0 extracts no surface.
        scan: number of the scan whose reference lies beside the pictures; None: there is none.

    Raises:
        EvaluationError: there is no surface, or none that the reference can be compared with.
    """
    import numpy as np

    from eval.chamfer import compare, sample_triangles
    from eval.dtu_files import load_reference
    from eval.extract_mesh import extract_run_mesh
    from eval.runs import load_run

    config = Path(training["config"])
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
    mesh = extract_run_mesh(config, mesh_resolution, device="cpu") if mesh_resolution else None
    comparison = None
    if mesh is not None and scan is not None:
        points = sample_triangles(np.array(mesh.vertices), np.array(mesh.faces))
        comparison = compare(points, load_reference(Path(training["training"]["data"]), scan))
    return Side(
        training=training,
        psnr=float(np.mean([found["psnr_mask"] for found in metrics])),
        mask_iou=float(np.mean([found["mask_iou"] for found in metrics])),
        surface=mesh,
        comparison=comparison,
        **shown,
    )
