"""The command: what it writes and prints, how it ends, and the tables it makes."""

import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import submitit
import torch
import trimesh
from PIL import Image
from representation_files import Killed, ball, blob, write_image

from crossnorm_ns.functional.metrics import psnr
from crossnorm_ns.networks import METHODS, PAPER_METHODS, make_network
from crossnorm_ns.paper_tables import paper_row
from crossnorm_ns.representation import cells, runs
from crossnorm_ns.representation.command import COMMANDS, main
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.evaluation import outputs_of
from crossnorm_ns.representation.inputs import read_image
from crossnorm_ns.representation.presets import PRESETS, family, parse_network
from crossnorm_ns.representation.run_folder import RunFolder, load_network
from crossnorm_ns.representation.runs import RunSpec
from crossnorm_ns.representation.table_report import pictures_figure
from crossnorm_ns.representation.table_results import TableResults, ordering_violations
from crossnorm_ns.representation.tasks import ImageTask, MRITask, ShapeTask
from crossnorm_ns.representation.tasks.mri import frequency_mask


@pytest.fixture
def inputs(tmp_path):
    """One input for each task, and wrong ones."""
    write_image(tmp_path / "image.png", 16, 20)
    np.save(tmp_path / "shape.npy", ball(16))
    write_image(tmp_path / "slice.png", 12, 14)
    np.savez(tmp_path / "volume.npz", volume=blob(12).numpy())
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    sphere = trimesh.creation.icosphere(subdivisions=1)
    sphere.update_faces(np.arange(len(sphere.faces)) > 2)
    sphere.export(tmp_path / "open.ply")
    trimesh.creation.icosphere(subdivisions=1).export(tmp_path / "closed.ply")
    np.save(tmp_path / "nan.npy", np.full((12, 12, 12), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros((12, 12)))
    return tmp_path


RUNS = {
    "image": ["--image", "image.png", "--side", "16"],
    "shape": ["--shape", "shape.npy", "--resolution", "16"],
    "ct": ["--image", "slice.png", "--downscale", "1"],
    "mri": ["--volume", "volume.npz", "--size", "12"],
}
QUICK = ["--steps", "3", "--network", "2x8"]


@pytest.mark.parametrize("task", RUNS)
def test_each_task_writes_and_prints_its_results(inputs, monkeypatch, capsys, task):
    monkeypatch.chdir(inputs)
    main([task, *RUNS[task], *QUICK, "--statistics", "stored", "batch", "chunks", "--chunk-size", "64"])
    source = Path(RUNS[task][1]).stem
    folder = inputs / "outputs" / "representation" / task / source / "pe+cn"
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 3 and result["ending"] == "steps"
    assert result["spec"]["network"] == "2x8"
    assert set(result["statistics"]) == {"stored", "batch", "chunks"}
    metric = "iou" if task == "shape" else "psnr"
    assert result["metrics"][metric] == pytest.approx(result["statistics"]["stored"][metric], rel=1e-6)
    for name in ("best.pt", "last.pt", "history.jsonl", "picture.png", "preview.png", "preview-truth.png"):
        assert (folder / name).stat().st_size > 0
    assert f"pe+cn 2x8 on {RUNS[task][1]}" in " ".join(capsys.readouterr().out.split())


def test_the_reconstruction_has_the_quality_that_is_reported(inputs):
    folder = inputs / "run"
    main(["image", *_paths(inputs, RUNS["image"]), "--network", "3x16", "--steps", "60", "--output", str(folder)])
    truth = read_image(inputs / "image.png", 16)
    written = torch.from_numpy(np.asarray(Image.open(folder / "reconstruction.png")) / 255.0)
    reported = json.loads((folder / "result.json").read_text())["metrics"]["psnr"]
    assert reported > 12
    assert float(psnr(written, truth)) == pytest.approx(reported, abs=0.5)  # clipped and rounded
    task = ImageTask(truth)
    again = task.metrics(outputs_of(load_network(folder / "best.pt"), task))
    assert again["psnr"] == pytest.approx(reported, abs=1e-4)


def test_a_time_budget_and_then_the_rest(inputs, capsys):
    arguments = ["image", *_paths(inputs, RUNS["image"]), "--method", "relu", "--output", str(inputs / "run")]
    main([*arguments, "--max-seconds", "0.05"])
    assert "stopped by --max-seconds" in capsys.readouterr().out
    before = json.loads((inputs / "run" / "result.json").read_text())["steps"]
    main([*arguments, "--max-seconds", "0.3", "--resume"])
    assert json.loads((inputs / "run" / "result.json").read_text())["steps"] > before


WRONG = {
    "cannot be read as a picture": ["image", "--image", "text.png"],
    "--image is missing.png, but must be a file (No such file": ["image", "--image", "missing.png"],
    "has no faces": ["shape", "--shape", "empty.ply"],
    "is not closed": ["shape", "--shape", "open.ply"],
    "cannot be read as a mesh": ["shape", "--shape", "text.png"],
    "NaN or infinite": ["mri", "--volume", "nan.npy"],
    "a volume has three axes": ["mri", "--volume", "flat.npy"],
    "a voxel grid has three axes": ["shape", "--shape", "flat.npy"],
    "no multiple of 5^3": ["shape", "--shape", "shape.npy", "--resolution", "5"],
    "invalid choice 'pe+xn'": ["image", "--image", "image.png", "--method", "pe+xn"],
    "--network is '10-28'": ["image", "--image", "image.png", "--network", "10-28"],
    "--learning-rate is -1": ["image", "--image", "image.png", "--learning-rate", "-1"],
    "--steps is 0": ["image", "--image", "image.png", "--side", "16", "--steps", "0"],
    "20x16 pixels and cannot be shrunk to 128x128: give a side of 16 or less": ["image", "--image", "image.png"],
    "--batch-size is 0": ["image", "--image", "image.png", "--side", "16", "--batch-size", "0"],
    "--device is 'tpu'": ["ct", "--image", "slice.png", "--device", "tpu"],
    "--chunk-size is 1, but must be from 2": ["image", "--image", "image.png", "--side", "16", "--chunk-size", "1"],
    "--inputs is (), but must be one or more": ["table", "image", "--inputs"],
    "two inputs have the same name": ["table", "image", "--inputs", "image.png", "image.png"],
    "invalid choice 'cnn'": ["table", "ct", "--inputs", "slice.png", "--methods", "cnn"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_ends_with_one_line_and_code_2(inputs, monkeypatch, capsys, message):
    monkeypatch.chdir(inputs)
    with pytest.raises(SystemExit) as caught:
        main(WRONG[message])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not list(inputs.glob("outputs/**/*.pt"))


def test_more_points_than_a_pass_can_hold_are_refused_before_training(inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    monkeypatch.setattr("crossnorm_ns.representation.evaluation._LARGEST_BATCH", 100)
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit):
        main(["image", "--image", "image.png", "--side", "16", "--statistics", "stored", "batch"])
    assert "256 points together need one pass" in capsys.readouterr().err


def test_help_names_every_command_and_its_options():
    program = [sys.executable, "-m", "crossnorm_ns.representation"]
    text = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert name in text
    text = subprocess.run([*program, "table", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--learning-rates", "--executor", "--methods", "--networks", "--tune", "--preset"):
        assert option in text


# --- tables


TABLE = ["--methods", "pe", "pe+bn", "pe+cn", "--networks", "2x8", "--learning-rates", "1e-3", "1e-2", "--steps", "25"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of two shapes in processes of its own."""
    folder = tmp_path_factory.mktemp("table")
    np.save(folder / "lucy_small.npy", ball(64))
    np.save(folder / "other.npy", ball(64, 0.3))
    inputs = [str(folder / "lucy_small.npy"), str(folder / "other.npy")]
    arguments = ["table", "shape", "--inputs", *inputs, *TABLE, "--output", str(folder / "out"), "--workers", "1"]
    main(arguments)
    return arguments, folder / "out"


def test_a_table_has_the_papers_shape(table):
    _, folder = table
    text = (folder / "table.md").read_text()
    results = text[text.index("Results:") :].split("\n\n")[1].splitlines()
    assert results[0] == "|  | PE | PE+BN | PE+CN |"
    names = [line.split("|")[1].strip() for line in results[2:]]
    assert names == ["IoU 2x8 lucy_small", "IoU 2x8 other", "IoU 2x8 mean"]
    for name in ("results.json", "curves-2x8.png", "pictures-2x8.png", "table.html"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "table.html").read_text().count("<img") == 2


def test_the_papers_numbers_stand_in_a_table_of_their_own(inputs):
    np.save(inputs / "lucy.npy", ball(64))
    arguments = ["table", "shape", "--inputs", str(inputs / "lucy.npy"), "--methods", "pe", "pe+cn"]
    main([*arguments, "--networks", "2x256", "--steps", "1", "--output", str(inputs / "out"), "--workers", "1"])
    text = (inputs / "out" / "table.md").read_text()
    paper = text[text.index("The paper's (table III), of its inputs, sizes and steps:") :].split("\n\n")[1].splitlines()
    assert paper[0] == "|  | PE | PE+CN |"
    expected = paper_row("shape", "iou", "2x256", "lucy")
    assert [float(cell) for cell in paper[2].split("|")[2:4]] == [expected["pe"], expected["pe+cn"]]
    assert "Learning rates:" in text, "one was tried"


def test_the_papers_networks_stand_there_where_it_has_none_of_ours():
    results = TableResults("mri", ["head"], ["2x128"], ["pe", "pe+cn"], [])
    paper = next(table for table in results.tables() if table.title.startswith("The paper's"))
    assert [row[0] for row in paper.rows] == [
        f"{metric} {network} paper" for network in ("2x256", "4x256") for metric in ("PSNR", "SSIM")
    ]
    expected = paper_row("mri", "psnr", "4x256")
    assert [float(cell) for cell in paper.rows[2][1:]] == [expected["pe"], expected["pe+cn"]]


def test_each_method_is_shown_at_its_best_learning_rate(table):
    _, folder = table
    results = json.loads((folder / "results.json").read_text())
    assert len(results) == 2 * 3 * 2
    row = next(line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| IoU 2x8 mean"))
    shown = [float(cell) for cell in row.split("|")[2:5]]
    for method, value in zip(("pe", "pe+bn", "pe+cn"), shown, strict=True):
        mine = [result for result in results if result["spec"]["method"] == method]
        by_rate = {
            rate: np.mean([r["metrics"]["iou"] for r in mine if r["spec"]["learning_rate"] == rate])
            for rate in (1e-3, 1e-2)
        }
        assert value == pytest.approx(max(by_rate.values()), abs=5e-4)


def test_finished_cells_are_kept_and_missing_ones_are_done(table, monkeypatch):
    arguments, folder = table
    done = []
    monkeypatch.setattr(cells, "run_local", lambda missing, workers: ((c, done.append(c) or c()) for c in missing))
    main(arguments)
    assert done == []
    lost = folder / "cells" / "other" / "2x8" / "pe" / "0.01" / "result.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    main(arguments)
    assert [cell.folder for cell in done] == [lost.parent]
    assert json.loads(lost.read_text())["metrics"] == before["metrics"]


def test_results_of_other_options_are_not_taken_for_these(table, capsys):
    arguments, _ = table
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--seed", "1"])
    assert caught.value.code == 2
    assert "holds the result of another run" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["steps", "task_options", "network_options", "evaluate_every", "schedule"])
def test_results_of_a_preset_that_has_changed_are_not_taken_for_these(table, monkeypatch, capsys, change):
    arguments, _ = table
    changes = {
        "steps": {},
        "task_options": {"task": {"resolution": 64, "batch_size": 5000}},
        "network_options": {"network_options": {"pe": {"num_frequencies": 9}}},
        "evaluate_every": {"evaluate_every": 7},
        "schedule": {"schedule": "constant"},
    }
    monkeypatch.setitem(PRESETS["quick"], "shape", replace(PRESETS["quick"]["shape"], **changes[change]))
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--steps", "26"] if change == "steps" else arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"holds the result of another run ({change}: " in error and len(error.splitlines()) == 1


def test_results_of_an_input_that_has_changed_are_not_taken_for_these(table, capsys):
    arguments, folder = table
    path = folder.parent / "other.npy"
    before = path.read_bytes()
    np.save(path, ball(64, 0.4))
    with pytest.raises(SystemExit):
        main(arguments)
    path.write_bytes(before)
    assert "holds the result of another run (checksum of the input" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_named_with_what_to_do():
    cell = Killed(runs.RunSpec("image", Path("image.png"), "relu"), Path("run"))
    ((_, outcome),) = cells.run_local([cell], workers=1)
    assert isinstance(outcome, RepresentationError)
    assert "memory" in str(outcome) and "--workers" in str(outcome)


def test_tables_of_ct_show_the_iterate_nearest_to_the_truth(inputs, monkeypatch):
    monkeypatch.setattr(cells, "run_local", lambda todo, workers: ((c, c()) for c in todo))
    write_image(inputs / "large.png", 24, 24)
    arguments = ["table", "ct", "--inputs", str(inputs / "large.png"), "--networks", "1x8", "--steps", "50"]
    main([*arguments, "--methods", "relu", "pe+cn", "--output", str(inputs / "out")])
    lines = (inputs / "out" / "table.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| PSNR 1x8 large, highest |"))
    results = json.loads((inputs / "out" / "results.json").read_text())
    assert [float(cell) for cell in row.split("|")[2:4]] == [round(r["highest"]["psnr"], 2) for r in results]
    for result in results:
        folder = Path(result["folder"])
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert result["highest"]["psnr"] == max(entry["psnr"] for entry in history)


def test_a_cell_that_fails_leaves_the_others_alone(inputs, monkeypatch, capsys):
    def fails_for_bn(spec, folder, control):
        if spec.method == "pe+bn":
            raise RuntimeError("out of memory")
        return runs.execute(spec, folder, control)

    monkeypatch.setattr(cells, "execute", fails_for_bn)
    monkeypatch.setattr(cells, "run_local", lambda todo, workers: ((c, _outcome_of(c)) for c in todo))
    arguments = ["table", "mri", "--inputs", str(inputs / "big.npy"), "--networks", "1x4", "--steps", "2"]
    np.save(inputs / "big.npy", blob(48).numpy())
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--methods", "pe", "pe+bn", "--output", str(inputs / "out")])
    assert caught.value.code == 1
    assert "pe+bn 0.01 failed: out of memory" in " ".join(capsys.readouterr().out.split())
    lines = (inputs / "out" / "table.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| PSNR 1x4 big"))
    assert row.split("|")[2].strip() != "-" and row.split("|")[3].strip() == "-"


class ClusterOfThisProcess:
    """Stands for submitit: runs each job where its result is asked for."""

    def __init__(self, folder, cluster):
        assert cluster == "slurm"
        self.parameters, self.batches, self.jobs = {}, 0, 0
        ClusterOfThisProcess.last = self

    def update_parameters(self, **options):
        self.parameters.update(options)

    def batch(self):
        self.batches += 1
        return __import__("contextlib").nullcontext()

    def submit(self, cell):
        return self.job(cell)

    def job(self, result):
        self.jobs += 1
        return types.SimpleNamespace(job_id=f"17_{self.jobs}", done=lambda: True, result=result)


def test_cells_run_as_one_array_of_a_cluster(inputs, monkeypatch):
    monkeypatch.setattr(submitit, "AutoExecutor", ClusterOfThisProcess)
    np.save(inputs / "cube.npy", ball(64))
    arguments = ["table", "shape", "--inputs", str(inputs / "cube.npy"), "--networks", "1x4", "--steps", "2"]
    slurm = ["--executor", "slurm", "--slurm-partition", "gpu", "--slurm-minutes", "7", "--slurm-gpus", "1"]
    main([*arguments, "--methods", "relu", "relu+cn", *slurm, "--output", str(inputs / "out")])
    expected = {"timeout_min": 7, "cpus_per_task": 2, "gpus_per_node": 1, "slurm_partition": "gpu"}
    assert ClusterOfThisProcess.last.parameters == expected
    assert ClusterOfThisProcess.last.batches == 1
    assert len(json.loads((inputs / "out" / "results.json").read_text())) == 2


def test_a_cluster_without_submitit_is_one_line(inputs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    np.save(inputs / "cube.npy", ball(64))
    with pytest.raises(SystemExit) as caught:
        main(["table", "shape", "--inputs", str(inputs / "cube.npy"), "--executor", "slurm"])
    assert caught.value.code == 2
    assert 'pip install "crossnorm-ns[slurm]"' in capsys.readouterr().err


# --- the paper's numbers and configurations


@pytest.mark.parametrize("task", ["image", "ct", "mri"])
def test_the_papers_own_rows_have_its_ordering(task):
    for network in PRESETS["paper"][task].networks:
        row = paper_row(task, "psnr", network)
        assert list(row) == list(PAPER_METHODS)
        assert max(row, key=row.__getitem__) == "pe+cn"
        assert ordering_violations(row) == []


def test_violations_of_the_ordering_are_named():
    row = {"relu": 3.0, "relu+bn": 5.0, "relu+cn": 4.0, "pe": 6.0, "pe+cn": 6.0, "siren": 7.0}
    assert ordering_violations(row) == [
        "ReLU+CN 4 is not ahead of ReLU+BN 5",
        "PE+CN 6 is not ahead of PE 6",
        "PE+CN 6 is not ahead of SIREN 7",
    ]


def test_methods_without_a_value_do_not_hold_the_ordering():
    row = {"pe": 6.0, "pe+bn": 6.5, "pe+cn": float("nan")}
    assert ordering_violations(row) == ["PE+CN has no value: it diverged or failed"]


def test_paper_presets_are_the_papers_configurations():
    image, shape, ct, mri = (PRESETS["paper"][task] for task in ("image", "shape", "ct", "mri"))
    assert image.networks == ("5x20", "5x30", "10x28", "10x40", "13x49")
    assert shape.networks == ("2x256",)
    assert ct.networks == ("2x128", "2x256", "4x128", "4x256")
    assert mri.networks == ("2x256", "4x256")
    assert (image.steps, shape.epochs, ct.steps, mri.steps) == (100_000, 200, 20_000, 1_000)
    rates = {method: image.learning_rates[family(method)] for method in METHODS}
    assert image.schedule == "constant" and {rate for method, rate in rates.items() if "+" in method} == {1e-2}
    assert {rate for method, rate in rates.items() if "+" not in method} == {2e-4}
    assert (shape.schedule, shape.final_factor, set(shape.learning_rates.values())) == ("exponential", 0.2, {5e-3})
    assert (ct.schedule, ct.final_factor, set(ct.learning_rates.values())) == ("exponential", 0.1, {5e-3})
    assert (mri.schedule, set(mri.learning_rates.values())) == ("constant", {2e-3})
    assert dict(image.task) == {}, "all pixels of the whole image in each step"
    assert shape.task["batch_size"] == 100_000 and shape.task["resolution"] is None, "the grid as it is, 512^3"
    assert ct.task["num_angles"] == 100 and "downscale" not in ct.task
    assert dict(mri.task) == {}, "the volume as it is"
    assert {name: dict(options) for name, options in shape.network_options.items()} == {"wire": {"sigma_0": 40.0}}
    for preset in (image, ct, mri):
        assert dict(preset.network_options) == {}
    wire = make_network("wire", 2, 1, (8,))
    assert (wire.omega_0, wire.sigma_0) == (10, 10)
    volume = MRITask(torch.zeros(96, 96, 96), **mri.task)
    np.testing.assert_array_equal(volume.mask.numpy(), frequency_mask((96, 96, 96), num_draws=200_000))
    first = next(layer for layer in make_network("pe+cn", 2, 1, (8,)).modules() if isinstance(layer, torch.nn.Linear))
    assert first.in_features == 2 + 2 * 2 * 10, "the coordinates and ten frequencies"


def test_time_ratios_are_seconds_to_the_others_final_quality_over_all_of_its_seconds(tmp_path):
    def run(method, seconds, quality):
        spec = RunSpec("image", tmp_path / "a.png", method, network="1x4", learning_rate=1e-2)
        cell = cells.Cell(spec, tmp_path / method)
        files = RunFolder(cell.folder)
        cell.folder.mkdir()
        for step, (spent, reached) in enumerate(zip(seconds, quality, strict=True)):
            files.append_history({"step": step, "seconds": spent, "psnr": reached})
        return cell, {"metrics": {"psnr": quality[-1]}, "seconds": seconds[-1]}

    slow, fast = run("pe", [4.0, 8.0], [20.0, 25.0]), run("pe+cn", [1.0, 2.0, 3.0], [24.0, 25.0, 30.0])
    results = TableResults("image", ["a"], ["1x4"], ["pe", "pe+cn"], [slow, fast])
    assert results.time_ratios() == [("a", "1x4", 2.0 / 8.0)]
    assert results.time_ratios(fast="pe", slow="pe+cn") == [("a", "1x4", None)]


def test_pictures_of_a_table_show_the_truth_first_and_each_method_at_its_best_rate(tmp_path):
    def run(method, rate, quality, level):
        cell = cells.Cell(
            RunSpec("image", tmp_path / "a.png", method, network="1x4", learning_rate=rate),
            tmp_path / method / str(rate),
        )
        cell.folder.mkdir(parents=True)
        for name, value in (("preview.png", level), ("preview-truth.png", 200)):
            Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(cell.folder / name)
        return cell, {"metrics": {"psnr": quality}}

    tried = [run("pe", 1e-3, 20.0, 10), run("pe", 1e-2, 22.0, 20), run("pe+cn", 1e-2, 25.0, 30)]
    results = TableResults("image", ["a"], ["1x4"], ["pe", "pe+bn", "pe+cn"], tried)
    shown = {
        axes.get_title(): [int(image.get_array().max()) for image in axes.images]
        for axes in pictures_figure(results, "1x4").axes
    }
    assert shown == {"truth": [200], "PE  22.00": [20], "PE+BN  -": [], "PE+CN  25.00": [30]}


def test_an_epoch_passes_over_the_whole_grid():
    task = ShapeTask(torch.from_numpy(ball(64)), batch_size=100_000)
    assert PRESETS["paper"]["shape"].num_steps(task) == 200 * 3
    assert PRESETS["paper"]["image"].num_steps(task) == 100_000


def test_networks_are_layers_times_width():
    assert parse_network("5x20") == (20,) * 5
    for wrong in ("5", "x20", "5x", "0x20", "axb", "5x20x3"):
        with pytest.raises(RepresentationError, match="is no network"):
            parse_network(wrong)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", RUNS)
def test_presets_have_learning_rates_for_every_method(preset, task):
    chosen = PRESETS[preset][task]
    for method in PAPER_METHODS:
        assert chosen.learning_rates[family(method)] > 0
        assert len(chosen.tuning[family(method)]) >= 3
    assert chosen.network in chosen.networks


def test_options_of_a_method_do_not_depend_on_its_norm():
    preset = replace(PRESETS["quick"]["ct"], network_options={"pe": {"num_frequencies": 3}})
    assert preset.options_of("pe+cn") == preset.options_of("pe") == {"num_frequencies": 3}
    assert preset.options_of("siren") == {}
    assert PRESETS["paper"]["shape"].options_of("wire") == {"sigma_0": 40.0}


def _paths(folder, arguments):
    return [str(folder / word) if "." in word else word for word in arguments]


def _outcome_of(cell):
    try:
        return cell()
    except RuntimeError as error:
        return error
