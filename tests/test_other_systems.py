"""What other systems write, in their own folders and names: renders for eval.blender, meshes for eval.dtu_chamfer.

Names were read in the systems' sources: nerf-pytorch run_nerf.py, DVGO run.py, svox2 (Plenoxels) opt/render_imgs.py,
instant-ngp scripts/run.py, nerfstudio scripts/render.py, IDR and VolSDF evaluation/eval.py, NeuS and HF-NeuS
exp_runner.py.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from eval_files import SIZE, picture, write_renders, write_scene
from PIL import Image
from test_dtu_chamfer import CENTRE, SCALE, square, write_reference
from test_dtu_chamfer import write_scene as write_scan

from crossnorm_ns.data.dtu_scene import read_scale_mat
from crossnorm_ns.data.errors import DataError
from eval import dtu_chamfer
from eval.dtu_files import DTU_SCANS, find_scans
from eval.errors import EvaluationError
from eval.renders import match_renders
from eval.scoring import evaluate
from eval.views import views_of_renders

FRAMES = [f"r_{index}" for index in range(12)]
"""So many that the order of names (r_0, r_1, r_10, r_11, r_2) is not that of frames."""
EXPECTED_PSNR = -20 * math.log10(26 / 255)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene", FRAMES)


def ns_render(folder: Path) -> Path:
    """ns-render dataset of a method with two levels, as vanilla-nerf, with its default outputs."""
    for name in ("gt-rgb", "rgb_coarse", "accumulation_fine", "depth_fine"):
        write_renders(folder / "test" / name, "r_{}.png", 12, offset=0)
    write_renders(folder / "test" / "rgb_fine", "r_{}.png", 12)
    return folder


def nerf_pytorch(folder: Path) -> Path:
    renders = write_renders(folder / "testset_200000", "{:03d}.png", 12)
    (renders / "video.mp4").write_bytes(b"video")
    return renders


def plenoxels(folder: Path) -> Path:
    """The true image to the left of each render."""
    renders = folder / "test_renders"
    renders.mkdir(parents=True)
    for index in range(12):
        truth = picture(index)[..., :3]
        Image.fromarray(np.hstack([truth, truth + np.uint8(26)])).save(renders / f"{index:04d}.png")
    (renders / "psnr.txt").write_text("31.7")
    return renders


SYSTEMS = {
    "nerf-pytorch": nerf_pytorch,
    "DVGO": lambda folder: write_renders(folder / "render_test_fine_last", "{:03d}.png", 12),
    "Plenoxels": plenoxels,
    "instant-ngp": lambda folder: write_renders(folder / "screenshots", "r_{}.png", 12),
    "ns-render dataset": ns_render,
    "ns-render dataset, its folder test": lambda folder: ns_render(folder) / "test",
    "ns-render camera-path": lambda folder: write_renders(folder, "{:05d}.png", 12),
    "rgb_000.png": lambda folder: write_renders(folder, "rgb_{:03d}.png", 12),
    "color_000.png": lambda folder: write_renders(folder, "color_{:03d}.png", 12),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_renders_of_each_system_are_matched_to_their_frames(tmp_path: Path, scene: Path, system: str) -> None:
    evaluation = evaluate(views_of_renders(SYSTEMS[system](tmp_path / "renders"), scene))
    assert [image.name for image in evaluation.images] == FRAMES
    for image in evaluation.images:
        assert image.psnr == pytest.approx(EXPECTED_PSNR, abs=1e-4)


def test_jpegs_of_ns_render_are_read(tmp_path: Path, scene: Path) -> None:
    """Its default format, at quality 100."""
    folder = tmp_path / "renders" / "test" / "rgb"
    folder.mkdir(parents=True)
    for index in range(12):
        flat = np.full((SIZE, SIZE, 3), 20 * index, dtype=np.uint8)
        Image.fromarray(flat).save(folder / f"r_{index}.jpg", quality=100)
    shown = [view.render.mean() for view in views_of_renders(tmp_path / "renders", scene).frames]
    np.testing.assert_allclose(shown, np.arange(12) * 20 / 255, atol=1.5 / 255)


def test_result_names_the_folder_in_which_the_pictures_were_found(tmp_path: Path, scene: Path) -> None:
    views = views_of_renders(ns_render(tmp_path / "renders"), scene)
    assert views.subject.source["renders"] == str(tmp_path / "renders" / "test" / "rgb_fine")


def test_picture_twice_as_wide_without_the_truth_is_refused(tmp_path: Path, scene: Path) -> None:
    renders = plenoxels(tmp_path / "renders")
    wrong = np.array(Image.open(renders / "0003.png"))
    Image.fromarray(np.roll(wrong, SIZE, axis=1)).save(renders / "0003.png")
    with pytest.raises(EvaluationError, match="0003.png is twice as wide.*left half is not the true one"):
        evaluate(views_of_renders(renders, scene))


def rename(renders: Path, pattern: str, shift: int = 0) -> None:
    files = {int(file.stem): file.rename(file.with_suffix(".moved")) for file in renders.iterdir()}
    for number, file in files.items():
        file.rename(renders / pattern.format(number + shift))


def count_from_one(renders: Path) -> None:
    rename(renders, "{:03d}.png", 1)


def two_files_for_one_number(renders: Path) -> None:
    Image.fromarray(picture(0)).save(renders / "3.png")


def depth_beside(renders: Path) -> None:
    Image.fromarray(picture(0)).save(renders / "003_depth.png")


def depth_of_blender_beside(renders: Path) -> None:
    """Number 1 stands last in r_3_depth_0001.png, as in the official test folders."""
    rename(renders, "r_{}.png")
    Image.fromarray(picture(0)).save(renders / "r_3_depth_0001.png")


def depth_alone(renders: Path) -> None:
    rename(renders, "depth_{:03d}.png")


def kinds_mixed(renders: Path) -> None:
    (renders / "004.png").rename(renders / "step_004.png")


def one_missing(renders: Path) -> None:
    (renders / "004.png").unlink()


def one_extra(renders: Path) -> None:
    Image.fromarray(picture(0)).save(renders / "040.png")


def every_fourth_counted_from_zero(renders: Path) -> None:
    for number in range(3, 12):
        (renders / f"{number:03d}.png").unlink()


DOUBTS = {
    count_from_one: ["012.png", "0 to 11", "counted from 1"],
    two_files_for_one_number: ["003.png, 3.png", "number of frame r_3"],
    depth_beside: ["003_depth.png", "depth, normals"],
    depth_of_blender_beside: ["r_3_depth_0001.png", "depth, normals"],
    depth_alone: ["depth_000.png", "depth, normals"],
    kinds_mixed: ["names of different kinds", "step_004.png"],
    one_missing: ["no render for 1 of 12 frames (r_4)"],
    one_extra: ["040.png", "0 to 11"],
    every_fourth_counted_from_zero: ["no render for 9 of 12", "every 4th frame", "--testskip 1"],
}


@pytest.mark.parametrize("doubt", DOUBTS, ids=lambda doubt: doubt.__name__)
def test_renders_are_refused_where_a_doubt_is_left(tmp_path: Path, scene: Path, doubt) -> None:
    renders = write_renders(tmp_path / "renders", "{:03d}.png", 12)
    doubt(renders)
    with pytest.raises(EvaluationError) as caught:
        views_of_renders(renders, scene)
    missing = [word for word in DOUBTS[doubt] if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


@pytest.mark.parametrize("name", ["gt-rgb", "depth_fine", "accumulation_fine", "rgb_coarse"])
def test_folders_of_ns_render_without_final_colours_are_refused(tmp_path: Path, scene: Path, name: str) -> None:
    folder = ns_render(tmp_path / "renders") / "test" / name
    with pytest.raises(EvaluationError, match="no rendered colours of test frames by its name"):
        views_of_renders(folder, scene)


@pytest.mark.parametrize(
    "name", ["gt", "GT", "gt_rgb", "depths", "normal", "normals", "disp", "acc", "masks", "renderonly_path_199999"]
)
def test_folders_of_true_images_depth_and_other_paths_are_refused(tmp_path: Path, scene: Path, name: str) -> None:
    folder = write_renders(tmp_path / name, "{:03d}.png", 12)
    with pytest.raises(EvaluationError, match="no rendered colours of test frames by its name"):
        views_of_renders(folder, scene)


@pytest.mark.parametrize("name", ["renderonly_test_199999", "ngp_normal2", "rgb", "accurate", "gta"])
def test_folders_of_colours_are_not_refused_for_their_names(tmp_path: Path, scene: Path, name: str) -> None:
    folder = write_renders(tmp_path / name, "{:03d}.png", 12)
    assert evaluate(views_of_renders(folder, scene)).psnr == pytest.approx(EXPECTED_PSNR)


@pytest.mark.parametrize("offset", [0, 1])
def test_true_images_are_not_scored_as_renders(tmp_path: Path, scene: Path, offset: int) -> None:
    """A copy of 8 bits, as far off as rounding can make it."""
    folder = write_renders(tmp_path / "renders", "{:03d}.png", 12, offset)
    with pytest.raises(EvaluationError, match="Every render equals its true image"):
        evaluate(views_of_renders(folder, scene))


def test_one_render_that_equals_the_truth_is_scored(tmp_path: Path, scene: Path) -> None:
    folder = write_renders(tmp_path / "renders", "{:03d}.png", 12)
    write_renders(folder, "{:03d}.png", 1, offset=0)
    assert evaluate(views_of_renders(folder, scene)).images[0].psnr == math.inf


def test_two_folders_of_colours_are_refused(tmp_path: Path, scene: Path) -> None:
    write_renders(ns_render(tmp_path / "renders") / "test" / "rgba", count=12)
    with pytest.raises(EvaluationError, match="test/rgba and test/rgb_fine: give one"):
        views_of_renders(tmp_path / "renders", scene)


def test_frames_out_of_order_need_their_names(tmp_path: Path) -> None:
    """000.png may be frame r_0, or the first in the json, r_2."""
    names = ["r_2", "r_0", "r_1"]
    by_number = write_renders(tmp_path / "numbers", "{:03d}.png", 3)
    with pytest.raises(EvaluationError, match="not in the order of their numbers.*r_2.png"):
        match_renders(by_number, names)
    by_name = write_renders(tmp_path / "names", "r_{}.png", 3)
    assert [file.stem for file in match_renders(by_name, names)] == names


# --- meshes


UNIT_SQUARE = trimesh.Trimesh((square(0.5).vertices - CENTRE) / SCALE, square().faces, process=False)
"""The surface 0.5 mm from the reference in unit-sphere coordinates."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with DTU's files of scan 24 in `dtu`, its scene in `scene`."""
    write_reference(tmp_path / "dtu")
    write_scan(tmp_path / "scene")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chamfer(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict:
    words = ["--dataset-dir", "dtu", "--output", "out.json", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", ["eval.dtu_chamfer", *words])
    dtu_chamfer.run()
    return json.loads(Path("out.json").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "evals/dtu_fixed_cameras_24/surface_world_coordinates_2000.ply",  # IDR
        "evals/dtu_24/2000/scan24.ply",  # VolSDF
        "exp/dtu_scan24/wmask/meshes/00300000.ply",  # NeuS, HF-NeuS
        "converted/scan24.obj",
    ],
)
def test_mesh_of_each_system_has_the_distance_of_its_surface(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
) -> None:
    path = folder / "meshes" / name
    path.parent.mkdir(parents=True)
    square(0.5).export(path)
    result = chamfer(monkeypatch, "--mesh", path, "--scan", 24)
    assert 0.5 < result["overall"] < np.hypot(0.5, 0.18)
    assert chamfer(monkeypatch, "--all", "meshes")["scans"][0]["overall"] == result["overall"]


@pytest.mark.parametrize("kind", ["mesh.ply", "mesh.obj", "cloud.ply"])
def test_surface_in_the_unit_sphere_is_taken_to_the_world(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str
) -> None:
    square(0.5).export(kind)
    mode = ["--mode", "pointcloud"] if kind == "cloud.ply" else []
    world = chamfer(monkeypatch, "--mesh", kind, "--scan", 24, *mode)
    UNIT_SQUARE.export(kind)
    unit = chamfer(monkeypatch, "--mesh", kind, "--scan", 24, *mode, "--space", "unit", "--data", "scene")
    assert unit["overall"] == pytest.approx(world["overall"], rel=1e-3)
    source = {"surface": str(folder / kind), "method": None, "image_size": None, "scale_mat": str(folder / "scene")}
    assert unit["source"] == source


def test_camera_file_of_another_name_gives_the_scale(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """IDR and VolSDF normalise by cameras.npz."""
    UNIT_SQUARE.export("mesh.ply")
    (folder / "scene" / "cameras_sphere.npz").rename(folder / "cameras.npz")
    result = chamfer(monkeypatch, "--mesh", "mesh.ply", "--scan", 24, "--space", "unit", "--data", "cameras.npz")
    assert 0.5 < result["overall"] < np.hypot(0.5, 0.18)


def test_each_scan_has_its_own_scale(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    write_reference(folder / "dtu", 37)
    (folder / "meshes").mkdir()
    for scan, scale in ((24, 1.0), (37, 2.0)):
        write_scan(folder / "scenes" / f"dtu_scan{scan}")
        path = folder / "scenes" / f"dtu_scan{scan}" / "cameras_sphere.npz"
        with np.load(path) as arrays:
            contents = dict(arrays)
        contents["scale_mat_0"][:3, :3] *= scale
        np.savez(path, **contents)
        half = UNIT_SQUARE.vertices / scale
        trimesh.Trimesh(half, UNIT_SQUARE.faces, process=False).export(folder / "meshes" / f"scan{scan}.ply")
    result = chamfer(monkeypatch, "--all", "meshes", "--space", "unit", "--data", "scenes")
    assert result["scans"][1]["overall"] == pytest.approx(result["scans"][0]["overall"], rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mesh", "mesh.ply", "--scan", 24, "--space", "unit"], ["--data SCENE"]),
        (["--mesh", "world.ply", "--scan", 24, "--space", "unit", "--data", "scene"], ["leave out --space unit"]),
        (["--mesh", "mesh.ply", "--scan", 24, "--space", "unit", "--data", "nowhere.npz"], ["nowhere.npz"]),
        (["--mesh", "mesh.ply", "--scan", 24], ["--space unit --data SCENE"]),
        (["--load-config", "mesh.ply", "--scan", 24, "--space", "unit", "--data", "scene"], ["surfaces in files"]),
    ],
)
def test_spaces_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, arguments, words
) -> None:
    UNIT_SQUARE.export("mesh.ply")
    square(0.5).export("world.ply")
    with pytest.raises(SystemExit) as exit_:
        chamfer(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert all(word in error for word in words), error


def test_camera_file_without_a_scale_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "cameras.npz", world_mat_0=np.eye(4))
    with pytest.raises(DataError, match="no scale_mat_0"):
        read_scale_mat(tmp_path / "cameras.npz")


def test_of_meshes_named_by_their_step_the_last_counts(tmp_path: Path) -> None:
    meshes = tmp_path / "exp" / "dtu_scan24" / "wmask" / "meshes"
    meshes.mkdir(parents=True)
    for name in ("00005000.ply", "00300000.ply", "00010000.ply"):
        (meshes / name).write_text("")
    assert find_scans(tmp_path, DTU_SCANS) == {24: meshes / "00300000.ply"}
    other = tmp_path / "exp" / "dtu_scan24" / "womask" / "meshes" / "00300000.ply"
    other.parent.mkdir(parents=True)
    other.write_text("")
    with pytest.raises(EvaluationError, match="two surfaces for scan 24"):
        find_scans(tmp_path, DTU_SCANS)
