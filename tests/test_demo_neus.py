"""The surface demo as a user runs it, made small, and its pictures of meshes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from crossnorm_ns.data import make_scene
from examples.mesh_pictures import draw_mesh

ROOT = Path(__file__).parents[1]
RED, BLUE = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])


def picture_of(mesh: trimesh.Trimesh, colors: np.ndarray, toward: list[float]) -> np.ndarray:
    """RGB of a mesh seen with z up, filling the picture."""
    figure = Figure(figsize=(2, 2), dpi=50)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_mesh(axes, mesh, colors, np.array(toward), np.array([0.0, 0.0, 1.0]))
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255


def shares(picture: np.ndarray) -> tuple[float, float]:
    """How much of a picture is (shaded) red, and how much blue."""
    return tuple(float(((picture[..., i] > 0.2) & (picture[..., 2 - i] < 0.1)).mean()) for i in (0, 2))


def test_mesh_is_drawn_upright() -> None:
    """A ball that is red above and blue below, from the side and from above."""
    ball = trimesh.creation.icosphere(subdivisions=4)
    colors = np.where(ball.triangles_center[:, 2:] > 0, RED, BLUE)
    side = picture_of(ball, colors, [1.0, 2.0, 0.0])
    assert shares(side[:45])[0] > 0.6 and shares(side[:45])[1] == 0
    assert shares(side[55:])[1] > 0.6 and shares(side[55:])[0] == 0
    assert shares(picture_of(ball, colors, [0.1, 0.0, 1.0]))[0] > 0.65
    assert shares(picture_of(ball, colors, [0.1, 0.0, -1.0]))[1] > 0.65


@pytest.mark.parametrize(("toward", "seen"), [([1.0, 0.0, 0.0], (1, 0)), ([-1.0, 0.0, 0.0], (0, 1))])
def test_near_faces_hide_far_ones(toward: list[float], seen: tuple[int, int]) -> None:
    """A red ball before a blue one, and the other way round."""
    balls = [trimesh.creation.icosphere(subdivisions=3).apply_translation([x, 0, 0]) for x in (2, -2)]
    colors = np.repeat([RED, BLUE], [len(ball.faces) for ball in balls], axis=0)
    found = shares(picture_of(trimesh.util.concatenate(balls), colors, toward)[35:65, 35:65])
    assert found == seen


@pytest.mark.slow
def test_demo_trains_both_methods_and_writes_its_report(tmp_path: Path) -> None:
    """With few reference points: surfaces far from the truth take long to compare with many."""
    scan = tmp_path / "scan-16-10"
    make_scene.dtu(scan, resolution=16, views=10)
    reference = scan / "Points" / "stl" / "stl000_total.ply"
    trimesh.PointCloud(trimesh.load(reference).vertices[::100]).export(reference)
    command = [sys.executable, "-m", "examples.demo_neus", "--output", str(tmp_path), "--steps", "3"]
    small = ["--resolution", "16", "--views", "10", "--mesh-resolution", "32"]
    done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report.html").read_text()
    assert report.count("<tr>") == 3 and "data:image/png;base64," in report
    with Image.open(tmp_path / "report.png") as picture:
        assert min(picture.size) > 500
    for method in ("neus-ref", "neus-cn"):
        assert method in done.stdout and method in report
        (config,) = tmp_path.glob(f"*/{method}/{method}/config.yml")
        assert str(config) in done.stdout.replace("\n", "")
        assert list(config.parent.glob("nerfstudio_models/*.ckpt"))
