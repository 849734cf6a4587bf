"""python -m eval.dtu_chamfer: known distances, files on disk, refusals in one line, the paper's table."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from chamfer_files import CENTRE, SCALE, square, write_reference, write_scene
from PIL import Image
from provenance_files import assert_provenance
from scipy.io import savemat

from eval import dtu_chamfer, extract_mesh
from eval.chamfer import Measured
from eval.chamfer_pictures import error_colors
from eval.dtu_files import DTU_SCANS, find_scans, load_mesh
from eval.errors import EvaluationError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with `dtu` (scans 24 and 37), `mesh.ply` 0.5 mm from the reference, and `scene`."""
    for scan in (24, 37):
        write_reference(tmp_path / "dtu", scan)
    square(0.5).export(tmp_path / "mesh.ply")
    write_scene(tmp_path / "scene")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["eval.dtu_chamfer", *map(str, arguments)])
    dtu_chamfer.run()


def evaluate(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict:
    """Runs the command line and returns its JSON."""
    command(monkeypatch, "--dataset-dir", "dtu", "--output", "results/out.json", *arguments)
    return json.loads(Path("results/out.json").read_text())


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command line, which must exit with code 2 and one line of error."""
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, "--dataset-dir", "dtu", *arguments)
    assert exit_.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    return errors[0]


def test_json_holds_distances_counts_and_how_they_came_about(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Parallel squares 0.5 mm apart: sample points lie within half a diagonal of the reference's grid."""
    result = evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24, "--seed", 3)
    assert 0.5 < result["accuracy"] < np.hypot(0.5, 0.18)
    assert 0.5 < result["completeness"] < np.hypot(0.5, 0.18)
    assert result["overall"] == pytest.approx((result["accuracy"] + result["completeness"]) / 2)
    assert result["overall_median"] == pytest.approx((result["accuracy_median"] + result["completeness_median"]) / 2)
    assert 0.5 <= result["completeness_median"] < np.hypot(0.5, 0.18)
    assert (result["scan"], result["cull"], result["seed"], result["mode"]) == (24, "none", 3, "mesh")
    counts = result["num_points"]
    assert counts["reference"] == counts["reference_above_plane"] == 49 * 49
    assert 1000 < counts["thinned"] == counts["inbound"] == counts["observed"] <= counts["sampled"]
    assert result["source"] == {"surface": str(folder / "mesh.ply"), "method": None, "image_size": None}
    assert result["dataset_dir"] == str(folder / "dtu")
    assert {"crossnorm_ns", "numpy", "scipy", "trimesh", "python"} <= result["versions"].keys()
    assert_provenance(result)
    assert "45b4fec" in result["protocol"] and result["culling"] is None


def test_same_seed_repeats_the_result_and_another_seed_hardly_changes_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    first = evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24)
    assert evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24)["overall"] == first["overall"]
    other = evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24, "--seed", 1)["overall"]
    assert other != first["overall"] and other == pytest.approx(first["overall"], rel=0.01)


def test_table_shows_means_medians_and_cleaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    result = evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24)
    shown = capsys.readouterr().out
    for text in ("scan 24", "cull none", f"{result['overall']:.4f}", f"{result['accuracy_median']:.4f}", "seed 0"):
        assert text in shown


def test_obj_is_read_as_ply_is(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    square(0.5).export(folder / "mesh.obj")
    ply, obj = (evaluate(monkeypatch, "--mesh", f"mesh.{suffix}", "--scan", 24) for suffix in ("ply", "obj"))
    assert obj["overall"] == pytest.approx(ply["overall"], rel=1e-6)


def test_vertices_are_neither_merged_nor_moved_by_reading(tmp_path: Path) -> None:
    whole = square()
    pieces = trimesh.Trimesh(whole.triangles.reshape(-1, 3), np.arange(6).reshape(2, 3), process=False)
    pieces.export(tmp_path / "pieces.ply")
    np.testing.assert_allclose(load_mesh(tmp_path / "pieces.ply").vertices, pieces.vertices, atol=1e-4)


def test_point_clouds_are_compared_as_they_are(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    trimesh.PointCloud(CENTRE + [[0.0, 0, 2], [3, 3, 2]]).export("cloud.ply")
    result = evaluate(monkeypatch, "--mesh", "cloud.ply", "--scan", 24, "--mode", "pointcloud")
    assert result["num_points"]["sampled"] == 2 and result["mode"] == "pointcloud"
    assert result["accuracy"] == pytest.approx(2, rel=1e-5)
    of_vertices = evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24, "--mode", "pointcloud")
    assert of_vertices["num_points"]["sampled"] == 4


@pytest.mark.parametrize("cull", ["neus-womask", "2dgs"])
def test_cleaning_removes_what_the_masks_do_not_show(monkeypatch: pytest.MonkeyPatch, folder: Path, cull: str) -> None:
    """Half of the squares lies right of the masks; the half that stays is nearer."""
    mesh = trimesh.util.concatenate(
        [square(1.0, half=2).apply_translation([side, 0, 3 * (side > 0)]) for side in (-3, 3)]
    )
    mesh.export("both.ply")
    plain = evaluate(monkeypatch, "--mesh", "both.ply", "--scan", 24)
    cleaned = evaluate(monkeypatch, "--mesh", "both.ply", "--scan", 24, "--cull", cull, "--data", "scene")
    assert plain["accuracy"] > 2
    assert 1 < cleaned["accuracy"] < 1.1
    assert cleaned["cull"] == cull and cleaned["culling"]["width"] == 64
    assert cleaned["culling"]["kernel_size"] == {"neus-womask": 5, "2dgs": 3}[cull]


def test_run_is_evaluated_by_its_surface_in_world_space(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    calls = []

    def extract(config_path: Path, resolution: int, space: str, **options) -> trimesh.Trimesh:
        calls.append((config_path, resolution, space, options["data"]))
        options["progress"](1, 2)
        return square(0.5)

    monkeypatch.setattr(extract_mesh, "extract_run_mesh", extract)
    Path("config.yml").write_text("")
    result = evaluate(monkeypatch, "--load-config", "config.yml", "--scan", 24, "--resolution", 64)
    assert calls == [(Path("config.yml"), 64, "world", None)]
    assert result["source"] == {"config": str(folder / "config.yml"), "resolution": 64}
    assert result["overall"] == evaluate(monkeypatch, "--mesh", "mesh.ply", "--scan", 24)["overall"]


def test_clouds_and_picture_show_where_the_errors_are(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    trimesh.PointCloud(CENTRE + [[0.0, 0, 0], [2, 2, 5], [0, 0, 70]]).export("cloud.ply")
    evaluate(monkeypatch, "--mesh", "cloud.ply", "--scan", 24, "--mode", "pointcloud", "--visualize", "seen")
    cloud = trimesh.load("seen/vis_024_d2s.ply")
    clouds = cloud.vertices, cloud.colors
    colors = {round(point[2] - CENTRE[2]): color[:3].tolist() for point, color in zip(*clouds, strict=True)}
    assert colors == {0: [255, 255, 255], 5: [255, 128, 128], 70: [0, 0, 255]}
    back = trimesh.load("seen/vis_024_s2d.ply")
    assert len(back.vertices) == 49 * 49 and (np.asarray(back.colors)[:, 0] == 255).all()
    assert Image.open("seen/vis_024.png").size[0] > 1000


def test_colors_are_those_of_the_reference_tool() -> None:
    """White to red at 10 mm, red up to 20, green from there on, blue where nothing is measured."""
    distances = np.array([0, 2.5, 10, 19.9, np.inf, np.nan])
    expected = [[255] * 3, [255, 191, 191], [255, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert error_colors(Measured(np.zeros((6, 3)), distances)).tolist() == expected


def test_all_scans_found_are_shown_beside_the_papers_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    for name, height in (("dtu_scan24/mesh.ply", 0.5), ("scan037.ply", 1.0), ("scan1.ply", 1.0)):
        (folder / "meshes" / name).parent.mkdir(parents=True, exist_ok=True)
        square(height).export(folder / "meshes" / name)
    (folder / "meshes" / "notes.txt").write_text("scan 40")
    monkeypatch.setenv("COLUMNS", "120")
    result = evaluate(monkeypatch, "--all", "meshes")
    assert [scan["scan"] for scan in result["scans"]] == [24, 37]
    assert result["missing_scans"] == list(DTU_SCANS[2:]) and result["num_scans"] == 2
    mean = sum(scan["overall"] for scan in result["scans"]) / 2
    assert result["overall"] == pytest.approx(mean)
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert lines["24"].split()[-2] == f"{result['scans'][0]['overall']:.2f}"
    assert "0.86" in lines["37"], "NeuS+CN in the paper"
    assert lines["mean of 2"].split()[-2] == f"{mean:.2f}"
    assert "0.89" in lines["mean of 2"], "(0.91 + 0.86) / 2, rounded"
    assert "0.75" in lines["mean of 15"]


def test_clouds_written_beside_a_surface_are_not_taken_for_surfaces(tmp_path: Path) -> None:
    (tmp_path / "scan24").mkdir()
    for name in ("mesh.ply", "vis_024_d2s.ply", "vis_024_s2d.ply"):
        (tmp_path / "scan24" / name).write_text("")
    assert find_scans(tmp_path, DTU_SCANS) == {24: tmp_path / "scan24" / "mesh.ply"}


def test_runs_are_taken_where_there_are_no_meshes(tmp_path: Path) -> None:
    config = tmp_path / "outputs" / "dtu_scan24" / "neus-cn" / "2030-01-01" / "config.yml"
    config.parent.mkdir(parents=True)
    config.write_text("")
    assert find_scans(tmp_path, DTU_SCANS) == {24: config}
    (tmp_path / "scan37.ply").write_text("")
    assert find_scans(tmp_path, DTU_SCANS) == {37: tmp_path / "scan37.ply"}


@pytest.mark.parametrize("name", ["scan24.ply", "DTU_scan_024.obj", "scan24/x/mesh.ply", "scan37_and_more/scan24.ply"])
def test_scans_are_found_by_names_of_files_and_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    assert find_scans(tmp_path, DTU_SCANS) == {24: tmp_path / name}


def test_two_surfaces_of_a_scan_are_refused(tmp_path: Path) -> None:
    for name in ("scan24.ply", "scan24_clean.ply"):
        (tmp_path / name).write_text("")
    with pytest.raises(EvaluationError, match="two surfaces for scan 24"):
        find_scans(tmp_path, DTU_SCANS)


def break_empty(folder: Path) -> None:
    (folder / "mesh.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )


def break_points_alone(folder: Path) -> None:
    trimesh.PointCloud(square().vertices).export(folder / "mesh.ply")


def break_nan(folder: Path) -> None:
    mesh = square()
    vertices = mesh.vertices.copy()
    vertices[2, 1] = np.nan
    trimesh.Trimesh(vertices, mesh.faces, process=False).export(folder / "mesh.ply")


def break_unit_space(folder: Path) -> None:
    mesh = square()
    trimesh.Trimesh((mesh.vertices - CENTRE) / SCALE, mesh.faces, process=False).export(folder / "mesh.ply")


def break_elsewhere(folder: Path) -> None:
    square().apply_translation([500, 0, 0]).export(folder / "mesh.ply")


def break_truncated(folder: Path) -> None:
    (folder / "mesh.ply").write_bytes((folder / "mesh.ply").read_bytes()[:-20])


def break_text(folder: Path) -> None:
    (folder / "mesh.ply").write_text("mesh")


def break_missing(folder: Path) -> None:
    (folder / "mesh.ply").unlink()


def break_no_plane(folder: Path) -> None:
    (folder / "dtu/ObsMask/Plane24.mat").unlink()


def break_mat_keys(folder: Path) -> None:
    savemat(folder / "dtu/ObsMask/ObsMask24_10.mat", {"ObsMask": np.ones((4, 4, 4)), "Res": 1.0})


def break_mat_text(folder: Path) -> None:
    (folder / "dtu/ObsMask/Plane24.mat").write_text("P")


def break_plane_shape(folder: Path) -> None:
    savemat(folder / "dtu/ObsMask/Plane24.mat", {"P": np.ones(3)})


def break_box(folder: Path) -> None:
    contents = {"ObsMask": np.ones((4, 4, 4)), "BB": np.ones((2, 3)), "Res": 1.0}
    savemat(folder / "dtu/ObsMask/ObsMask24_10.mat", contents)


def break_reference_points(folder: Path) -> None:
    (folder / "dtu/Points/stl/stl024_total.ply").write_text("ply")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_empty, ["mesh.ply", "no triangles", "empty"]),
        (break_points_alone, ["mesh.ply", "no triangles", "--mode pointcloud"]),
        (break_nan, ["mesh.ply", "1 of 4 vertices", "number 2"]),
        (break_unit_space, ["mesh.ply", "did you forget the world transform", "scale_mat_0"]),
        (break_elsewhere, ["mesh.ply", "bounding box", "another scan"]),
        (break_truncated, ["mesh.ply", "cannot be read"]),
        (break_text, ["mesh.ply", "cannot be read"]),
        (break_missing, ["--mesh is mesh.ply", "must be a file"]),
        (break_no_plane, ["dtu lacks", "Plane24.mat", "scan 24"]),
        (break_mat_keys, ["ObsMask24_10.mat lacks BB", "holds ObsMask, Res"]),
        (break_mat_text, ["Plane24.mat", "cannot be read"]),
        (break_plane_shape, ["Plane24.mat", "P of shape (1, 3)", "4 numbers"]),
        (break_box, ["ObsMask24_10.mat", "BB"]),
        (break_reference_points, ["stl024_total.ply", "cannot be read"]),
    ],
)
def test_unusable_files_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, damage, words
) -> None:
    damage(folder)
    error = refusal(monkeypatch, capsys, "--mesh", "mesh.ply", "--scan", 24, "--output", "out.json")
    missing = [word for word in words if word not in error]
    assert not missing, f"{missing} not in: {error}"
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--mesh", "--load-config", "--all"]),
        (["--mesh", "mesh.ply", "--all", "."], ["one of"]),
        (["--mesh", "mesh.ply"], ["--scan", "122"]),
        (["--mesh", "mesh.ply", "--scan", 25], ["stl025_total.ply", "it has scans 24, 37"]),
        (["--all", ".", "--scan", 24], ["--scan"]),
        (["--all", "nowhere"], ["nowhere"]),
        (["--all", "scene"], ["scan24.ply"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--cull", "2dgs"], ["--data"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--cull", "2dgs", "--data", "nowhere"], ["nowhere"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--data", "scene"], ["--data goes with"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--mode", "pointcloud", "--cull", "2dgs", "--data", "scene"], ["--cull"]),
        (["--load-config", "mesh.ply", "--scan", 24, "--mode", "pointcloud"], ["--load-config"]),
        (["--load-config", "mesh.ply", "--scan", 24, "--method", "IDR"], ["--method"]),
        (["--load-config", "nowhere/config.yml", "--scan", 24], ["nowhere"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--seed", -1], ["--seed"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--resolution", 1], ["--resolution"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--output", "scene"], ["--output is scene"]),
        (["--mesh", "scene/image/000000.png", "--scan", 24], ["none of .ply, .obj"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, arguments, words
) -> None:
    error = refusal(monkeypatch, capsys, *arguments)
    assert all(word in error for word in words), error


def test_folder_that_is_no_dataset_is_answered_with_the_layout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    error = refusal(monkeypatch, capsys, "--mesh", "mesh.ply", "--scan", 24, "--dataset-dir", "scene")
    assert "Points/stl/stl024_total.ply, ObsMask/ObsMask24_10.mat" in error


def test_help_imports_nothing_slow() -> None:
    code = "import sys, eval.dtu_chamfer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "scipy", "trimesh", "cv2", "matplotlib", "nerfstudio"} & set(done.stdout.split())
