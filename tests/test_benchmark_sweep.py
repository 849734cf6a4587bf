"""python -m eval.benchmark: cells that fail or are killed, what is kept, retried and collected; one real cell."""

import fcntl
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import submitit
from test_representation_command import ClusterOfThisProcess

from crossnorm_ns.data import make_scene
from crossnorm_ns.provenance import provenance_line
from eval import benchmark, benchmark_cells
from eval.benchmark_cells import failure_reason

STAND_IN = str(Path(__file__).with_name("sweep_programs.py"))


class Sweep:
    """Runs the command on two scenes, with programs that stand for ns-train and eval.blender."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd
        self.control, self.data, self.output = folder / "control", folder / "data", folder / "out"
        self.control.mkdir()
        for scene in ("one", "two"):
            (self.data / scene).mkdir(parents=True)
            (self.data / scene / "transforms_train.json").write_text("{}")
        self.use_stand_ins(monkeypatch)

    def use_stand_ins(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(benchmark_cells, "TRAIN", (sys.executable, STAND_IN, "train", str(self.control)))
        monkeypatch.setattr(benchmark_cells, "EVALUATE", (sys.executable, STAND_IN, "evaluate", str(self.control)))

    def behave(self, how: str, cell: str) -> None:
        (self.control / f"{how}-{cell}").touch()

    def behave_well(self) -> None:
        for pattern in ("fail-*", "die-*", "hang-*"):
            for file in self.control.glob(pattern):
                file.unlink()

    def starts(self) -> list[dict[str, Any]]:
        path = self.control / "starts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def started(self) -> list[str]:
        return [start["cell"] for start in self.starts()]

    def run(self, *words: object, kind: str = "blender") -> tuple[int, str, str]:
        """Exit status, output and errors."""
        arguments = [kind, "--data", self.data, "--methods", "mipnerf-ref,mipnerf-cn", "--output", self.output]
        self.monkeypatch.setattr(sys, "argv", ["eval.benchmark", *map(str, (*arguments, *words))])
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        status = 0
        try:
            benchmark.run()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return status, *self.capfd.readouterr()

    def results(self) -> dict[str, float]:
        found = {}
        for path in sorted(self.output.glob("cells/*/*/*/result.json")):
            scene, method, seed = path.parts[-4:-1]
            found[f"{method}-{scene}-{seed.removeprefix('seed-')}"] = json.loads(path.read_text())["psnr"]
        return found


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweep:
    monkeypatch.setenv("COLUMNS", "200")
    return Sweep(tmp_path, monkeypatch, capfd)


ALL = {f"mipnerf-{kind}-{scene}-{seed}" for kind in ("ref", "cn") for scene in ("one", "two") for seed in (0, 1)}


def wait_for(path: Path) -> str:
    for _ in range(2400):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_cells_that_fail_or_are_killed_leave_the_others_alone_and_can_be_retried(sweep: Sweep) -> None:
    sweep.behave("fail", "mipnerf-ref-one-1")
    sweep.behave("die", "mipnerf-cn-two-0")
    status, out, err = sweep.run("--seeds", 2, "--workers", 2)
    assert status == 1
    assert sweep.results().keys() == ALL - {"mipnerf-ref-one-1", "mipnerf-cn-two-0"}
    failed = next(line for line in out.splitlines() if line.startswith("mipnerf-ref on one, seed 1"))
    assert "needs a download: ConnectionError: urlopen error" in failed
    log = Path(failed.partition("(log: ")[2].rstrip(")"))
    assert "ConnectionError" in log.read_text()
    assert "mipnerf-cn on two, seed 0: killed by signal 9, most likely because memory ran out (log: " in out
    assert "6 of 8 cells are done" in err and "needs a download" in err and "25.00 dB" in err
    assert "2 of 8 cells are not done; --retry-failed" in err
    table = (sweep.output / "table.md").read_text()
    assert "mipnerf-cn, 2 steps, measured, 1 to 2 seeds" in table and "not comparable with the paper's table" in table
    assert "25.50 ± 0.71" in table
    assert f"Tables made on {provenance_line()}." in table

    sweep.behave_well()
    finished = {path: path.stat().st_mtime_ns for path in sweep.output.glob("cells/*/*/*/result.json")}
    assert sweep.run("--seeds", 2)[0] == 1, "failed cells are not tried again unless asked for"
    assert len(sweep.started()) == 8
    status, out, err = sweep.run("--seeds", 2, "--retry-failed")
    assert status == 0 and "8 of 8 cells are done" in err
    assert sorted(sweep.started()[8:]) == ["mipnerf-cn-two-0", "mipnerf-ref-one-1"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert sweep.results().keys() == ALL
    assert "<b>" in (sweep.output / "table.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_trainings_and_the_same_command_goes_on(
    sweep: Sweep, number: signal.Signals, usual_signals: None
) -> None:
    sweep.behave("hang", "mipnerf-cn-one-0")

    def interrupt() -> None:
        wait_for(sweep.control / "hanging")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, _, _ = sweep.run()
    thread.join()
    assert status == 128 + number
    assert sweep.started() == ["mipnerf-ref-one-0", "mipnerf-cn-one-0"], "no cell began after the signal"
    assert not alive(int((sweep.control / "hanging").read_text()))
    assert not list(sweep.output.rglob("failure.json")), "a cell that was interrupted has not failed"
    sweep.behave_well()
    status, _, err = sweep.run()
    assert status == 0 and "4 of 4 cells are done" in err
    resumed = sweep.starts()[2]
    assert resumed["cell"] == "mipnerf-cn-one-0" and "--load-dir" in resumed["options"]
    assert "--load-dir" not in sweep.starts()[3]["options"]
    assert len(sweep.started()) == 5


_CARRY_OUT = """
import pickle, sys
from pathlib import Path
from eval import benchmark_cells
from eval.benchmark_runs import carry_out, run_local
stored = pickle.loads(Path(sys.argv[1]).read_bytes())
benchmark_cells.TRAIN, benchmark_cells.EVALUATE = stored["programs"]
carry_out(stored["cells"], run_local(stored["cells"], workers=1))
"""


def test_what_a_killed_sweep_leaves_running_is_not_done_twice(sweep: Sweep) -> None:
    sweep.behave("hang", "mipnerf-cn-one-0")
    arguments = benchmark.Arguments("blender", sweep.data, "mipnerf-ref,mipnerf-cn", scenes="one", output=sweep.output)
    programs = (benchmark_cells.TRAIN, benchmark_cells.EVALUATE)
    cells = benchmark.make_cells(arguments, sweep.output, ())
    for cell in cells:
        cell.check()
    stored = sweep.folder / "stored"
    stored.write_bytes(pickle.dumps({"cells": cells, "programs": programs}))
    process = subprocess.Popen([sys.executable, "-c", _CARRY_OUT, stored], stderr=subprocess.DEVNULL)
    trainer = int(wait_for(sweep.control / "hanging"))
    process.kill()
    process.wait()
    assert alive(trainer)
    status, _, err = sweep.run("--scenes", "one")
    assert status == 1 and "1 of 2 cells are not done" in err
    assert "is being worked on by another process" in err
    assert len(sweep.started()) == 2 and not list(sweep.output.rglob("failure.json"))
    os.kill(trainer, signal.SIGTERM)
    while alive(trainer):
        time.sleep(0.02)
    sweep.behave_well()
    assert sweep.run("--scenes", "one")[0] == 0
    assert sweep.started() == ["mipnerf-ref-one-0", "mipnerf-cn-one-0", "mipnerf-cn-one-0"]


def test_a_cell_whose_folder_is_in_use_is_left_to_its_owner(sweep: Sweep) -> None:
    folder = sweep.output / "cells" / "one" / "mipnerf-ref" / "seed-0"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep.run("--scenes", "one")[0] == 1
    assert sweep.started() == ["mipnerf-cn-one-0"]
    assert sweep.run("--scenes", "one")[0] == 0


def test_a_training_that_is_asked_to_end_has_not_failed(sweep: Sweep) -> None:
    sweep.behave("hang", "mipnerf-ref-one-0")

    def cancel() -> None:
        os.kill(int(wait_for(sweep.control / "hanging")), signal.SIGTERM)

    thread = threading.Thread(target=cancel)
    thread.start()
    status, _, err = sweep.run("--scenes", "one")
    thread.join()
    assert status == 1 and "mipnerf-ref on one, seed 0: training was ended by SIGTERM" in err
    assert not list(sweep.output.rglob("failure.json"))
    sweep.behave_well()
    assert sweep.run("--scenes", "one")[0] == 0
    assert "--load-dir" in next(s for s in sweep.starts()[2:] if s["cell"] == "mipnerf-ref-one-0")["options"]


def test_an_evaluation_that_failed_does_not_train_again(sweep: Sweep) -> None:
    with sweep.monkeypatch.context() as broken:
        broken.setattr(benchmark_cells, "EVALUATE", (sys.executable, "-c", "raise SystemExit('error: no such frame')"))
        status, out, _ = sweep.run("--scenes", "one")
    assert status == 1 and "mipnerf-ref on one, seed 0: error: no such frame (log: " in out
    assert "evaluating.log" in out
    assert sweep.run("--scenes", "one", "--retry-failed")[0] == 0
    assert len(sweep.started()) == 2 and len(sweep.results()) == 2


def test_options_after_two_dashes_go_to_every_training(sweep: Sweep) -> None:
    training = ("--max-num-iterations", "7", "--machine.num-devices", "2")
    sweep.run("--methods", "mipnerf-cn,nerfacto", "--scenes", "two", "--protocol", "nerfbaselines", "--", *training)
    for start in sweep.starts():
        words = " ".join(start["options"])
        assert " ".join(training) in words
        assert f"--data {sweep.data / 'two'}" in words and "--machine.seed 0" in words
        assert words.endswith("blender-data") == start["cell"].startswith("nerfacto")
    evaluations = (sweep.control / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["--protocol"] for line in evaluations] == ["nerfbaselines"] * 2


def test_results_of_other_options_are_not_taken_for_these(sweep: Sweep) -> None:
    assert sweep.run("--scenes", "one", "--", "--max-num-iterations", "7")[0] == 0
    status, _, err = sweep.run("--scenes", "one", "--", "--max-num-iterations", "8")
    assert status == 2 and "holds another cell (training: " in err
    assert len(sweep.started()) == 2


class Cluster(ClusterOfThisProcess):
    """What a job raises comes back as text, as with submitit."""

    def submit(self, cell: Any) -> Any:
        def result() -> Any:
            try:
                return pickle.loads(pickle.dumps(cell))()
            except Exception as error:
                raise RuntimeError(f"Job failed with trace:\nTraceback\n{type(error).__name__}: {error}\n") from None

        return self.job(result)


def test_cells_run_as_one_array_of_a_cluster(sweep: Sweep) -> None:
    sweep.monkeypatch.setattr(submitit, "AutoExecutor", Cluster)
    sweep.behave("fail", "mipnerf-ref-two-0")
    slurm = ["--executor", "slurm", "--slurm-partition", "gpu", "--slurm-minutes", 7, "--slurm-gpus", 4]
    status, out, _ = sweep.run(*slurm)
    assert status == 1 and "mipnerf-ref on two, seed 0: needs a download: ConnectionError" in out
    assert "seed-0/training.log)" in out
    expected = {"timeout_min": 7, "cpus_per_task": 8, "gpus_per_node": 4, "slurm_partition": "gpu"}
    assert ClusterOfThisProcess.last.parameters == expected and ClusterOfThisProcess.last.batches == 1
    assert len(sweep.results()) == 3


def test_a_job_that_a_cluster_ends_has_failed_with_what_it_says(sweep: Sweep) -> None:
    class Ending(Cluster):
        def submit(self, cell: Any) -> Any:
            def result() -> Any:
                raise RuntimeError("Job 17 (task: 0)\nhas not produced any output (state: TIMEOUT)\nError stream:\nx\n")

            return self.job(result)

    sweep.monkeypatch.setattr(submitit, "AutoExecutor", Ending)
    status, out, _ = sweep.run("--scenes", "one", "--executor", "slurm")
    assert status == 1 and "mipnerf-cn on one, seed 0: ended by the cluster (TIMEOUT)\n" in out


def test_a_cluster_without_submitit_is_one_line(sweep: Sweep) -> None:
    sweep.monkeypatch.setitem(sys.modules, "submitit", None)
    status, _, err = sweep.run("--executor", "slurm")
    assert status == 2 and 'pip install "crossnorm-ns[slurm]"' in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "mipnerf-cn,xnerf"], "nerfstudio knows no method xnerf"),
        (["--methods", ","], "--methods is empty"),
        (["--scenes", "three"], "there is no three in"),
        (["--scenes", ","], "--scenes is empty"),
        (["--seeds", 0], "--seeds is 0"),
        (["--workers", 0], "--workers is 0"),
        (["--data", "nowhere"], "--data is nowhere"),
        (["--data", "empty"], "holds no folder with transforms_train.json"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(sweep: Sweep, words: list, message: str) -> None:
    (sweep.folder / "empty").mkdir()
    sweep.monkeypatch.chdir(sweep.folder)
    status, _, err = sweep.run(*words)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not sweep.starts()


def test_scans_are_evaluated_by_their_number_and_reference(sweep: Sweep) -> None:
    for name in ("dtu_scan24", "nameless"):
        (sweep.data / name).mkdir()
        (sweep.data / name / "cameras_sphere.npz").touch()
    arguments = benchmark.Arguments("dtu", sweep.data, "neus-cn,nerfacto", "dtu_scan24", dataset_dir=Path("/dtu"))
    ours, other = benchmark.make_cells(arguments, sweep.output, ())
    assert " ".join(ours.evaluation) == (
        f"eval.dtu_chamfer --data {sweep.data}/dtu_scan24 --dataset-dir /dtu --scan 24 --resolution 512"
    )
    assert (ours.dataparser, other.dataparser) == ("", "dtu-cn")
    arguments.dataset_dir = None
    itself, _ = benchmark.make_cells(arguments, sweep.output, ())
    assert f"--dataset-dir {sweep.data}/dtu_scan24 " in " ".join(itself.evaluation)
    arguments.scenes = "all"
    with pytest.raises(ValueError, match="nameless has no number of a scan"):
        benchmark.make_cells(arguments, sweep.output, ())


def test_methods_without_a_surface_are_not_trained_on_scans(sweep: Sweep) -> None:
    (sweep.data / "scan1").mkdir()
    (sweep.data / "scan1" / "cameras_sphere.npz").touch()
    sweep.behave("fail", "neus-cn-scan1-0")
    words = ("--methods", "mipnerf-cn,nerfacto,neus-facto,neus-cn")
    for again in ((), ("--retry-failed",)):
        status, out, err = sweep.run(*words, *again, kind="dtu")
        assert status == 1 and "4 of 4 cells are not done" in err
        for method in ("mipnerf-cn", "nerfacto", "neus-facto"):
            assert f"{method} on scan1, seed 0: needs a signed distance: {method} has no surface that" in out
            assert re.search(rf"{method} .* needs a signed distance", err)
    assert sweep.started() == ["neus-cn-scan1-0"] * 2
    arguments = benchmark.Arguments("dtu", sweep.data, "neus-cn,neus-cn-tiny,volsdf-ref", "scan1")
    assert not any(cell.obstacle for cell in benchmark.make_cells(arguments, sweep.output, ()))
    arguments = benchmark.Arguments("blender", sweep.data, "nerfacto", "one")
    assert not any(cell.obstacle for cell in benchmark.make_cells(arguments, sweep.output, ()))


def read_by_ns_train(cells: list[Any]) -> list[Any]:
    """What ns-train's own reader of options makes of the cells' commands."""
    import tyro
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

    commands = [cell._training_command()[len(benchmark_cells.TRAIN) :] for cell in cells]
    return [tyro.cli(AnnotatedBaseConfigUnion, args=command) for command in commands]


@pytest.mark.parametrize(
    ("kind", "methods", "parsers"),
    [
        (
            "blender",
            "mipnerf-cn,vanilla-nerf-cn,vanilla-nerf,nerfacto",
            ["BlenderCN", "BlenderCN", "Blender", "Blender"],
        ),
        ("dtu", "neus-cn,nerfacto", ["DTUCN", "DTUCN"]),
    ],
)
def test_smaller_pictures_reach_every_method_through_ns_trains_own_options(
    sweep: Sweep, kind: Any, methods: str, parsers: list[str]
) -> None:
    scene = "scan1"
    (sweep.data / scene).mkdir()
    (sweep.data / scene / benchmark.MARKERS[kind]).touch()
    arguments = benchmark.Arguments(kind, sweep.data, methods, scene, downscale_factor=2)
    configs = read_by_ns_train(benchmark.make_cells(arguments, sweep.output, ("--max-num-iterations", "7")))
    managers = [config.pipeline.datamanager for config in configs]
    assert [type(manager.dataparser).__name__.removesuffix("DataParserConfig") for manager in managers] == parsers
    for method, manager in zip(methods.split(","), managers, strict=True):
        ours = "-cn" in method
        assert getattr(manager.dataparser, "downscale_factor", 1) == (2 if ours else 1)
        assert manager.camera_res_scale_factor == (1 if ours else 0.5)


def test_runs_lie_where_they_are_looked_for_under_the_name_in_the_list(sweep: Sweep) -> None:
    """nerfstudio's nerfacto-big calls itself nerfacto."""
    arguments = benchmark.Arguments("blender", sweep.data, "nerfacto-big,mipnerf-cn", "one", seeds=2)
    cells = benchmark.make_cells(arguments, sweep.output, ())
    for cell, config in zip(cells, read_by_ns_train(cells), strict=True):
        assert config.get_base_dir() == cell._run_folder()
        assert (config.method_name, config.machine.seed) == (cell.method, cell.seed)


def test_a_dataparser_that_is_named_is_that_of_all_methods(sweep: Sweep) -> None:
    arguments = benchmark.Arguments("blender", sweep.data, "mipnerf-cn,nerfacto", "one")
    training = ("blender-cn", "--downscale-factor", "4")
    for config in read_by_ns_train(benchmark.make_cells(arguments, sweep.output, training)):
        assert config.pipeline.datamanager.dataparser.downscale_factor == 4
    arguments.dataparser = "nerfstudio-data"
    for config in read_by_ns_train(benchmark.make_cells(arguments, sweep.output, ())):
        assert type(config.pipeline.datamanager.dataparser).__name__ == "NerfstudioDataParserConfig"
    with pytest.raises(ValueError, match="names the dataparser blender-cn: leave out --dataparser"):
        benchmark.make_cells(arguments, sweep.output, training)


@pytest.mark.parametrize(
    ("log", "status", "reason"),
    [
        (
            "Traceback (most recent call last):\n  File a\n"
            "urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>\n",
            1,
            "needs a download: urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>",
        ),
        (
            'Traceback\n  File "nerfacc/cuda/__init__.py"\nAttributeError: \'NoneType\' object has no attribute "x"\n',
            1,
            "needs a CUDA device: AttributeError: 'NoneType' object has no attribute \"x\"",
        ),
        (
            "Traceback\nAssertionError: Torch not compiled with CUDA enabled\n",
            1,
            "needs a CUDA device: AssertionError: Torch not compiled with CUDA enabled",
        ),
        (
            "Traceback\n  import tinycudann as tcnn\nModuleNotFoundError: No module named 'tinycudann'\n",
            1,
            "needs tiny-cuda-nn: ModuleNotFoundError: No module named 'tinycudann'",
        ),
        (
            "WARNING: tinycudann is not there, using torch\nTraceback\n  File torch/cuda/random.py\n"
            "torch.OutOfMemoryError: CUDA out of memory\n\n",
            1,
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("error: step 3: the loss is not finite\n", 1, "error: step 3: the loss is not finite"),
        ("\x1b[31mhalf a line", 1, "half a line"),
        ("", 3, "exit status 3"),
        ("anything", -9, "killed by signal 9, most likely because memory ran out"),
        ("anything", -15, "killed by signal 15"),
    ],
)
def test_a_reason_is_read_from_the_end_of_the_log(log: str, status: int, reason: str) -> None:
    assert failure_reason(log, status) == reason


_WRONG_OPTIONS = """
import dataclasses, tyro
@dataclasses.dataclass
class Options:
    max_num_iterations: int = 1
print("Warning: a line before")
tyro.cli(Options)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--max-num-iteration", "2"], "Unrecognized options: --max-num-iteration, 2"),
        (
            ["--max-num-iterations", "a word that is no number and too long for one line of the box"],
            "Error parsing --max-num-iterations: invalid literal for int() with base 10: 'a word that is no number and "
            "too long for one line of the box'",
        ),
    ],
)
def test_the_reason_of_a_wrong_option_is_what_tyro_says_of_it(encoding: str, words: list[str], reason: str) -> None:
    command = [sys.executable, "-c", _WRONG_OPTIONS, *words]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    assert failure_reason(done.stdout.decode(), done.returncode) == reason


@pytest.mark.slow
def test_a_real_cell_trains_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    make_scene.blender(tmp_path / "data" / "tiny", resolution=16, train=3, val=1, test=2, supersampling=1)
    small = ["--max-num-iterations", "2", "--calibration-batches", "1", "--pipeline.model.width", "16"]
    rays = ["--pipeline.model.num-samples", "4", "--pipeline.datamanager.train-num-rays-per-batch", "16"]
    words = ["blender", "--data", tmp_path / "data", "--methods", "mipnerf-cn-tiny", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["eval.benchmark", *map(str, words), "--", *small, *rays])
    before = signal.getsignal(signal.SIGTERM)
    try:
        benchmark.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    result = json.loads((tmp_path / "out/cells/tiny/mipnerf-cn-tiny/seed-0/result.json").read_text())
    assert result["source"]["method"] == "mipnerf-cn-tiny"
    assert (result["source"]["step"], result["source"]["seed"], result["resolution"]) == (1, 0, [16, 16])
    assert 3 < result["psnr"] < 40
    shown = f"{result['psnr']:.2f}"
    assert shown in (tmp_path / "out" / "table.md").read_text()
    assert f"{shown} dB" in capfd.readouterr().err
