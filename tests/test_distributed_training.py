"""Trainings in two and four processes: own rays, one model, common calibration, exact resume, what ends them all."""

import copy
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import test_neus_methods
import test_trainer
import test_volsdf
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.scripts import train as ns_train
from nerfstudio.utils import writer
from processes import in_processes, needs_gloo, samples_without_chance, started
from states import differences
from torch import distributed
from trainings import checkpoint_of, run_folder, train

from crossnorm_ns.engine.random_state import preserved_random_state
from crossnorm_ns.engine.trainer import CrossNormTrainer, CrossNormTrainerConfig
from crossnorm_ns.norms import calibrate

pytestmark = [needs_gloo, pytest.mark.usefixtures("own_writers")]
STEPS = 4
MAKERS = {
    "mip-NeRF": test_trainer.make_config,
    "NeuS": test_neus_methods.make_config,
    "VolSDF": test_volsdf.make_config,
}


class Case(NamedTuple):
    """What is trained, and by how many processes; four of them take the statistics of batches."""

    method: str
    processes: int

    def __str__(self) -> str:
        return f"{self.method} in {self.processes}"


MIPNERF, NEUS, VOLSDF = (Case(method, 2) for method in MAKERS)
CASES = [MIPNERF, NEUS, VOLSDF, Case("mip-NeRF", 4), Case("NeuS", 4)]


class Run(NamedTuple):
    """Trainings of a case, and what each process knows of them."""

    case: Case
    configs: dict[str, CrossNormTrainerConfig]
    ranks: list[dict[str, Any]]

    def checkpoint(self, name: str) -> dict[str, Any]:
        return checkpoint_of(run_folder(self.configs[name]))


def make_config(case: Case, scenes: dict[str, Path], output: Path, **changes: Any) -> CrossNormTrainerConfig:
    config = MAKERS[case.method](scenes[case.method], output, **({"max_num_iterations": STEPS} | changes))
    config.optimizers["fields"]["scheduler"].max_steps = STEPS
    model: Any = config.pipeline.model
    if case.method == "mip-NeRF":
        model.depth = 3
    if case.processes > 2:
        model.norm_statistics, config.calibration_batches = "batch", 1
    return config


@pytest.fixture(scope="module")
def scenes(tiny_scene: Path, scan: Path) -> dict[str, Path]:
    return {"mip-NeRF": tiny_scene, "NeuS": scan, "VolSDF": scan}


def make_trainer(rank: int, config: CrossNormTrainerConfig) -> CrossNormTrainer:
    """What ns-train sets up in each of its processes, before the first step."""
    writer.EVENT_WRITERS.clear(), writer.EVENT_STORAGE.clear(), writer.GLOBAL_BUFFER.clear()
    config = copy.deepcopy(config)
    config.pipeline.datamanager.data = config.data
    if rank == 0:
        config.save_config()
    ns_train._set_random_seed(config.machine.seed + rank)
    trainer: Any = config.setup(local_rank=rank, world_size=distributed.get_world_size())
    trainer.setup()
    return trainer


def signalled_at(trainer: CrossNormTrainer, step: int, number: int) -> None:
    """Lets the process send itself a signal in the middle of a step."""
    get_loss = trainer.pipeline.get_train_loss_dict

    def interrupted(*, step: int = step, at: int = step) -> Any:
        if step == at:
            os.kill(os.getpid(), number)
        return get_loss(step=step)

    trainer.pipeline.get_train_loss_dict = interrupted


def tensors_of(rays: RayBundle) -> dict[str, Any]:
    assert rays.metadata is not None
    return {name: getattr(rays, name) for name in ("origins", "directions", "pixel_area")} | {"metadata": rays.metadata}


def train_all(rank: int, configs: dict[str, CrossNormTrainerConfig]) -> dict[str, Any]:
    """Several trainings one behind the other, and what one process knows of them."""
    trainer = make_trainer(rank, configs["one go"])
    trainer.train()
    with preserved_random_state():
        rays = [tensors_of(rays) for (rays,) in trainer._training_rays(trainer.config.calibration_batches)]
    found = {"state": trainer.pipeline.model.state_dict(), "rays of the last calibration": rays}
    make_trainer(rank, configs["first half"]).train()
    make_trainer(rank, configs["second half"]).train()
    if "signalled" in configs:
        trainer = make_trainer(rank, configs["signalled"])
        if rank == 1:
            signalled_at(trainer, 1, signal.SIGTERM)
        try:
            trainer.train()
        except SystemExit as end:
            found["exit code"] = end.code
        make_trainer(rank, configs["behind the signal"]).train()
    return found


def resume(rank: int, config: CrossNormTrainerConfig) -> None:
    make_trainer(rank, config).train()


def make_run(case: Case, scenes: dict[str, Path], output: Path, ranks: Path) -> Run:
    def config(name: str, behind: str | None = None, **changes: Any) -> CrossNormTrainerConfig:
        if behind is not None:
            changes["load_dir"] = run_folder(configs[behind]) / "nerfstudio_models"
        return make_config(case, scenes, output / name, **changes)

    busy = {"steps_per_save": 2}
    if case.processes == 2:
        busy |= {"steps_per_eval_batch": 2, "steps_per_eval_image": 3}
    configs = {"one go": config("one go"), "first half": config("first half", max_num_iterations=2, **busy)}
    configs["second half"] = config("second half", behind="first half", **busy)
    if case == MIPNERF:
        configs["signalled"] = config("signalled")
        configs["behind the signal"] = config("behind the signal", behind="signalled")
    with samples_without_chance():
        return Run(case, configs, in_processes(case.processes, ranks, train_all, configs))


@pytest.fixture(scope="module")
def runs(scenes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Run]:
    """Makes the trainings of a case once."""
    return functools.cache(
        lambda case: make_run(case, scenes, tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("ranks"))
    )


@pytest.fixture(params=CASES, ids=str)
def run(runs: Callable[[Case], Run], request: pytest.FixtureRequest) -> Run:
    return runs(request.param)


def test_processes_draw_their_own_rays_and_end_with_one_model(run: Run) -> None:
    first, *others = run.ranks
    for other in others:
        assert differences(first["state"], other["state"]) == []
    drawn = [rank["rays of the last calibration"][0]["directions"] for rank in run.ranks]
    assert len({tuple(directions.flatten().tolist()) for directions in drawn}) == run.case.processes


@pytest.mark.parametrize("run", [MIPNERF, Case("NeuS", 4)], ids=str, indirect=True)
def test_calibration_is_that_of_one_process_with_the_rays_of_all(run: Run) -> None:
    state = {
        name.removeprefix("_model.module."): value
        for name, value in run.checkpoint("one go")["pipeline"].items()
        if name.startswith("_model.")
    }
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = run.configs["one go"].pipeline.model.setup(scene_box=box, num_train_data=6)
    model.load_state_dict(state)
    stored = [name for name, _ in model.named_buffers() if ".domains." in name and ".running_" not in name]
    assert stored
    for name, buffer in model.named_buffers():
        if name in stored:
            buffer.fill_(7.0)

    def of_all(batch: int) -> RayBundle:
        parts = [rank["rays of the last calibration"][batch] for rank in run.ranks]
        metadata = {name: torch.cat([part["metadata"][name] for part in parts]) for name in parts[0]["metadata"]}
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "metadata"}
        return RayBundle(**tensors, metadata=metadata)

    with samples_without_chance():
        calibrate(model, [(of_all(batch),) for batch in range(run.configs["one go"].calibration_batches)])
    for name, value in model.named_buffers():
        if name in stored:
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5, msg=name)


def test_resumed_processes_go_on_to_the_bit(run: Run) -> None:
    whole = run.checkpoint("one go")
    first, *others = whole["random_states"]
    assert len(others) == run.case.processes - 1
    assert all(differences(first, other) for other in others)
    assert differences(whole, run.checkpoint("first half"))
    assert differences(whole, run.checkpoint("second half")) == []


def test_a_signal_to_one_process_ends_all_after_the_same_step_and_they_resume(runs: Callable[[Case], Run]) -> None:
    run = runs(MIPNERF)
    assert [rank["exit code"] for rank in run.ranks] == [128 + signal.SIGTERM] * 2
    assert run.checkpoint("signalled")["step"] == 1
    assert differences(run.checkpoint("one go"), run.checkpoint("behind the signal")) == []


def test_one_process_resumes_what_two_have_saved_and_two_resume_what_one_has_saved(
    runs: Callable[[Case], Run], scenes: dict[str, Path], tmp_path: Path
) -> None:
    def config(name: str, steps: int, behind: CrossNormTrainerConfig) -> CrossNormTrainerConfig:
        load_dir = run_folder(behind) / "nerfstudio_models"
        return make_config(MIPNERF, scenes, tmp_path / name, max_num_iterations=steps, load_dir=load_dir)

    alone = config("alone", STEPS, runs(MIPNERF).configs["first half"])
    train(alone)
    assert checkpoint_of(run_folder(alone))["step"] == STEPS - 1
    together = config("together", STEPS + 1, alone)
    in_processes(2, tmp_path, resume, together)
    assert checkpoint_of(run_folder(together))["step"] == STEPS


# --- Processes that are lost


def train_until_lost(rank: int, config: CrossNormTrainerConfig, number: int) -> None:
    trainer = make_trainer(rank, config)
    if rank == 1:
        signalled_at(trainer, 3, number)
    trainer.train()


def lose_one(count: int, config: CrossNormTrainerConfig, number: int, folder: Path) -> list[int | None]:
    """Exit codes of processes one of which sends itself a signal in step 3; None of one that goes on for a minute."""
    processes = started(count, folder, train_until_lost, config, number)
    others = [process for rank, process in enumerate(processes) if rank != 1]
    for process in others:
        process.join(60)
    exit_codes = [process.exitcode for process in others]
    for process in processes:
        process.kill()
        process.join()
    return exit_codes


def assert_said(error: str, cause: str, checkpoint: Path, times: int = 1) -> None:
    assert os.listdir(checkpoint.parent) == [checkpoint.name]
    said = f"error: step 3: another process of this training {cause}; the last checkpoint is {checkpoint}: "
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == times
    assert all(line.startswith(said) for line in lines)


@pytest.mark.parametrize("case", [MIPNERF, NEUS, VOLSDF, Case("NeuS", 4)], ids=str)
def test_a_killed_process_ends_the_others_at_once_and_they_resume_to_the_bit(
    case: Case,
    runs: Callable[[Case], Run],
    scenes: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = make_config(case, scenes, tmp_path / "lost", steps_per_save=2)
    resumed = make_config(case, scenes, tmp_path / "resumed")
    resumed.load_dir = run_folder(config) / "nerfstudio_models"
    (tmp_path / "again").mkdir()
    whole = runs(case).checkpoint("one go")
    capfd.readouterr()
    with samples_without_chance():
        assert lose_one(case.processes, config, signal.SIGKILL, tmp_path) == [1] * (case.processes - 1)
        good = resumed.load_dir / "step-000000002.ckpt"
        assert_said(capfd.readouterr().err, "has ended", good, case.processes - 1)
        in_processes(case.processes, tmp_path / "again", resume, resumed)
    assert differences(whole, checkpoint_of(run_folder(resumed))) == []


def test_a_process_that_hangs_ends_the_other_after_the_timeout(
    scenes: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(MIPNERF, scenes, tmp_path, steps_per_save=2, process_timeout=2.0)
    assert lose_one(2, config, signal.SIGSTOP, tmp_path) == [1]
    good = run_folder(config) / "nerfstudio_models" / "step-000000002.ckpt"
    assert_said(capfd.readouterr().err, "does not answer", good)
