"""Measures the chamfer distance of surfaces on DTU: python -m eval.dtu_chamfer --help

`--help` has to be quick, so whatever is slow to import is imported after the arguments have been read.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from crossnorm_ns.limits import (
    Device,
    GridSide,
    InputFile,
    InputFolder,
    InputPath,
    OutputFile,
    OutputFolder,
    PictureSide,
    Seed,
    between,
)
from eval.command import run_command
from eval.dtu_files import (
    DTU_SCANS,
    Mode,
    Space,
    check_reference,
    find_scans,
    load_mesh,
    load_points,
    load_reference,
)
from eval.errors import EvaluationError
from eval.mesh_cleaning import Cull

if TYPE_CHECKING:
    import trimesh

    from eval.chamfer import Points
    from eval.chamfer_results import ChamferResult

Stage = Callable[[str], None]


@dataclass
class Arguments:
    """Chamfer distance of a surface on a scan of DTU, in millimetres, by the rules of jzhangbs/DTUeval-python.

    Evaluates a mesh or point cloud of any system (--mesh), the surface of a trained run (--load-config), or one of
    either for each of the 15 scans (--all), beside the paper's table. Numbers of different --cull are different
    metrics and do not belong in one table.
    """

    dataset_dir: InputFolder
    """DTU's evaluation files: Points/stl/stl024_total.ply, ObsMask/ObsMask24_10.mat, ObsMask/Plane24.mat, ..."""
    mesh: InputFile | None = None
    """Surface, .ply or .obj."""
    space: Space = "world"
    """Of surfaces in files. world: the scan's millimetres. unit: coordinates in which the object lies in the unit
    sphere; scale_mat_0 of --data takes them to the world."""
    load_config: InputFile | None = None
    """config.yml of a finished run: its surface is extracted in world space."""
    all: InputFolder | None = None
    """Folder with a surface for each scan: scan24.ply, dtu_scan24/mesh.ply, or a run's config.yml below dtu_scan24. Of
    meshes named by their step alone (00300000.ply) the last counts."""
    method: str | None = None
    """Name of the system that a surface in a file comes from, for tables of several."""
    image_size: tuple[PictureSide, PictureSide] | None = None
    """Width and height of the pictures that such a system was trained on, for tables: 1600 1200."""
    scan: Annotated[int, between(0, 10**6)] | None = None
    """Number of the scan, for --mesh and --load-config."""
    mode: Mode = "mesh"
    """mesh: points are sampled on the triangles. pointcloud: the file's points are compared."""
    cull: Cull = "none"
    """none: as it is (NeuS with masks). neus-womask: masks dilated by 101 pixels, then the largest component. 2dgs:
    masks dilated by a disk of radius 24."""
    data: InputPath | None = None
    """Scene with cameras and masks (image, mask, cameras_sphere.npz), for --cull and --space unit; with --all the
    folder that holds dtu_scan24, ... With --space unit alone also a camera file (cameras.npz of IDR and VolSDF). With
    --load-config replaces the scene that the run recorded."""
    seed: Seed = 0
    """Of the random order in which points are thinned; results differ by some 0.01 % between seeds."""
    resolution: GridSide = 512
    """With runs: grid points along each axis for marching cubes."""
    device: Device | None = None
    """With runs: where to evaluate the network (cpu, cuda, ...). By default the GPU if there is one."""
    visualize: OutputFolder | None = None
    """Folder for point clouds coloured by error (vis_024_d2s.ply: surface to reference, vis_024_s2d.ply: reference to
    surface; white to red at 10 mm, green from 20 mm on, blue: left out) and a picture (vis_024.png)."""
    output: OutputFile | None = None
    """JSON file for the results."""
    allow_outside: bool = False
    """Reads files outside of a scene's folder where links in it lead there."""


def main(arguments: Arguments) -> None:
    """Evaluates, writes what was asked for and prints the table.

    Raises:
        EvaluationError: the options do not go together, or a surface or a reference cannot be evaluated.
        DataError: the scene of --data cannot be read.
        OSError: a result cannot be written.
    """
    _check_options(arguments)
    surfaces = _find_surfaces(arguments)
    if arguments.space == "unit" and any(_is_run(arguments, path) for path in surfaces.values()):
        raise EvaluationError("--space unit goes with files: surfaces of runs are extracted in world space.")
    for scan in surfaces:
        check_reference(arguments.dataset_dir, scan)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from eval.chamfer import NUM_STAGES
    from eval.chamfer_results import all_as_dict, table_of_scans
    from eval.files import write_atomically

    results: list[ChamferResult] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        total = len(surfaces) * (NUM_STAGES + 2 + (arguments.cull != "none") + (arguments.visualize is not None))
        task = progress.add_task("", total=total, completed=-1)
        for scan, path in surfaces.items():

            def show(stage: str, scan: int = scan) -> None:
                progress.update(task, description=f"scan {scan}: {stage}", advance=1)

            def show_share(stage: str, done: int, of: int, scan: int = scan) -> None:
                progress.update(task, description=f"scan {scan}: {stage} ({100 * done // of} %)")

            results.append(_evaluate(arguments, scan, path, show, show_share))
            contents = all_as_dict(results) if arguments.all is not None else results[0].as_dict()
            if arguments.output is not None:  # after each scan: what a later one finds wrong loses nothing
                write_atomically(arguments.output, (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())

    console = Console()
    console.print(table_of_scans(results) if arguments.all is not None else results[0].summary())
    for written in (arguments.output, arguments.visualize):
        if written is not None:
            console.print(f"wrote {written}", soft_wrap=True, highlight=False, markup=False)


def _evaluate(
    arguments: Arguments, scan: int, path: Path, show: Stage, show_share: Callable[[str, int, int], None]
) -> "ChamferResult":
    """Evaluates one surface and writes its pictures."""
    import numpy as np

    from eval.chamfer import check_world_space, compare
    from eval.chamfer_results import ChamferResult

    show("reading")
    reference = load_reference(arguments.dataset_dir, scan)
    culling = None
    source = _source(arguments, scan, path)
    try:
        if arguments.mode == "pointcloud":
            points = _in_world(arguments, scan, load_points(path))
            check_world_space(points, reference)
            show("counting the points")
        else:
            mesh = _read_mesh(arguments, scan, path, show_share)
            source |= mesh.metadata.get("run", {})
            check_world_space(np.asarray(mesh.vertices), reference)
            if arguments.cull != "none":
                mesh, culling = _clean(arguments, mesh, scan, show, show_share)
            show("sampling the triangles")
            points = _sample(mesh)
        comparison = compare(points, reference, arguments.seed, show)
    except EvaluationError as error:
        raise EvaluationError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    result = ChamferResult(
        comparison=comparison,
        scan=scan,
        source=source,
        mode=arguments.mode,
        cull=arguments.cull,
        culling=culling,
        seed=arguments.seed,
        dataset_dir=str(arguments.dataset_dir.resolve()),
    )
    if arguments.visualize is not None:
        from eval.chamfer_pictures import write_clouds, write_picture

        show("drawing")
        write_clouds(arguments.visualize, scan, comparison)
        picture = arguments.visualize / f"vis_{scan:03}.png"
        write_picture(picture, comparison, reference.plane[:3], result.heading())
    return result


def _read_mesh(
    arguments: Arguments, scan: int, path: Path, show_share: Callable[[str, int, int], None]
) -> "trimesh.Trimesh":
    import numpy as np

    if not _is_run(arguments, path):
        mesh = load_mesh(path)
        mesh.vertices = _in_world(arguments, scan, np.asarray(mesh.vertices))
        return mesh
    from eval.extract_mesh import extract_run_mesh

    return extract_run_mesh(
        path,
        arguments.resolution,
        "world",
        data=arguments.data if arguments.all is None else None,
        device=arguments.device,
        allow_outside=arguments.allow_outside,
        progress=lambda done, of: show_share("extracting the surface", done, of),
    )


def _is_run(arguments: Arguments, path: Path) -> bool:
    return path == arguments.load_config or (arguments.all is not None and path.name == "config.yml")


def _source(arguments: Arguments, scan: int, path: Path) -> dict[str, Any]:
    if _is_run(arguments, path):
        return {"config": str(path.resolve()), "resolution": arguments.resolution}
    source = {"surface": str(path.resolve()), "method": arguments.method, "image_size": arguments.image_size}
    return source if arguments.space == "world" else source | {"scale_mat": str(_scene(arguments, scan).resolve())}


def _in_world(arguments: Arguments, scan: int, points: "Points") -> "Points":
    """A file's points in the scan's millimetres."""
    if arguments.space == "world":
        return points
    from crossnorm_ns.data.dtu_scene import read_scale_mat
    from eval.chamfer import to_world

    return to_world(points, read_scale_mat(_scene(arguments, scan), arguments.allow_outside))


def _scene(arguments: Arguments, scan: int) -> Path:
    assert arguments.data is not None, "checked before"
    return arguments.data if arguments.all is None else _scene_of(arguments.data, scan)


def _clean(
    arguments: Arguments, mesh: "trimesh.Trimesh", scan: int, show: Stage, show_share: Callable[[str, int, int], None]
) -> tuple["trimesh.Trimesh", dict[str, Any]]:
    from crossnorm_ns.data.dtu_scene import read_scene
    from eval.mesh_cleaning import clean_mesh, reaches

    show("cleaning")
    folder = _scene(arguments, scan)
    scene = read_scene(folder, allow_outside=arguments.allow_outside)
    cleaned = clean_mesh(mesh, scene, arguments.cull, lambda done, of: show_share("cleaning", done, of))
    size = 2 * len(reaches(arguments.cull, scene.width)) - 1
    return cleaned, {"data": str(folder.resolve()), "width": scene.width, "kernel_size": size}


def _sample(mesh: "trimesh.Trimesh") -> "Points":
    import numpy as np

    from eval.chamfer import sample_triangles

    return sample_triangles(np.array(mesh.vertices, dtype=np.float64), np.array(mesh.faces, dtype=np.int64))


def _check_options(arguments: Arguments) -> None:
    given = [source for source in (arguments.mesh, arguments.load_config, arguments.all) if source is not None]
    if len(given) != 1:
        raise EvaluationError("Give one of --mesh SURFACE.ply, --load-config config.yml and --all FOLDER.")
    if arguments.all is not None and arguments.scan is not None:
        raise EvaluationError("--scan goes with one surface: --all takes the scans from the names of its files.")
    if arguments.all is None and arguments.scan is None:
        raise EvaluationError(f"--scan is missing: which scan is it? Surfaces are usually compared on {_listed()}.")
    if arguments.cull != "none" and arguments.data is None:
        raise EvaluationError(f"--cull {arguments.cull} needs cameras and masks: --data SCENE.")
    if arguments.space == "unit" and (arguments.data is None or arguments.load_config is not None):
        raise EvaluationError("--space unit goes with surfaces in files, and needs their scene: --data SCENE.")
    reads_data = arguments.cull != "none" or arguments.space == "unit" or arguments.load_config is not None
    if arguments.data is not None and not reads_data:
        raise EvaluationError("--data goes with --cull, --space unit or --load-config: nothing else reads it.")
    if arguments.load_config is not None and (arguments.method is not None or arguments.image_size is not None):
        raise EvaluationError("--method and --image-size go with surfaces in files: a run knows its own.")
    if arguments.mode == "pointcloud" and (arguments.cull != "none" or arguments.load_config is not None):
        raise EvaluationError("--mode pointcloud goes with files of points: --cull and --load-config need triangles.")


def _find_surfaces(arguments: Arguments) -> dict[int, Path]:
    if arguments.all is not None:
        return find_scans(arguments.all, DTU_SCANS)
    path = arguments.mesh or arguments.load_config
    assert path is not None and arguments.scan is not None, "checked before"
    return {arguments.scan: path}


def _scene_of(folder: Path, scan: int) -> Path:
    for name in (f"dtu_scan{scan}", f"scan{scan}"):
        if (folder / name).is_dir():
            return folder / name
    raise EvaluationError(f"--data {folder} has no dtu_scan{scan}: with --all, give the folder that holds the scenes.")


def _listed() -> str:
    return ", ".join(map(str, DTU_SCANS))


def run() -> None:
    """The command."""
    run_command(Arguments, main, "python -m eval.dtu_chamfer")


if __name__ == "__main__":
    run()
