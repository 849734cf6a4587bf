"""python -m eval.extract_mesh and ns-export: the network's own zero set, in its place, whatever the block size."""

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from dtu_scans import SCALE_MAT, SIZE, write_scan
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from PIL import Image
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from crossnorm_ns.fields.sdf_field import SDFField, SDFFieldConfig
from eval import extract_mesh
from eval.errors import EvaluationError
from eval.extract_mesh import extract_run_mesh
from eval.runs import load_run
from method_configs import neus, volsdf

RESOLUTION = 40
CELL = 2.02 / (RESOLUTION - 1)


def start_run(folder: Path, method: str) -> Path:
    """A small NeuS, or a VolSDF without masks, after one tiny step, as the trainer saves it; its config.yml."""
    write_scan(folder / "scene")
    norm = "none" if method == "neus-ref" else "cn"
    if method == "volsdf-cn":
        config = volsdf.tiny_config(method, norm, learning_rate=1e-6, steps=1)
        config.pipeline.model.mask_loss_mult = 0.0
    else:
        config = neus.tiny_config(method, norm, learning_rate=1e-6, steps=1)
    config.output_dir, config.timestamp, config.machine.device_type = folder, "now", "cpu"
    config.calibration_batches, config.pipeline.datamanager.data = 2, folder / "scene"
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 1000
    config.pipeline.model.sdf_field = SDFFieldConfig(
        sdf_depth=2, sdf_width=256, sdf_skip=None, num_features=8, point_degrees=3, color_depth=1, color_width=16
    )
    config.save_config()
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="test")
    trainer.train()
    return config.get_base_dir() / "config.yml"


@pytest.fixture(scope="module", params=["neus-ref", "neus-cn", "volsdf-cn"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return start_run(folder, request.param)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return start_run(folder, "neus-ref")


def field_of(config_path: Path) -> SDFField:
    return load_run(config_path, device="cpu").pipeline.model.field


def signed_distance(field: SDFField, points: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return field.signed_distance(torch.from_numpy(points).float())[:, 0].numpy()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["eval.extract_mesh", *map(str, arguments)])
    extract_mesh.run()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command line, which must exit with code 2 and one line of error."""
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, *arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_mesh_before_training_is_the_initial_sphere(plain_run: Path) -> None:
    """Geometric initialisation is random: its sphere has dents, but the right volume around the right place."""
    unit, world = (extract_run_mesh(plain_run, RESOLUTION, space) for space in ("unit", "world"))
    facts = dict(unit.metadata["run"])
    assert facts.pop("options") == load_run(plain_run, device="cpu").options
    assert facts == {"method": "neus-ref", "step": 0, "seed": 42, "image_size": list(SIZE)}
    for mesh, center, radius in ((unit, np.zeros(3), 0.5), (world, SCALE_MAT[:3, 3], 0.5 * SCALE_MAT[0, 0])):
        assert mesh.is_watertight
        assert (mesh.volume * 3 / (4 * np.pi)) ** (1 / 3) == pytest.approx(radius, rel=0.05)
        assert np.linalg.norm(mesh.center_mass - center) < 0.3 * radius


def test_world_space_is_the_runs_own_wherever_the_scene_is_now(plain_run: Path, tmp_path: Path) -> None:
    """With the pictures of another scan at hand, the mesh still lies where training has seen it."""
    folder = tmp_path / "run"
    shutil.copytree(plain_run.parent, folder)
    mesh = extract_run_mesh(folder / "config.yml", RESOLUTION)
    write_scan(tmp_path / "other")
    with np.load(tmp_path / "other" / "cameras_sphere.npz") as cameras:
        moved = {name: array.copy() for name, array in cameras.items()}
    for name, matrix in moved.items():
        if name.startswith("scale_mat"):
            matrix[:3, 3] += 100
    np.savez(tmp_path / "other" / "cameras_sphere.npz", **moved)
    again = extract_run_mesh(folder / "config.yml", RESOLUTION, data=tmp_path / "other")
    np.testing.assert_array_equal(mesh.vertices, again.vertices)


@pytest.mark.parametrize(
    ("contents", "words"), [(None, "--space unit"), ("{}", "copy it again"), ('{"scale": 0, "transform": 1}', "copy")]
)
def test_world_space_without_a_record_of_it_is_refused(
    plain_run: Path, tmp_path: Path, contents: str | None, words: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain_run.parent, folder)
    record = folder / "dataparser_transforms.json"
    record.unlink() if contents is None else record.write_text(contents)
    with pytest.raises(EvaluationError, match=f"dataparser_transforms.json.*{words}"):
        extract_run_mesh(folder / "config.yml", RESOLUTION)
    assert len(extract_run_mesh(folder / "config.yml", RESOLUTION, "unit").faces) > 0


def test_vertices_lie_on_the_zero_set_of_the_saved_network(run: Path) -> None:
    mesh = extract_run_mesh(run, RESOLUTION, "unit")
    field = field_of(run)
    assert np.abs(signed_distance(field, mesh.vertices)).max() < CELL**2
    assert (signed_distance(field, mesh.vertices + 0.05 * mesh.vertex_normals) > 0).all()


def test_world_space_is_that_of_the_cameras(run: Path) -> None:
    unit, world = (extract_run_mesh(run, RESOLUTION, space) for space in ("unit", "world"))
    np.testing.assert_allclose(world.vertices, unit.vertices * SCALE_MAT[0, 0] + SCALE_MAT[:3, 3], atol=1e-3)
    np.testing.assert_array_equal(world.faces, unit.faces)
    assert world.volume == pytest.approx(unit.volume * SCALE_MAT[0, 0] ** 3, rel=1e-4)


@pytest.mark.parametrize("block_size", [4096, 1000])
def test_mesh_does_not_depend_on_the_block_size(run: Path, block_size: int) -> None:
    """Up to the rounding of float32: libraries sum in another order for another number of points."""
    large, small = (
        extract_run_mesh(run, RESOLUTION, "unit", normals=True, colors=True, block_size=size)
        for size in (65_536, block_size)
    )
    np.testing.assert_array_equal(small.faces, large.faces)
    np.testing.assert_allclose(small.vertices, large.vertices, atol=1e-5)
    np.testing.assert_allclose(small.vertex_normals, large.vertex_normals, atol=1e-4)
    assert np.abs(small.visual.vertex_colors.astype(int) - large.visual.vertex_colors).max() <= 1


def test_normals_are_the_gradient_of_the_signed_distance(run: Path) -> None:
    """Normals of the triangles alone, averaged, have cosines down to 0.997 with it."""
    mesh = extract_run_mesh(run, RESOLUTION, "world", normals=True)
    points = torch.from_numpy(extract_run_mesh(run, RESOLUTION, "unit").vertices)
    field, step = field_of(run).double(), 1e-4
    with torch.no_grad():
        ahead, behind = (
            [field.signed_distance(points + sign * step * axis) for axis in torch.eye(3)] for sign in (1, -1)
        )
    gradients = (torch.cat(ahead, dim=-1) - torch.cat(behind, dim=-1)).numpy()
    cosines = (trimesh.util.unitize(gradients) * mesh.vertex_normals).sum(axis=1)
    assert cosines.min() > 0.99999
    assert np.linalg.norm(mesh.vertex_normals, axis=1) == pytest.approx(1)


def test_colors_are_those_of_the_color_network_seen_from_outside(run: Path) -> None:
    mesh = extract_run_mesh(run, RESOLUTION, "unit", colors=True)
    field = field_of(run)
    with torch.no_grad():
        points = torch.from_numpy(mesh.vertices[:50]).float()
        _, gradients, features = field.geometry(points)
        expected = field.colors(points, -gradients / gradients.norm(dim=-1, keepdim=True), gradients, features)
    found = mesh.visual.vertex_colors[:50, :3] / 255
    np.testing.assert_allclose(found, expected.numpy(), atol=0.51 / 255)
    assert mesh.visual.kind == "vertex"


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".PLY"])
def test_command_writes_what_other_programs_read(
    plain_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    output = tmp_path / "new folder" / f"mesh{suffix}"
    options = ["--resolution", RESOLUTION, "--normals", "--colors", "--output", output]
    command(monkeypatch, "--load-config", plain_run, *options)
    expected = extract_run_mesh(plain_run, RESOLUTION, normals=True, colors=True)
    read = trimesh.load(output, process=False)
    assert isinstance(read, trimesh.Trimesh)
    np.testing.assert_allclose(read.vertices, expected.vertices, atol=1e-4)
    np.testing.assert_array_equal(read.faces, expected.faces)
    np.testing.assert_array_equal(read.visual.vertex_colors, expected.visual.vertex_colors)
    np.testing.assert_allclose(read.vertex_normals, expected.vertex_normals, atol=1e-5)
    shown = capsys.readouterr().out
    assert f"{len(expected.vertices):,} vertices" in shown and "world space" in shown
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("space", ["world", "unit"])
def test_command_takes_any_surface_method(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], space: str
) -> None:
    """The oracle is the saved network alone: what the file says of each vertex is true of it."""
    output = tmp_path / "mesh.ply"
    options = ["--resolution", RESOLUTION, "--space", space, "--normals", "--colors", "--device", "cpu"]
    command(monkeypatch, "--load-config", run, "--output", output, *options)
    assert f"{space} space" in capsys.readouterr().out
    mesh = trimesh.load(output, process=False)
    assert isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) > 100
    points = mesh.vertices if space == "unit" else (mesh.vertices - SCALE_MAT[:3, 3]) / SCALE_MAT[0, 0]
    field = field_of(run)
    assert np.abs(signed_distance(field, points)).max() < CELL**2
    with torch.no_grad():
        vertices = torch.from_numpy(points).float()
        _, gradients, features = field.geometry(vertices)
        outward = torch.nn.functional.normalize(gradients, dim=-1)
        colors = field.colors(vertices, -outward, gradients, features).numpy()
    np.testing.assert_allclose(mesh.vertex_normals, outward.numpy(), atol=1e-3)
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3] / 255, colors, atol=1.1 / 255)


def test_plain_mesh_holds_no_normals_and_no_colors(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, "--load-config", plain_run, "--resolution", 20, "--output", tmp_path / "mesh.ply")
    header = (tmp_path / "mesh.ply").read_bytes().split(b"end_header")[0].decode()
    properties = [line.split()[-1] for line in header.splitlines() if line.startswith("property")]
    assert properties == ["x", "y", "z", "vertex_indices"]


def test_mesh_needs_no_pictures_in_memory(plain_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("pictures are not needed")

    monkeypatch.setattr("crossnorm_ns.data.dtu_dataset.load_image", refuse)
    assert len(extract_run_mesh(plain_run, 20).faces)


def change_weights(config_path: Path, change: Callable[[dict[str, torch.Tensor]], None], folder: Path) -> Path:
    """A copy of a run with other weights."""
    shutil.copytree(config_path.parent, folder)
    (path,) = folder.glob("nerfstudio_models/*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["pipeline"])
    torch.save(checkpoint, path)
    return folder / "config.yml"


@pytest.mark.parametrize(("shift", "where"), [(5.0, "lie outside"), (-5.0, "lie inside")])
def test_run_without_a_surface_is_refused(
    plain_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shift: float,
    where: str,
) -> None:
    def move(weights: dict[str, torch.Tensor]) -> None:
        weights["_model.field.sdf_network.layers.2.bias"][0] += shift

    moved = change_weights(plain_run, move, tmp_path / "moved")
    options = ["--resolution", 20, "--output", tmp_path / "mesh.ply"]
    error = refusal(monkeypatch, capsys, "--load-config", moved, *options)
    assert "no surface" in error and where in error and ".ckpt" in error
    assert not (tmp_path / "mesh.ply").exists()


def test_diverged_run_is_refused(plain_run: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["_model.field.sdf_network.layers.2.bias"][0] = torch.nan

    spoilt = change_weights(plain_run, spoil, tmp_path / "spoilt")
    with pytest.raises(EvaluationError, match="not finite"):
        extract_run_mesh(spoilt, 20)


def test_run_without_checkpoint_is_refused(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plain_run.parent, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "nerfstudio_models")
    arguments = ["--load-config", tmp_path / "copy" / "config.yml", "--output", tmp_path / "mesh.ply"]
    assert "No checkpoint" in refusal(monkeypatch, capsys, *arguments)


def test_run_of_a_radiance_field_is_refused(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: torch.nn.Identity()
    )
    config = TrainerConfig(
        method_name="vanilla-nerf",
        experiment_name="scene",
        timestamp="now",
        output_dir=tmp_path,
        data=tiny_scene,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(data=tiny_scene, dataparser=BlenderDataParserConfig()),
            model=VanillaModelConfig(_target=NeRFModel),
        ),
    )
    config.save_config()
    folder = config.get_checkpoint_dir()
    folder.mkdir(parents=True)
    pipeline = config.pipeline.setup(device="cpu", test_mode="inference")
    torch.save({"step": 0, "pipeline": pipeline.state_dict()}, folder / "step-000000000.ckpt")
    arguments = ["--load-config", config.get_base_dir() / "config.yml", "--output", tmp_path / "mesh.ply"]
    error = refusal(monkeypatch, capsys, *arguments)
    assert "vanilla-nerf" in error and "no signed distance" in error


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("mesh.stl", [], ".ply or .obj"),
        ("folder.ply", [], "must be a file"),
        ("file/mesh.ply", [], "must be a file"),
        ("mesh.ply", ["--resolution", "1"], "--resolution is 1"),
        ("mesh.ply", ["--block-size", "0"], "--block-size is 0"),
    ],
)
def test_unusable_options_are_refused_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    options: list[str],
    words: str,
) -> None:
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "file").write_text("")
    arguments = ["--load-config", tmp_path / "file", "--output", tmp_path / output, *options]
    assert words in refusal(monkeypatch, capsys, *arguments)


@pytest.mark.slow
def test_ns_export_marching_cubes_gives_the_same_surface(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nerfstudio's exporter as it is, but on a coarse grid (its own is 512^3) and without open3d, which it imports."""
    monkeypatch.setitem(sys.modules, "open3d", types.ModuleType("open3d"))
    from nerfstudio.scripts import exporter

    def coarse(geometry_callable_field: Callable[[torch.Tensor], torch.Tensor], **_: object) -> trimesh.Trimesh:
        axis = torch.linspace(-1, 1, 48)
        points = torch.cartesian_prod(axis, axis, axis)
        with torch.no_grad():
            values = geometry_callable_field(points)
        assert values.shape == (48**3,)
        vertices, faces, _, _ = marching_cubes(values.reshape(48, 48, 48).numpy(), 0.0)
        return trimesh.Trimesh(vertices * 2 / 47 - 1, faces)

    monkeypatch.setattr(exporter, "generate_mesh_with_multires_marching_cubes", coarse)
    monkeypatch.chdir(run.parents[3])
    exporter.ExportMarchingCubesMesh(
        load_config=run, output_dir=tmp_path, resolution=512, target_num_faces=200, num_pixels_per_side=16
    ).main()
    exported = trimesh.load(tmp_path / "mesh.obj", process=False)
    assert isinstance(exported, trimesh.Trimesh)
    distances = KDTree(extract_run_mesh(run, 96, "unit").vertices).query(exported.vertices)[0]
    assert distances.max() < 0.1
    texture = np.asarray(Image.open(tmp_path / "material_0.png"))
    assert texture.shape[:2] == (16, 16)
