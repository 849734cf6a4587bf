"""torchrun's way into a training: what ns-train does, once for all processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from processes import needs_gloo
from test_trainer import make_config
from trainings import checkpoint_of

from crossnorm_ns.engine import launch
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig

pytestmark = [needs_gloo, pytest.mark.usefixtures("own_writers")]
long_form = pytest.mark.skipif(os.environ.get("CROSSNORM_FAULTS") != "long", reason="set CROSSNORM_FAULTS=long")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def as_torchrun_does(rank: int, port: int, config: CrossNormTrainerConfig) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    launch.run(config)


def exit_codes(config: CrossNormTrainerConfig) -> list[int | None]:
    port, context = free_port(), get_context("fork")
    processes = [context.Process(target=as_torchrun_does, args=(rank, port, config)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_processes_share_one_run_folder_though_each_would_name_its_own(tiny_scene: Path, tmp_path: Path) -> None:
    config = make_config(tiny_scene, tmp_path, max_num_iterations=2, timestamp="{timestamp}")
    assert exit_codes(config) == [0, 0]
    (run,) = (tmp_path / "tiny" / "mipnerf-cn-tiny").iterdir()
    assert (run / "config.yml").exists()
    assert len(checkpoint_of(run)["random_states"]) == 2


def test_data_that_the_first_process_refuses_end_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path / "missing", tmp_path / "output")
    assert exit_codes(config) == [2, 1]
    said = capfd.readouterr().err
    assert "missing" in said and "error: another process of this training has ended" in said
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("run_id", "changes", "error"),
    [(None, {}, "torchrun"), ("test", {"load_config": Path("config.yml")}, "--load-config")],
)
def test_what_it_cannot_do_ends_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_id: str | None,
    changes: dict[str, Any],
    error: str,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if run_id is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    with pytest.raises(SystemExit) as end:
        launch.run(make_config(tmp_path, tmp_path, **changes))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and error in line


# --- The real torchrun


def torchrun(output: Path, scene: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "crossnorm_ns.engine.launch",
    ]
    command += ["mipnerf-cn-tiny", "--machine.device-type", "cpu", "--output-dir", str(output), "--timestamp", "run"]
    command += ["--pipeline.datamanager.train-num-rays-per-batch", "16", "--steps-per-save", "2", *options]
    return subprocess.Popen([*command, "--data", str(scene)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(child) for child in children)


@long_form
@pytest.mark.parametrize(
    ("number", "to_torchrun", "said"),
    [(signal.SIGKILL, False, "another process of this training has ended"), (signal.SIGTERM, True, "saved after step")],
    ids=["one process killed", "torchrun told to end"],
)
def test_torchrun_trains_ends_and_resumes(
    tiny_scene: Path, tmp_path: Path, number: signal.Signals, to_torchrun: bool, said: str
) -> None:
    process = torchrun(tmp_path / "first", tiny_scene, "--max-num-iterations", "100000")
    folder = tmp_path / "first" / "tiny" / "mipnerf-cn-tiny" / "run" / "nerfstudio_models"
    while not list(folder.glob("*.ckpt")):
        assert process.poll() is None
        time.sleep(0.5)
    os.kill(process.pid if to_torchrun else workers_of(process)[-1], number)
    assert said in "".join(process.communicate(timeout=120))
    assert process.returncode != 0
    (checkpoint,) = folder.glob("*.ckpt")
    steps = int(checkpoint.stem.removeprefix("step-")) + 3
    resumed = torchrun(tmp_path / "second", tiny_scene, "--max-num-iterations", str(steps), "--load-dir", str(folder))
    resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    run = tmp_path / "second" / "tiny" / "mipnerf-cn-tiny" / "run"
    assert checkpoint_of(run)["step"] == steps - 1
