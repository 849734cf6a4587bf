"""Trainings in two processes: own rays, one model, common calibration, exact resume, and what ends both of them."""

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.scripts import train as ns_train
from nerfstudio.utils import writer
from processes import in_processes, needs_gloo, samples_without_chance, started
from states import differences
from test_trainer import make_config
from trainings import checkpoint_of, run_folder, train

from crossnorm_ns.engine.random_state import preserved_random_state
from crossnorm_ns.engine.trainer import CrossNormTrainer, CrossNormTrainerConfig
from crossnorm_ns.norms import calibrate

pytestmark = [needs_gloo, pytest.mark.usefixtures("own_writers")]
STEPS, RANKS = 4, range(2)


def make_trainer(rank: int, config: CrossNormTrainerConfig) -> CrossNormTrainer:
    """What ns-train sets up in each of its processes, before the first step."""
    writer.EVENT_WRITERS.clear(), writer.EVENT_STORAGE.clear(), writer.GLOBAL_BUFFER.clear()
    config = copy.deepcopy(config)
    config.pipeline.datamanager.data = config.data
    if rank == 0:
        config.save_config()
    ns_train._set_random_seed(config.machine.seed + rank)
    trainer: Any = config.setup(local_rank=rank, world_size=len(RANKS))
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


@pytest.fixture(scope="module")
def configs(tiny_scene, tmp_path_factory) -> dict[str, CrossNormTrainerConfig]:
    output = tmp_path_factory.mktemp("output")

    def config(name: str, behind: str | None = None, **changes: Any) -> CrossNormTrainerConfig:
        load_dir = (
            None if behind is None else output / behind / "tiny" / "mipnerf-cn-tiny" / "run" / "nerfstudio_models"
        )
        return make_config(tiny_scene, output / name, **({"max_num_iterations": STEPS, "load_dir": load_dir} | changes))

    busy = {"steps_per_save": 2, "steps_per_eval_batch": 2, "steps_per_eval_image": 3}
    return {
        "one go": config("one go"),
        "first half": config("first half", max_num_iterations=2, **busy),
        "second half": config("second half", behind="first half", **busy),
        "signalled": config("signalled"),
        "behind the signal": config("behind the signal", behind="signalled"),
    }


@pytest.fixture(scope="module")
def ranks(configs, tmp_path_factory) -> list[dict[str, Any]]:
    with samples_without_chance():
        return in_processes(len(RANKS), tmp_path_factory.mktemp("ranks"), train_all, configs)


def checkpoint(configs: dict[str, CrossNormTrainerConfig], name: str) -> dict[str, Any]:
    return checkpoint_of(run_folder(configs[name]))


def test_processes_draw_their_own_rays_and_end_with_one_model(ranks):
    assert differences(ranks[0]["state"], ranks[1]["state"]) == []
    first, second = (rank["rays of the last calibration"][0]["directions"] for rank in ranks)
    assert not torch.equal(first, second)


def test_calibration_is_that_of_one_process_with_the_rays_of_all(ranks, configs):
    state = {
        name.removeprefix("_model.module."): value
        for name, value in checkpoint(configs, "one go")["pipeline"].items()
        if name.startswith("_model.")
    }
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = configs["one go"].pipeline.model.setup(scene_box=box, num_train_data=6)
    model.load_state_dict(state)
    for buffer in model.buffers():
        buffer.fill_(7.0)

    def both(batch: int) -> RayBundle:
        one, other = (rank["rays of the last calibration"][batch] for rank in ranks)
        metadata = {name: torch.cat([one["metadata"][name], other["metadata"][name]]) for name in one["metadata"]}
        parts = {name: torch.cat([one[name], other[name]]) for name in one if name != "metadata"}
        return RayBundle(**parts, metadata=metadata)

    with samples_without_chance():
        calibrate(model, [(both(batch),) for batch in range(configs["one go"].calibration_batches)])
    stored = [name for name, _ in model.named_buffers() if ".domains." in name and ".running_" not in name]
    assert stored
    for name, value in model.named_buffers():
        if name in stored:
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("ranks")
def test_resumed_processes_go_on_to_the_bit(configs):
    whole = checkpoint(configs, "one go")
    assert len(whole["random_states"]) == len(RANKS)
    assert differences(*whole["random_states"])
    assert differences(whole, checkpoint(configs, "first half"))
    assert differences(whole, checkpoint(configs, "second half")) == []


def test_a_signal_to_one_process_ends_all_after_the_same_step_and_they_resume(ranks, configs):
    assert [rank["exit code"] for rank in ranks] == [128 + signal.SIGTERM] * len(RANKS)
    assert checkpoint(configs, "signalled")["step"] == 1
    assert differences(checkpoint(configs, "one go"), checkpoint(configs, "behind the signal")) == []


@pytest.mark.usefixtures("ranks")
def test_one_process_resumes_what_two_have_saved_and_two_resume_what_one_has_saved(
    configs: dict[str, CrossNormTrainerConfig], tiny_scene: Path, tmp_path: Path
) -> None:
    def config(name: str, steps: int, behind: CrossNormTrainerConfig) -> CrossNormTrainerConfig:
        load_dir = run_folder(behind) / "nerfstudio_models"
        return make_config(tiny_scene, tmp_path / name, max_num_iterations=steps, load_dir=load_dir)

    alone = config("alone", STEPS, configs["first half"])
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


def lose_one_of_two(config: CrossNormTrainerConfig, number: int, folder: Path) -> int | None:
    """Exit code of a process whose partner sends itself a signal in step 3; None where it goes on for a minute."""
    processes = started(2, folder, train_until_lost, config, number)
    processes[0].join(60)
    exit_code = processes[0].exitcode
    for process in processes:
        process.kill()
        process.join()
    return exit_code


def assert_said(error: str, cause: str, checkpoint: Path) -> None:
    assert os.listdir(checkpoint.parent) == [checkpoint.name]
    said = f"error: step 3: another process of this training {cause}; the last checkpoint is {checkpoint}: "
    assert error.strip().splitlines()[-1].startswith(said)


@pytest.mark.usefixtures("ranks")
def test_a_killed_process_ends_the_other_at_once_and_they_resume_to_the_bit(
    configs: dict[str, CrossNormTrainerConfig], tiny_scene: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tiny_scene, tmp_path / "lost", max_num_iterations=STEPS, steps_per_save=2)
    resumed = make_config(tiny_scene, tmp_path / "resumed", max_num_iterations=STEPS)
    resumed.load_dir = run_folder(config) / "nerfstudio_models"
    (tmp_path / "again").mkdir()
    with samples_without_chance():
        assert lose_one_of_two(config, signal.SIGKILL, tmp_path) == 1
        assert_said(capfd.readouterr().err, "has ended", resumed.load_dir / "step-000000002.ckpt")
        in_processes(2, tmp_path / "again", resume, resumed)
    assert differences(checkpoint(configs, "one go"), checkpoint_of(run_folder(resumed))) == []


def test_a_process_that_hangs_ends_the_other_after_the_timeout(
    tiny_scene: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tiny_scene, tmp_path, max_num_iterations=STEPS, steps_per_save=2, process_timeout=2.0)
    assert lose_one_of_two(config, signal.SIGSTOP, tmp_path) == 1
    good = run_folder(config) / "nerfstudio_models" / "step-000000002.ckpt"
    assert_said(capfd.readouterr().err, "does not answer", good)
