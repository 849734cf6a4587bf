"""Jobs through submitit's own processes, with its executor for one machine in the place of SLURM's."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import submitit
from representation_files import write_image
from submitit.helpers import DelayedSubmission
from test_benchmark_sweep import STAND_IN, Sweep, alive, sweep, wait_for  # noqa: F401 (a fixture)

from crossnorm_ns import jobs
from crossnorm_ns.representation.cells import Cell
from crossnorm_ns.representation.runs import RunSpec
from eval import benchmark_cells

AutoExecutor = submitit.AutoExecutor
TESTS = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's executor is that of one machine; its processes find the modules of these tests."""
    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: AutoExecutor(folder, cluster="local"))
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((TESTS, *filter(None, (os.environ.get("PYTHONPATH"),)))))


class Waiting:
    """A job that ends when a file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> dict[str, Any]:
        self.path.with_suffix(".pid").write_text(str(os.getpid()))
        wait_for(self.path)
        return {"path": self.path.name}


def test_results_come_when_they_are_there_and_not_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("go")
    names = []
    for _, result in jobs.run_on_slurm([Waiting(first), Waiting(second)], tmp_path / "submitit", {}):
        assert isinstance(result, dict)
        names.append(result["path"])
        first.write_text("go")
    assert names == ["second", "first"]


def test_jobs_are_cancelled_where_the_command_is_left(tmp_path: Path) -> None:
    never, now = tmp_path / "never", tmp_path / "now"
    now.write_text("go")
    outcomes = jobs.run_on_slurm([Waiting(never), Waiting(now)], tmp_path / "submitit", {})
    next(outcomes)
    process = int(wait_for(never.with_suffix(".pid")))
    assert alive(process)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(600):
        if not alive(process):
            return
        time.sleep(0.05)
    raise AssertionError("the job goes on")


class Failing(Waiting):
    def __call__(self) -> dict[str, Any]:
        raise ValueError("no such picture")


def test_what_a_job_has_raised_is_its_reason(tmp_path: Path) -> None:
    ((_, outcome),) = jobs.run_on_slurm([Failing(tmp_path)], tmp_path / "submitit", {})
    assert isinstance(outcome, jobs.JobError) and str(outcome) == "no such picture"


class WithStandIns:
    """A cell's job that finds stand-ins for ns-train and eval.blender in its process, too."""

    def __init__(self, job: Any, control: Path) -> None:
        self.job, self.control = job, control

    def __call__(self) -> Any:
        for name, what in (("TRAIN", "train"), ("EVALUATE", "evaluate")):
            setattr(benchmark_cells, name, (sys.executable, STAND_IN, what, str(self.control)))
        return self.job()

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(WithStandIns(self.job.checkpoint().function, self.control))


def test_a_cell_whose_time_on_the_cluster_is_over_is_saved_and_queued_again(
    sweep: Sweep,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def submit(executor: Any, job: Any) -> Any:
        return AutoExecutor.submit(executor, WithStandIns(job, sweep.control))

    def executor(folder: Path, cluster: str) -> Any:
        made = AutoExecutor(folder, cluster="local")
        made.submit = lambda job: submit(made, job)
        return made

    def end_the_time() -> None:
        trainer = int(wait_for(sweep.control / "hanging"))
        status = Path(f"/proc/{trainer}/status").read_text()
        job = int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
        sweep.behave_well()
        for process in (trainer, job):  # the cluster's signal reaches all of a job's processes
            os.kill(process, signal.SIGUSR2)

    monkeypatch.setattr(submitit, "AutoExecutor", executor)
    sweep.behave("hang", "mipnerf-cn-one-0")
    thread = threading.Thread(target=end_the_time)
    thread.start()
    status, out, err = sweep.run("--scenes", "one", "--executor", "slurm", "--slurm-gpus", 0)
    thread.join()
    assert status == 0 and "2 of 2 cells are done" in err, out
    starts = [start for start in sweep.starts() if start["cell"] == "mipnerf-cn-one-0"]
    assert len(starts) == 2
    assert "--load-dir" not in starts[0]["options"] and "--load-dir" in starts[1]["options"]
    assert not list(sweep.output.rglob("failure.json"))


class Noted(Cell):
    """A cell that notes its process."""

    def __call__(self) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().__call__()


def test_a_fit_whose_time_on_the_cluster_is_over_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    spec = RunSpec("image", write_image(tmp_path / "a.png"), "relu+cn", "paper", "1x4", steps=4000).completed()
    cell = Noted(spec, tmp_path / "cell")

    def end_the_time() -> None:
        process = int(wait_for(tmp_path / "cell.pids"))
        while not (cell.folder / "checkpoint.pt").exists() and alive(process):
            time.sleep(0.02)
        os.kill(process, signal.SIGUSR2)

    thread = threading.Thread(target=end_the_time)
    thread.start()
    ((_, result),) = jobs.run_on_slurm([cell], tmp_path / "submitit", {})
    thread.join()
    assert isinstance(result, dict), result
    assert len((tmp_path / "cell.pids").read_text().splitlines()) == 2
    assert result["metrics"] == Cell(spec, tmp_path / "undisturbed")()["metrics"]
