"""Extracts the surface of a trained run as a triangle mesh: python -m eval.extract_mesh --help

`--help` has to be quick, so whatever imports torch is imported after the arguments have been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crossnorm_ns.limits import Batch, Device, GridSide, InputFile, InputFolder, OutputFile
from eval.command import run_command
from eval.errors import EvaluationError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float64, UInt8
    from trimesh import Trimesh

    from crossnorm_ns.fields.sdf_field import SDFField
    from eval.runs import Run

Space = Literal["world", "unit"]
Progress = Callable[[int, int], None]

HALF_SIZE = 1.01
"""Of the box around the unit sphere, as in NeuS."""
FILE_TYPES = {".ply": "ply", ".obj": "obj"}


@dataclass
class Arguments:
    """The zero level set of a surface run (neus-cn, volsdf-cn, ...), as a mesh for viewers and for eval.dtu_chamfer."""

    load_config: InputFile
    """config.yml of a finished run."""
    output: OutputFile
    """Mesh to write: .ply (binary) or .obj."""
    resolution: GridSide = 512
    """Grid points along each axis of the box, 1.01 times the unit sphere's: memory and time grow with its cube."""
    space: Space = "world"
    """world: the coordinates and units of the data's cameras (DTU: millimetres), in which meshes are evaluated.
    unit: the network's, in which the object lies in the unit sphere."""
    normals: bool = False
    """Adds a normal to each vertex: the gradient of the signed distance."""
    colors: bool = False
    """Adds a colour to each vertex, as seen along its normal from outside."""
    data: InputFolder | None = None
    """Scene folder instead of the one that the run recorded."""
    device: Device | None = None
    """Where to evaluate the network (cpu, cuda, cuda:1, ...). By default the GPU if there is one."""
    block_size: Batch = 16_384
    """Points evaluated at a time: less takes less memory, for the same mesh."""
    allow_outside: bool = False
    """Reads files outside of the scene's folder where links in it lead there."""


def main(arguments: Arguments) -> None:
    """Extracts the mesh, writes it and says where it lies.

    Raises:
        EvaluationError: the run cannot be loaded, is no surface run or has no surface, or the file cannot be written.
        DataError: the scene cannot be read.
        OSError: the file cannot be written.
    """
    from rich.console import Console

    from eval.files import write_atomically

    file_type = _file_type(arguments.output)
    with _progress_bar() as progress:
        mesh = extract_run_mesh(
            arguments.load_config,
            arguments.resolution,
            arguments.space,
            normals=arguments.normals,
            colors=arguments.colors,
            data=arguments.data,
            device=arguments.device,
            block_size=arguments.block_size,
            allow_outside=arguments.allow_outside,
            progress=progress,
        )
    contents: Any = mesh.export(file_type=file_type)  # PLY as bytes, OBJ as text
    write_atomically(arguments.output, contents if isinstance(contents, bytes) else contents.encode())
    lowest, highest = ("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in mesh.bounds)
    Console().print(
        f"wrote {arguments.output}: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces, "
        f"{arguments.space} space, from {lowest} to {highest}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def extract_run_mesh(
    config_path: Path,
    resolution: int = 512,
    space: Space = "world",
    *,
    normals: bool = False,
    colors: bool = False,
    data: Path | None = None,
    device: str | None = None,
    block_size: int = 16_384,
    allow_outside: bool = False,
    progress: Progress | None = None,
) -> Trimesh:
    """The zero level set of a run's signed distance, within 1.01 times the box of the unit sphere.

    Args:
        config_path: The run's config.yml.
        resolution: Grid points along each axis.
        space: "world" for the coordinates of the data's cameras, "unit" for the network's.
        normals: Adds vertex normals.
        colors: Adds vertex colours.
        data: Scene folder instead of the one in the file.
        device: Where to evaluate the network; none takes a GPU where there is one.
        block_size: Points evaluated at a time.
        allow_outside: Reads files outside of the scene's folder where links in it lead there.
        progress: Told the number of grid points done and of all, after each block.

    Returns:
        The mesh; its `metadata["run"]` has method, changed options, step, seed and the size of the pictures trained on.

    Raises:
        EvaluationError: the run cannot be loaded, has no signed distance, or no surface in the box.
        DataError: the scene cannot be read.
    """
    import trimesh

    from crossnorm_ns.fields.sdf_field import SDFField
    from crossnorm_ns.functional.marching_cubes import extract_surface
    from eval.runs import load_run

    run = load_run(config_path, data, device, load_images=False, allow_outside=allow_outside)
    field = getattr(run.pipeline.model, "field", None)
    if not isinstance(field, SDFField):
        raise EvaluationError(
            f"{config_path} is a run of {run.config.method_name}, which has no signed distance and so no surface: "
            "give a run of NeuS or VolSDF."
        )
    try:
        vertices, faces = extract_surface(
            field.signed_distance,
            ((-HALF_SIZE,) * 3, (HALF_SIZE,) * 3),
            resolution,
            block_size=block_size,
            device=run.pipeline.device,
            progress=progress,
        )
    except ValueError as error:
        raise EvaluationError(f"{run.checkpoint_path}: {error}.") from error
    directions, seen = None, None
    if normals or colors:
        directions, seen = _appearance(field, vertices, block_size, run.pipeline.device)
    if space == "world":
        matrix = _world_from_unit(config_path.parent / "dataparser_transforms.json")
        vertices = vertices @ matrix[:3, :3].T + matrix[:3, 3]
        if directions is not None:
            directions = trimesh.util.unitize(directions @ matrix[:3, :3].T)
    return trimesh.Trimesh(
        vertices,
        faces,
        vertex_normals=directions if normals else None,
        vertex_colors=seen if colors else None,
        metadata={"run": _facts(run)},
        process=False,
    )


def _facts(run: Run) -> dict[str, Any]:
    datamanager: Any = run.pipeline.datamanager
    cameras = datamanager.train_dataset.cameras
    return {
        "method": run.config.method_name,
        "options": run.options,
        "step": run.step,
        "seed": run.config.machine.seed,
        "image_size": [int(cameras.width[0]), int(cameras.height[0])],
    }


def _world_from_unit(path: Path) -> Float64[np.ndarray, "4 4"]:
    """Similarity from the network's coordinates to the data's; nerfstudio keeps the other direction with the run.

    Raises:
        EvaluationError: the file is missing or holds no similarity.
    """
    import numpy as np

    from crossnorm_ns.reading import FileError, read_json

    unit_from_world = np.eye(4)
    try:
        recorded = read_json(path)
        unit_from_world[:3] = recorded["scale"] * np.array(recorded["transform"], dtype=np.float64)
        world_from_unit = np.linalg.inv(unit_from_world)
        if not (np.abs([unit_from_world, world_from_unit]) <= np.finfo(np.float32).max).all():
            raise ValueError("beyond single precision")
        return world_from_unit
    except FileError as error:
        raise EvaluationError(
            f"{error} There training wrote how its coordinates lie in the world: copy it beside config.yml, or take "
            "--space unit."
        ) from error
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, np.linalg.LinAlgError) as error:
        raise EvaluationError(
            f"{path} holds no scale and 3 x 4 transform that can be inverted: copy it again."
        ) from error


def _appearance(
    field: SDFField, vertices: Float64[np.ndarray, "vertices 3"], block_size: int, device: torch.device
) -> tuple[Float64[np.ndarray, "vertices 3"], UInt8[np.ndarray, "vertices 3"]]:
    """Outward unit normals at the vertices, and the colours seen from outside along them."""
    import numpy as np
    import torch

    normals, colors = np.empty_like(vertices), np.empty(vertices.shape, dtype=np.uint8)
    for start in range(0, len(vertices), block_size):
        block = slice(start, start + block_size)
        points = torch.from_numpy(vertices[block]).float().to(device)
        with torch.no_grad():
            _, gradients, features = field.geometry(points)
            outward = torch.nn.functional.normalize(gradients, dim=-1)
            seen = field.colors(points, -outward, gradients, features)
        normals[block] = outward.cpu().numpy()
        colors[block] = (255 * seen).round().byte().cpu().numpy()
    return normals, colors


def _file_type(path: Path) -> str:
    """trimesh's name of a file's type."""
    if path.suffix.lower() not in FILE_TYPES:
        raise EvaluationError(f"--output {path} must end in {' or '.join(FILE_TYPES)}: that says what to write.")
    return FILE_TYPES[path.suffix.lower()]


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar with percentage and time left on standard error."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(console=console, transient=True, disable=not console.is_terminal)

    def show(done: int, total: int) -> None:
        if not bar.tasks:
            bar.add_task("Evaluating the signed distance", total=total)
            bar.start()
        bar.update(bar.tasks[0].id, completed=done)

    try:
        yield show
    finally:
        if bar.tasks:
            bar.stop()


def run() -> None:
    """The command."""
    run_command(Arguments, main, "python -m eval.extract_mesh")


if __name__ == "__main__":
    run()
