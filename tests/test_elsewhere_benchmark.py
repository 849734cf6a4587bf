"""The benchmark of CN in other methods: what it trains, chooses and writes."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from nerfstudio.configs.method_configs import method_configs
from states import differences
from trainings import checkpoint_of

from benchmarks import elsewhere, elsewhere_training, neus_scores, timed_training
from benchmarks.elsewhere import Options, Size, main, trainings
from benchmarks.elsewhere_tables import grid_table, scores_after, verdict, verdict_table
from benchmarks.elsewhere_training import Method, Training, config_of, held_out_views, train_and_score
from benchmarks.timed_training import train_timed
from crossnorm_ns.engine.trainer import CrossNormTrainer
from eval.errors import EvaluationError
from method_configs.volsdf import volsdf_cn

pytestmark = pytest.mark.usefixtures("own_writers")

METHODS = get_args(Method)
TRAINING = Training("run", "scene", "nerfacto", "cn", 1.0, 4, 16, "tiny", moments=2)


def result(norm: str, rate: float, psnr: float, validation: float, seconds: float = 10.0, **others: Any) -> dict:
    """Invented; the curve grows by 2 dB from half of the time to the end."""
    curve = [
        {"step": 2, "seconds": seconds / 2, "psnr": psnr - 2, "ssim": 0.5},
        {"step": 4, "seconds": seconds, "psnr": psnr, "ssim": 0.7},
    ]
    run = asdict(replace(TRAINING, norm=norm, rate=rate))
    scores = {"psnr": psnr, "ssim": 0.7, "validation_psnr": validation, "seconds": seconds, "curve": curve}
    return {"run": run, "learning_rate": 0.01 * rate, "machine": "m", "device": "cpu"} | scores | others


# --- What is chosen and compared


def test_scores_at_a_time_are_interpolated_and_unknown_before_the_first_look() -> None:
    curve = result("cn", 1, 20.0, 0.0)["curve"]
    assert scores_after(curve, 7.5) == pytest.approx({"psnr": 19.0, "ssim": 0.6})
    assert scores_after(curve, 11.0) == {"psnr": 20.0, "ssim": 0.7}
    assert math.isnan(scores_after(curve, 4.9)["psnr"])


def test_validation_views_choose_the_rate_of_each_side_and_the_test_views_are_reported() -> None:
    found = verdict(
        [
            result("none", 1, 20.0, 20.0),
            result("none", 3, 21.0, 25.0),
            result("none", 10, 30.0, 24.0),
            result("cn", 1, 22.0, 26.0, seconds=16.0, chamfer=1.0),
            result("cn", 3, 30.0, 25.0, seconds=16.0),
            result("cn", 10, 30.0, 24.0, seconds=16.0),
        ]
    )
    assert found is not None
    assert found.rates == {"none": 0.03, "cn": 0.01}
    assert found.at_edge == {"none": False, "cn": True}
    assert (found.plain, found.equal_steps) == ({"psnr": 21.0, "ssim": 0.7}, {"psnr": 22.0, "ssim": 0.7})
    assert found.equal_seconds == pytest.approx({"psnr": 20.5, "ssim": 0.55})  # 10 s, a quarter of the way from 8 to 16
    assert found.step_ratio == pytest.approx(1.6)
    assert found.to_plain == pytest.approx(1.2)  # 12 s


def test_what_is_not_known_at_equal_seconds_is_left_open(tmp_path: Path) -> None:
    results = [result("none", 1, 20.0, 20.0), result("cn", 1, 21.0, 21.0, seconds=30.0)]
    found = verdict(results)
    assert found is not None and math.isnan(found.equal_seconds["psnr"])
    row = verdict_table([found]).splitlines()[-1]
    assert "| 20.00 | 21.00 (+1.00) | - | 0.700 / 0.700 / - |" in row
    elsewhere.write(Options(docs=tmp_path), results)
    stored = json.loads((tmp_path / "results" / "elsewhere.json").read_text())
    assert stored["verdicts"][0]["equal_seconds"] == {"psnr": None, "ssim": None}


def test_means_are_over_seeds_at_one_rate() -> None:
    pairs = [result(norm, 1, psnr, psnr) for norm, first in (("none", 20.0), ("cn", 19.0)) for psnr in (first, 22.0)]
    for seed, run in enumerate(pairs):
        run["run"]["seed"] = seed % 2
    found = verdict(pairs)
    assert found is not None
    assert (found.plain["psnr"], found.equal_steps["psnr"]) == (21.0, 20.5)
    assert found.to_plain is None, "one seed has not reached it"


def test_a_training_that_broke_off_is_not_the_best_and_says_so() -> None:
    broken = {"run": result("cn", 3, 0, 0)["run"], "learning_rate": 0.03, "error": "step 7: the loss is not finite"}
    whole = [result("none", 1, 20.0, 20.0), result("none", 3, 20.0, 20.0), result("cn", 1, 19.0, 19.0)]
    found = verdict([*whole, broken])
    assert found is not None and found.rates["cn"] == 0.01
    text = grid_table([*whole, broken])
    assert "| cn | 0.03 | 3 | broke off |" in text and text.endswith("step 7: the loss is not finite")
    assert verdict([*whole[:2], broken]) is None


# --- What is trained


@pytest.fixture
def no_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "scene", lambda *_: Path("somewhere"))


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_have_the_same_rates_seeds_and_steps(method: Method, no_scene: None) -> None:
    runs = trainings(method, Options(seeds=(0, 1), preset="full"))
    sides = {norm: [replace(r, name="", norm="cn") for r in runs if r.norm == norm] for norm in ("none", "cn")}
    assert sides["none"] == sides["cn"] and len(sides["cn"]) >= 6
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("method", METHODS)
def test_a_rate_scales_the_registered_ones_of_all_groups_to_the_end_of_their_schedules(method: Method) -> None:
    registered: dict = volsdf_cn.config.optimizers if method == "volsdf" else method_configs[method].optimizers
    config = config_of(replace(TRAINING, method=method, rate=3.0, preset="full"))
    assert config.optimizers.keys() == registered.keys()
    for name, group in config.optimizers.items():
        assert group["optimizer"].lr == pytest.approx(3 * registered[name]["optimizer"].lr)
        if hasattr(group["scheduler"], "lr_final"):
            assert group["scheduler"].lr_final == pytest.approx(3 * registered[name]["scheduler"].lr_final)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["full", "tiny"])
def test_sides_differ_in_their_norms_alone(method: Method, preset: Any) -> None:
    plain, cross = (config_of(replace(TRAINING, method=method, norm=norm, preset=preset)) for norm in ("none", "cn"))
    for name in ("sdf_norm", "color_norm") if method == "volsdf" else ("norm",):
        model = plain.pipeline.model
        assert (getattr(model, name), getattr(cross.pipeline.model, name)) == ("none", "cn")
        setattr(model, name, "cn")
    assert plain == cross
    assert (plain.max_num_iterations, plain.pipeline.datamanager.train_num_rays_per_batch) == (4, 16)


def test_full_presets_have_the_networks_and_samples_of_the_registered_methods() -> None:
    for method in ("vanilla-nerf", "nerfacto"):
        ours = config_of(replace(TRAINING, method=method, preset="full")).pipeline.model
        theirs = method_configs[method].pipeline.model
        for name in ("num_coarse_samples", "num_importance_samples", "num_proposal_samples_per_ray", "num_levels"):
            assert getattr(ours, name, None) == getattr(theirs, name, None)
    ours: Any = config_of(replace(TRAINING, method="volsdf", preset="full")).pipeline.model
    assert ours == replace(volsdf_cn.config.pipeline.model, mask_loss_mult=0.1, background="white")


# --- What is written


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch, no_scene: None) -> None:
    """Trainings take no time; those of nerfacto fail."""

    def invent(runs: list[Training], *_: object) -> list[dict]:
        if runs[0].method == "nerfacto":
            raise RuntimeError("the training nerfacto-none failed: see its log")
        gain = {"none": 0.0, "cn": 1.0}
        psnr = {run: 20 + gain[run.norm] + run.rate for run in runs}
        return [result(r.norm, r.rate, psnr[r], psnr[r], chamfer=2.0) | {"run": asdict(r)} for r in runs]

    monkeypatch.setattr(elsewhere, "train_all", invent)


def test_tables_hold_rows_and_verdicts_of_all_methods_but_those_that_failed(
    invented: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["elsewhere.py", "--seeds", "0", "--docs", str(tmp_path), "--moments", "2"])
    size = Size(4, 16, (1, 3))
    options = Options(vanilla_nerf=size, nerfacto=size, volsdf=size, preset="tiny", docs=tmp_path, output=tmp_path)
    with pytest.raises(SystemExit, match="nerfacto-none failed"):
        main(options)
    text = (tmp_path / "results" / "elsewhere.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    assert "`python -m benchmarks.elsewhere --seeds 0 --moments 2`" in text
    for method in ("vanilla-nerf", "volsdf"):
        assert f"| {method} | 0.03 (edge) | 0.03 (edge) | 23.00 | 24.00 (+1.00) | 24.00 (+1.00) |" in text
        assert f"## {method}\n\n4 steps of 16 rays, tiny preset, " in text
    assert text.count("| cn | 0.03 | 3 | 24.00 | 0.700 | 24.00 | 2.00 | 10.0 |") == 2
    assert "with masks" in text and "processor seconds" in text and "## nerfacto" not in text
    stored = (tmp_path / "results" / "elsewhere.json").read_text()
    assert "somewhere" not in stored and str(tmp_path) not in stored
    content = json.loads(stored)
    assert len(content["trainings"]) == 8 and [v["method"] for v in content["verdicts"]] == ["vanilla-nerf", "volsdf"]


# --- Trainings


def test_looks_on_the_way_have_no_effect_on_a_training(tiny_scene: Path, tmp_path: Path) -> None:
    def weights(folder: str, *moments: int) -> dict[str, Any]:
        config = config_of(replace(TRAINING, data=str(tiny_scene)))
        config.output_dir, config.timestamp = tmp_path / folder, "run"
        train_timed(config, moments, lambda _: {"drawn": float(torch.rand(()))})
        return checkpoint_of(config.get_base_dir())

    assert differences(weights("once", 4), weights("often", 1, 2, 3)) == []


@pytest.mark.parametrize("norm", ["none", "cn"])
def test_scores_are_those_of_the_views_at_each_moment(norm: Any, tiny_scene: Path, tmp_path: Path) -> None:
    """Without network, which building nerfstudio's models would otherwise want."""
    training = replace(TRAINING, data=str(tiny_scene), norm=norm)
    often, once = (train_and_score(replace(training, moments=moments), tmp_path) for moments in (4, 1))
    assert [point["step"] for point in often["curve"]] == [1, 2, 3, 4]
    for name in ("psnr", "ssim", "validation_psnr"):
        assert often["curve"][-1][name] == often[name] == once[name]
        assert often["curve"][0][name] != often[name]
    assert 0 < often["curve"][0]["seconds"] < often["curve"][-1]["seconds"] == often["seconds"]
    assert often["device"] == "cpu" and often["learning_rate"] == 1e-2


def test_seconds_are_those_of_training_steps_alone(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, step_once = SimpleNamespace(now=0.0), CrossNormTrainer.train_iteration

    def step(trainer: CrossNormTrainer, number: int) -> Any:
        clock.now += 1
        return step_once(trainer, number)

    def look(_: Any) -> dict[str, float]:
        clock.now += 100
        return {}

    monkeypatch.setattr(CrossNormTrainer, "train_iteration", step)
    monkeypatch.setattr(timed_training, "_clock", lambda _: lambda: clock.now)
    config = config_of(replace(TRAINING, data=str(tiny_scene)))
    config.output_dir, config.timestamp = tmp_path, "run"
    trained = train_timed(config, (2, 4), look)
    assert trained.seconds == 4.0
    assert trained.curve == [{"step": 2, "seconds": 2.0}, {"step": 4, "seconds": 4.0}]
    assert list((config.get_base_dir() / "nerfstudio_models").iterdir())


def test_a_training_whose_numbers_are_not_finite_is_reported(tiny_scene: Path, tmp_path: Path) -> None:
    found = train_and_score(replace(TRAINING, data=str(tiny_scene), rate=1e38), tmp_path)
    assert found["error"].startswith("step ") and found["error"].endswith("is not finite")
    assert "curve" not in found


def test_validation_views_are_the_scenes_own(tiny_scene: Path, tmp_path: Path) -> None:
    config = config_of(replace(TRAINING, data=str(tiny_scene)))
    manager = config.pipeline.datamanager.setup(device="cpu", test_mode="test")
    files = [{str(dataset.image_filenames[i]) for dataset, i in views} for views in held_out_views("nerfacto", manager)]
    assert [{Path(file).parent.name for file in group} for group in files] == [{"test"}, {"val"}]
    assert [len(group) for group in files] == [2, 1]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs whose surfaces were asked for; the comparison is invented."""
    asked: list[Path] = []

    def surface_of(config: Path, resolution: int, scan: Path) -> tuple[None, Any]:
        assert config.exists() and list((config.parent / "nerfstudio_models").iterdir())
        if resolution == 0:
            raise EvaluationError("somewhere/step-000000001.ckpt: no surface.")
        asked.append(scan)
        return None, SimpleNamespace(accuracy=1.0, completeness=2.0, overall=1.5)

    monkeypatch.setattr(neus_scores, "surface_of", surface_of)
    return asked


def test_volsdf_is_compared_on_a_scans_views_and_by_its_surface(
    compared: list[Path], scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere_training, "HELD_OUT_EVERY", 3)
    training = replace(TRAINING, data=str(scan), method="volsdf", steps=1, moments=1)
    found = train_and_score(training, tmp_path)
    assert compared == [scan]
    assert (found["accuracy"], found["completeness"], found["chamfer"]) == (1.0, 2.0, 1.5)
    assert found["psnr"] != found["validation_psnr"], "two views are held out of six, one for each"
    lost = train_and_score(replace(training, mesh_resolution=0), tmp_path)
    assert lost["surface_error"] == "no surface." and lost["psnr"] == found["psnr"] and "chamfer" not in lost
