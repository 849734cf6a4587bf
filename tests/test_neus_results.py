"""The benchmark that trains NeuS with and without norms: what it chooses and writes, with invented scores."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from dtu_scans import write_scan
from PIL import Image

from benchmarks import neus_results
from benchmarks.neus_pictures import draw_surfaces
from benchmarks.neus_results import ABLATION, ablate, best_rate, compare
from benchmarks.neus_scores import train_and_score
from benchmarks.neus_training import Training
from crossnorm_ns.data import make_scene
from eval.run_config import read_config

CHAMFER = {("none", None, 5e-3): 2.0, ("cn", None, 1e-2): 1.5, ("cn", "none", 1e-3): 1.0}
"""Of (norm, that of the colour's network, learning rate): each side's best; any other gives 3."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """What is asked to be trained; a step of CN takes 1.25 times a plain one."""
    asked: list[Training] = []

    def invent(trainings: list[Training], *_: object) -> list[dict[str, Any]]:
        asked.extend(trainings)
        chamfer = [CHAMFER.get((t.norm, t.color_norm, t.learning_rate), 3.0) for t in trainings]
        return [
            {
                "run": asdict(training),
                "config": "somewhere/config.yml",
                "seconds": training.steps * (1.25 if training.norm == "cn" else 1.0),
                "psnr": 20 - distance + training.seed,
                "mask_iou": 0.9,
                "machine": "m",
                "chamfer": distance,
                "accuracy": 1.0,
                "completeness": 2.0,
            }
            for training, distance in zip(trainings, chamfer, strict=True)
        ]

    monkeypatch.setattr(neus_results, "train_all", invent)
    return asked


def test_seeds_run_at_each_sides_best_rate_at_equal_steps_and_equal_seconds(
    trained: list[Training], tmp_path: Path
) -> None:
    compare(tmp_path / "scan", name="example", steps=100, grid_steps=40, docs=tmp_path)
    sides = (("none", None), ("cn", None), ("cn", "none"))
    grid = [(t.norm, t.color_norm, t.learning_rate) for t in trained if t.steps == 40]
    assert sorted(grid, key=str) == sorted(((*side, r) for side in sides for r in neus_results.LEARNING_RATES), key=str)
    full = {(t.norm, t.color_norm, t.learning_rate, t.seed) for t in trained if t.steps == 100}
    assert full == {(*run, seed) for run in CHAMFER for seed in range(3)}
    equal_seconds = {(t.norm, t.color_norm, t.learning_rate, t.seed) for t in trained if t.steps == 80}
    assert equal_seconds == {(*run, seed) for run in CHAMFER if run[0] == "cn" for seed in range(3)}
    assert len({t.name for t in trained}) == len(trained), "each has its own folder"


def test_tables_hold_means_and_spreads_and_no_paths(
    trained: list[Training], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    compare(tmp_path / "scan", name="example", steps=100, grid_steps=40, docs=tmp_path)
    text = (tmp_path / "results" / "neus-example.md").read_text()
    assert capsys.readouterr().out == text
    assert "| 0.005 | 2.000 | 3.000 | 3.000 | 18.000 | 17.000 | 17.000 | 0.900 | 0.900 | 0.900 |" in text
    assert (
        "| cn, equal seconds | 0.01 | 80 | 1.50 ± 0.00 | 1.00 ± 0.00 | 2.00 ± 0.00 | 19.50 ± 1.00 | 0.900 ± 0.000 | "
        "100 ± 0 |" in text
    )
    stored = (tmp_path / "results" / "neus-example.json").read_text()
    assert len(json.loads(stored)) == 12 + 9 + 6
    assert "scan" not in stored and "config.yml" not in stored


def test_best_rate_is_the_one_of_the_best_surface_and_without_a_reference_of_the_best_pictures() -> None:
    results = [
        {"run": {"learning_rate": rate}, "psnr": psnr, "chamfer": chamfer}
        for rate, psnr, chamfer in ((1e-3, 20.0, 2.0), (2e-3, 21.0, 2.5), (5e-3, 19.0, 1.5))
    ]
    assert best_rate(results) == 5e-3
    without = [{key: r[key] for key in ("run", "psnr")} for r in results]
    assert best_rate(without) == 2e-3
    assert best_rate([results[0], *without[1:]]) == 1e-3, "what has lost its surface is not the best"


def test_means_are_over_the_runs_that_kept_their_surface_and_say_so() -> None:
    runs = [{"chamfer": 1.0}, {}, {"chamfer": 2.0}]
    assert neus_results._spread(runs, "chamfer", 1) == "1.5 ± 0.7 (2 of 3)"
    assert neus_results._spread(runs[1:2], "chamfer", 1) == "-"


def test_ablation_changes_what_its_rows_say(trained: list[Training], tmp_path: Path) -> None:
    ablate(tmp_path / "scan", name="example", steps=10, seeds=(0, 1), docs=tmp_path)
    assert len(trained) == 2 * len(ABLATION) == len({t.name for t in trained})
    rows = dict(zip(ABLATION, trained[::2], strict=True))
    assert rows["CN in the colour's network"].sdf_norm == "none"
    assert rows["CN in the signed distance's network"].color_norm == "none"
    assert rows["CN, coupled gradients"].coupled_gradients
    text = (tmp_path / "results" / "neus-example-ablation.md").read_text()
    assert all(f"| {label} | 10 |" in text for label in ABLATION)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An example scan without its reference: so there is no chamfer distance."""
    folder = tmp_path_factory.mktemp("scenes") / "scan"
    make_scene.dtu(folder, resolution=16, views=10)
    shutil.rmtree(folder / "Points")
    return str(folder)


@pytest.mark.slow
def test_a_training_is_what_its_fields_say_and_is_scored(scene: str, tmp_path: Path) -> None:
    changes = {"color_norm": "ln", "variant": "released", "statistics": "batch"}
    training = Training("run", scene, "bn", 2e-3, 2, 1, **changes, single_image=True, coupled_gradients=True)
    result = train_and_score(training, tmp_path, mesh_resolution=24)
    config = read_config(Path(result["config"]))
    model, datamanager = config.pipeline.model, config.pipeline.datamanager
    assert (model.sdf_norm, model.color_norm, model.norm_variant) == ("bn", "ln", "released")
    assert model.norm_statistics == "batch" and model.norm_coupled_gradients and datamanager.pixel_sampler.single_image
    assert (config.machine.seed, config.optimizers["fields"]["optimizer"].lr) == (1, 2e-3)
    assert result["psnr"] > 0 and 0 <= result["mask_iou"] <= 1 and "chamfer" not in result
    assert len(trimesh.load(tmp_path / "run.ply").faces) > 0


@pytest.mark.slow
def test_a_training_that_loses_its_surface_still_has_the_scores_of_its_views(scene: str, tmp_path: Path) -> None:
    training = Training("run", scene, "cn", 2e-3, 2, initialization="default")
    result = train_and_score(training, tmp_path, mesh_resolution=24)
    assert result["psnr"] > 0 and "chamfer" not in result
    assert not (tmp_path / "run.ply").exists()


def test_surfaces_are_drawn_as_the_scenes_cameras_see_them(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan")
    ball, drawn = tmp_path / "ball.ply", tmp_path / "drawn.png"
    trimesh.creation.icosphere(radius=50).apply_translation([40, -25, -620]).export(ball)
    draw_surfaces({"ball": ball, "again": ball}, tmp_path / "scan", drawn)
    with Image.open(drawn) as picture:
        grey = np.asarray(picture.convert("RGB")).astype(int)
    is_surface = (np.ptp(grey, axis=-1) == 0) & (grey[..., 0] > 0.3 * 0.8 * 255) & (grey[..., 0] < 0.81 * 255)
    share = is_surface.mean(axis=1)
    assert grey.shape[:2] == (600, 900)
    assert share[150] > 0.4 and share[450] > 0.4, "a row of three balls for each surface"
