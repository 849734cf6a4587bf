"""Test views to evaluate: pairs of a render and its true image, from pictures on disk or from a trained model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossnorm_ns.data.blender_scene import BlenderSplit, composite_on_white, load_image, read_split
from crossnorm_ns.data.official_blender import official_scene
from eval.errors import EvaluationError
from eval.protocols import Image
from eval.renders import check_renders, load_render, match_renders, without_truth
from eval.results import Subject
from eval.runs import load_run, read_run_config

MIN_SCALE = 1 / 1024
"""Of a run's pictures."""


class View(NamedTuple):
    """One test frame; both images are float32 colours on white."""

    index: int
    """Position in the test split."""
    name: str
    render: Image
    truth: Image


class Views(NamedTuple):
    """The test frames of a Blender scene beside their renders."""

    subject: Subject
    frames: Iterator[View]
    """In order; each is read or rendered when it is asked for."""


def views_of_renders(
    folder: Path,
    scene: Path,
    downscale_factor: int = 1,
    every: int = 1,
    allow_outside: bool = False,
    method: str | None = None,
) -> Views:
    """Test views whose renders are pictures in a folder, written by any system.

    Args:
        folder: One picture per test frame; see `eval.renders.match_renders` for their names.
        scene: Scene in Blender format.
        downscale_factor: How many times smaller than the scene's pictures the renders are.
        every: Frames 0, every, 2 * every, ... are evaluated.
        allow_outside: Reads true pictures outside of the scene's folder where its json file names such.
        method: Name of the system that has rendered them.

    Raises:
        EvaluationError: renders are missing, ambiguous, superfluous or of another size.
        DataError: the scene cannot be read.
    """
    split = read_split(scene, "test", downscale_factor, allow_outside)
    files = match_renders(folder, split.names, every)
    check_renders(files, split.width, split.height)

    source = {"renders": str(files[0].parent.resolve()), "method": method}
    subject = _subject(scene, split, every, source)

    def frames() -> Iterator[View]:
        for index, file in zip(subject.indices, files, strict=True):
            truth = _truth(split, index, downscale_factor)
            yield View(index, split.names[index], without_truth(file, load_render(file), truth), truth)

    return Views(subject, frames())


def views_of_run(
    config_path: Path,
    data: Path | None = None,
    device: str | None = None,
    every: int = 1,
    allow_outside: bool = False,
) -> Views:
    """Test views that a finished nerfstudio run on a Blender scene renders, at the resolution it was trained at.

    Args:
        config_path: The run's config.yml.
        data: Scene folder instead of the one in the file.
        device: Where to render; none takes a GPU where there is one.
        every: Frames 0, every, 2 * every, ... are evaluated.
        allow_outside: Reads true pictures outside of the scene's folder where its json file names such.

    Raises:
        EvaluationError: the run cannot be loaded, or its test images are not those of a Blender scene.
        DataError: the scene cannot be read.
    """
    datamanager: Any = read_run_config(config_path, data, allow_outside).pipeline.datamanager
    parser = datamanager.dataparser
    scene, downscale_factor = Path(parser.data), _downscale_factor(datamanager)
    split = read_split(scene, "test", downscale_factor, allow_outside)
    run = load_run(config_path, data, device, allow_outside=allow_outside)
    dataset: Any = run.pipeline.datamanager.eval_dataset
    cameras = dataset.cameras
    if [path.resolve() for path in dataset.image_filenames] != [path.resolve() for path in split.image_paths]:
        raise EvaluationError(f"{config_path}: its test images are not those of transforms_test.json in {scene}.")
    if (int(cameras.width[0]), int(cameras.height[0])) != (split.width, split.height):
        raise EvaluationError(
            f"{config_path} renders {int(cameras.width[0])}x{int(cameras.height[0])}, but {scene} at downscale_factor "
            f"{downscale_factor} is {split.width}x{split.height}: give the scene it was trained on (--data)."
        )

    source = {
        "config": str(config_path.resolve()),
        "method": run.config.method_name,
        "options": run.options,
        "checkpoint": str(run.checkpoint_path),
        "step": run.step,
        "seed": run.config.machine.seed,
        "device": str(run.pipeline.device),
    }
    subject = _subject(scene, split, every, source)

    def frames() -> Iterator[View]:
        for index in subject.indices:
            camera = cameras[index : index + 1].to(run.pipeline.device)
            render = _colours(run.pipeline.model.get_outputs_for_camera(camera))
            yield View(index, split.names[index], render, _truth(split, index, downscale_factor))

    return Views(subject, frames())


def _downscale_factor(datamanager: Any) -> int:
    """Of the dataparser, and of nerfstudio's datamanager, whose factor is 1/2 where that of ours is 2."""
    scale = getattr(datamanager, "camera_res_scale_factor", 1.0)
    if not MIN_SCALE <= scale <= 1:
        raise EvaluationError(f"camera_res_scale_factor is {scale}, but must lie between {MIN_SCALE} and 1.")
    return round(int(getattr(datamanager.dataparser, "downscale_factor", None) or 1) / scale)


def _subject(scene: Path, split: BlenderSplit, every: int, source: dict[str, Any]) -> Subject:
    return Subject(
        scene=scene.resolve(),
        official_scene=official_scene(split.image_paths),
        width=split.width,
        height=split.height,
        num_test_images=len(split.names),
        every=every,
        source=source,
    )


def _truth(split: BlenderSplit, index: int, downscale_factor: int) -> Image:
    return composite_on_white(load_image(split.image_paths[index], downscale_factor))


def _colours(outputs: dict[str, Any]) -> Image:
    """The final colours among a model's outputs: `rgb`, or `rgb_fine` of nerfstudio's two-level models."""
    for key in ("rgb", "rgb_fine"):
        if key in outputs:
            return outputs[key].detach().cpu().numpy().astype(np.float32)
    raise EvaluationError(f"The model's outputs have no colours (rgb or rgb_fine), only: {', '.join(outputs)}.")
