"""Trainings that are asked to stop, and trainings whose numbers go bad."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from states import differences
from test_neus_methods import make_config as make_neus_config
from test_trainer import make_config
from trainings import checkpoint_of, make_trainer, run_folder, train

from crossnorm_ns.engine.trainer import CrossNormTrainer
from crossnorm_ns.finite import NonFiniteError, first_non_finite, tensors_in
from crossnorm_ns.interruption import noted_signals

pytestmark = pytest.mark.usefixtures("own_writers", "usual_signals")


# --- Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_training_after_the_step_at_hand_and_it_resumes_exactly(
    tiny_scene: Path, tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    one_go = train(make_config(tiny_scene, tmp_path / "one", max_num_iterations=8))
    trainer = make_trainer(make_config(tiny_scene, tmp_path / "first", max_num_iterations=8))
    get_loss = trainer.pipeline.get_train_loss_dict

    def interrupted(step: int) -> Any:
        if step == 4:
            os.kill(os.getpid(), number)
        return get_loss(step=step)

    trainer.pipeline.get_train_loss_dict = interrupted
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert "saved after step 4" in " ".join(capsys.readouterr().out.split())
    folder = trainer.checkpoint_dir
    assert os.listdir(folder) == ["step-000000004.ckpt"]
    second = train(make_config(tiny_scene, tmp_path / "second", max_num_iterations=8, load_dir=folder))
    assert differences(checkpoint_of(one_go), checkpoint_of(second)) == []


def test_a_second_signal_ends_it_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), noted_signals() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        assert noted == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's background jobs leave it
    with noted_signals() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
    assert noted == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# --- Numbers


def test_first_tensor_that_is_not_finite_is_named() -> None:
    good, ints = torch.ones(3, requires_grad=True), torch.tensor([1, 2])
    assert first_non_finite([]) is None
    assert first_non_finite([("good", good), ("ints", ints), ("empty", torch.empty(0))]) is None
    for bad in (math.nan, math.inf, -math.inf):
        tensors = [("good", good), ("bad", torch.tensor([[0.0, bad]], dtype=torch.float16)), ("after", good * bad)]
        assert first_non_finite(tensors) == "bad"


def test_huge_numbers_are_finite() -> None:
    assert first_non_finite([("huge", torch.full((100,), 3e38))]) is None


def plant_in_image(trainer: CrossNormTrainer) -> None:
    loader: Any = trainer.pipeline.datamanager.train_image_dataloader
    loader.cached_collated_batch["image"][:] = math.nan


def plant_in_camera(trainer: CrossNormTrainer) -> None:
    generator: Any = trainer.pipeline.datamanager.train_ray_generator
    generator.cameras.camera_to_worlds[:, 0, 3] = math.nan


def plant_in_weight(trainer: CrossNormTrainer) -> None:
    parameters = trainer.pipeline.model.named_parameters()
    next(weight for name, weight in parameters if ".weight" in name and weight.ndim == 2).data[0, 0] = math.inf


def plant_in_statistic(trainer: CrossNormTrainer) -> None:
    name = "field.trunk.layers.3.norm.domains.fine.running_var"
    dict(trainer.pipeline.model.named_buffers())[name][0] = math.nan


def raise_learning_rate(trainer: CrossNormTrainer) -> None:
    neus = "neus" in trainer.config.method_name  # its weights are divided by their norm: 1e38 would make them zero
    trainer.optimizers.optimizers["fields"].param_groups[0]["lr"] = 1e15 if neus else 1e38


@pytest.mark.parametrize(
    ("method", "plant", "culprit"),
    [
        ("mipnerf", plant_in_image, "the loss "),
        ("mipnerf", plant_in_camera, "the loss "),
        ("mipnerf", plant_in_weight, "the loss "),
        ("mipnerf", plant_in_statistic, "the statistic field.trunk.layers.3.norm.domains.fine."),
        ("mipnerf", raise_learning_rate, ""),
        ("neus", plant_in_image, "the loss "),
        ("neus", plant_in_camera, "the loss "),
        ("neus", plant_in_weight, "the loss "),
        ("neus", raise_learning_rate, ""),
    ],
)
def test_numbers_that_are_not_finite_end_a_training_and_leave_the_last_good_checkpoint(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    plant: Any,
    culprit: str,
) -> None:
    make, data = (make_config, "tiny_scene") if method == "mipnerf" else (make_neus_config, "scan")
    config = make(request.getfixturevalue(data), tmp_path, max_num_iterations=20, steps_per_save=3)
    trainer = make_trainer(config)
    train_iteration = trainer.train_iteration

    def planted(step: int) -> Any:
        if step == 5:
            plant(trainer)
        return train_iteration(step)

    trainer.train_iteration = planted
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    good = run_folder(config) / "nerfstudio_models" / "step-000000003.ckpt"
    assert error.startswith(("error: step 5: " + culprit, "error: step 6: " + culprit))
    assert f"the last good checkpoint is {good}" in error
    assert os.listdir(good.parent) == [good.name]
    assert first_non_finite(checkpoint_of(run_folder(config))["pipeline"].items()) is None


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_checkpoint_that_calibration_has_spoilt_is_not_written(
    tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], interrupted: bool
) -> None:
    """A camera goes bad behind a step whose numbers are all good: calibration alone sees it, in other rays."""
    config = make_config(tiny_scene, tmp_path, max_num_iterations=20, steps_per_save=3)
    trainer = make_trainer(config)
    train_iteration, good = trainer.train_iteration, run_folder(config) / "nerfstudio_models" / "step-000000003.ckpt"

    def planted(step: int) -> Any:
        if step == 6 and interrupted:
            trainer._signals.append(signal.SIGTERM)
        try:
            return train_iteration(step)
        finally:
            if step == 6:
                plant_in_camera(trainer)

    trainer.train_iteration = planted
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: step 6: pipeline._model.field.trunk."), error
    assert f".mean of the checkpoint to save is not finite, training stops; the last good checkpoint is {good}" in error
    assert os.listdir(good.parent) == [good.name]
    assert first_non_finite(checkpoint_of(run_folder(config))["pipeline"].items()) is None


def test_a_bad_state_of_an_optimizer_is_not_saved(tiny_scene: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tiny_scene, tmp_path, max_num_iterations=2))
    trainer.train()
    state = trainer.optimizers.optimizers["fields"].state
    next(iter(state.values()))["exp_avg_sq"][0] = math.inf
    with pytest.raises(NonFiniteError, match=r"step 7: optimizers\.fields\.state\.0\.exp_avg_sq of the checkpoint"):
        trainer.save_checkpoint(7)
    assert os.listdir(trainer.checkpoint_dir) == ["step-000000001.ckpt"]


def test_tensors_are_found_in_whatever_holds_them() -> None:
    ones, entangled, deep = torch.ones(1), [], {}
    for _ in range(60):
        entangled, deep = [entangled, entangled], {"a": deep}
    for _ in range(10_000):
        deep = [deep]
    content = {"a": {"b": ones, 3: [1, (ones,)]}, ("key",): ones, "c": entangled, "d": deep, "e": None}
    assert [name for name, _ in tensors_in(content)] == ["a.b", "a.3.1.0", "tuple"]
