"""Evaluates renders of the test split of a scene in Blender format: python -m eval.blender --help

`--help` has to be quick, so whatever imports torch is imported after the arguments have been read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossnorm_ns.limits import Count, Device, InputFile, InputFolder, OutputFile, OutputFolder, PictureSide
from eval.command import run_command
from eval.errors import EvaluationError
from eval.protocols import ProtocolName

if TYPE_CHECKING:
    from eval.views import Views

SHEET_ROWS = 4
"""Test frames on a picture sheet, spread evenly over those evaluated."""


@dataclass
class Arguments:
    """PSNR and SSIM on the test split of a scene in Blender format.

    Evaluates a trained run (--load-config) or pictures that any system has rendered (--renders with --data). Pictures
    with alpha are laid on white. Numbers of different protocols or resolutions do not belong in one table.
    """

    load_config: InputFile | None = None
    """config.yml of a finished run: renders its test views and evaluates them."""
    renders: InputFolder | None = None
    """Folder with one .png or .jpg per test frame, the frame's number last in its name (r_0.png, rgb_000.png), or the
    output folder of ns-render dataset."""
    method: str | None = None
    """With --renders: name of the system, for tables of several."""
    data: InputFolder | None = None
    """Scene folder (with transforms_test.json): needed for --renders, replaces the recorded one of --load-config."""
    downscale_factor: PictureSide | None = None
    """With --renders: how many times smaller than the scene's pictures they are (2: the 400x400 protocol)."""
    protocol: ProtocolName = "mipnerf"
    """mipnerf: float images. nerfstudio: its models' metrics (torchmetrics). nerfbaselines: 8-bit images."""
    every: Count = 1
    """Evaluate only frames 0, N, 2N, ...: a quick look, and table and JSON say so."""
    output: OutputFile | None = None
    """JSON file for the results. A PSNR is null there if it is infinite, since render and truth are equal."""
    sheet: OutputFile | None = None
    """PNG file for a picture sheet: render, truth and error of a few test frames."""
    save_renders: OutputFolder | None = None
    """With --load-config: folder for the renders as 8-bit PNG, named as the test frames."""
    device: Device | None = None
    """With --load-config: where to render (cpu, cuda, cuda:1, ...). By default the GPU if there is one."""
    allow_outside: bool = False
    """Reads pictures outside of the scene's folder where its json files name such."""


def main(arguments: Arguments) -> None:
    """Evaluates, writes what was asked for and prints the table.

    Raises:
        EvaluationError: the options do not go together, or the run or the renders cannot be evaluated.
        DataError: the scene cannot be read.
        OSError: a result cannot be written.
    """
    from rich.console import Console

    from eval.protocols import Scores
    from eval.renders import save_render
    from eval.scoring import evaluate
    from eval.sheet import Panel, spread, write_sheet
    from eval.views import View

    _check_options(arguments)
    views = _open_views(arguments)
    _check_target(arguments, views.subject.scene)
    rows = spread(views.subject.indices, SHEET_ROWS)
    panels: list[Panel] = []

    def keep_pictures(view: View, scores: Scores) -> None:
        if arguments.save_renders is not None:
            save_render(arguments.save_renders / f"{view.name}.png", view.render)
        if arguments.sheet is not None and view.index in rows:
            panels.append(Panel(view.name, view.render, view.truth, scores))

    evaluation = evaluate(views, arguments.protocol, keep_pictures)
    if arguments.output is not None:
        evaluation.write_json(arguments.output)
    if arguments.sheet is not None:
        write_sheet(arguments.sheet, panels, evaluation.heading())
    console = Console()
    console.print(evaluation.summary())
    for written in (arguments.output, arguments.sheet, arguments.save_renders):
        if written is not None:
            console.print(f"wrote {written}", soft_wrap=True, highlight=False, markup=False)


def _check_options(arguments: Arguments) -> None:
    if (arguments.load_config is None) == (arguments.renders is None):
        raise EvaluationError("Give either --load-config config.yml or --renders FOLDER with --data SCENE.")
    if arguments.renders is not None:
        if arguments.data is None:
            raise EvaluationError("--renders needs the scene with the true images: --data SCENE.")
        if arguments.save_renders is not None or arguments.device is not None:
            raise EvaluationError("--save-renders and --device go with --load-config: --renders renders nothing.")
    elif arguments.downscale_factor is not None:
        raise EvaluationError("--downscale-factor goes with --renders: a run is evaluated at its own resolution.")
    elif arguments.method is not None:
        raise EvaluationError("--method goes with --renders: a run knows its method.")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        raise EvaluationError(f"--sheet {arguments.sheet} must end in .png: that is what it will be.")


def _open_views(arguments: Arguments) -> "Views":
    from eval.views import views_of_renders, views_of_run

    outside = arguments.allow_outside
    if arguments.load_config is not None:
        return views_of_run(arguments.load_config, arguments.data, arguments.device, arguments.every, outside)
    assert arguments.renders is not None and arguments.data is not None, "checked before"
    factor = 1 if arguments.downscale_factor is None else arguments.downscale_factor
    return views_of_renders(arguments.renders, arguments.data, factor, arguments.every, outside, arguments.method)


def _check_target(arguments: Arguments, scene: Path) -> None:
    """Finds out before the work, not after it, that renders could replace true images."""
    if arguments.save_renders is not None and arguments.save_renders.resolve().is_relative_to(scene):
        raise EvaluationError(
            f"--save-renders {arguments.save_renders} lies in the scene {scene}, where it could replace true "
            "images: give a folder elsewhere."
        )


def run() -> None:
    """The command."""
    run_command(Arguments, main, "python -m eval.blender")


if __name__ == "__main__":
    run()
