"""Training that can be stopped, killed and resumed at any moment without a trace in its result."""

import copy
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.scripts import train as ns_train
from nerfstudio.utils.eval_utils import eval_setup
from states import differences
from trainings import checkpoint_of, configured, load, make_trainer, run_folder, train

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.engine import trainer as trainer_module
from crossnorm_ns.engine.random_state import capture_random_state, preserved_random_state, restore_random_state
from crossnorm_ns.engine.trainer import CrossNormTrainer, CrossNormTrainerConfig
from crossnorm_ns.norms import norms_of
from method_configs.mipnerf import tiny_config

pytestmark = pytest.mark.usefixtures("own_writers")
FOLDER_FROM_STEP = "nerfstudio_models/step-{:09d}.ckpt"


def make_config(scene: Path, output: Path, norm: str = "cn", **changes: Any) -> CrossNormTrainerConfig:
    """Twenty steps of a very small network, without evaluations or saves on the way unless `changes` say so."""
    config = tiny_config("mipnerf-cn-tiny", norm, 1e-2, steps=20)
    config.optimizers["fields"]["scheduler"].max_steps = 20
    config.pipeline.datamanager.train_num_rays_per_batch = 32
    config.pipeline.datamanager.eval_num_rays_per_batch = 32
    model: Any = config.pipeline.model
    model.width, model.head_width, model.num_samples, model.point_degrees = 8, 8, 6, 4
    return configured(config, scene, output, **changes)


# --- Resuming


@pytest.mark.parametrize("statistics", ["batch", "renorm"])
def test_stopping_saving_and_evaluating_leave_no_trace(tiny_scene: Path, tmp_path: Path, statistics: str):
    """Twenty steps in one go, with saves and evaluations on the way, and as ten and ten more: the same bits."""

    def config_in(name: str, **changes: Any) -> CrossNormTrainerConfig:
        config = make_config(tiny_scene, tmp_path / name, **changes)
        model: Any = config.pipeline.model
        model.norm_statistics = statistics
        return config

    one_go = checkpoint_of(train(config_in("one go")))
    interrupted = {
        "steps_per_save": 5,
        "steps_per_eval_batch": 3,
        "steps_per_eval_image": 4,
        "steps_per_eval_all_images": 7,
    }
    busy = checkpoint_of(train(config_in("busy", **interrupted)))
    first = train(config_in("first", max_num_iterations=10, steps_per_eval_image=4))
    folder = first / "nerfstudio_models"
    second = train(config_in("second", load_dir=folder, steps_per_save=5, steps_per_eval_batch=3))
    resumed = checkpoint_of(second)

    assert os.listdir(folder) == ["step-000000009.ckpt"]
    assert os.listdir(second / "nerfstudio_models") == ["step-000000019.ckpt"]
    assert one_go["step"] == 19
    assert any("running_mean" in name for name in one_go["pipeline"])
    assert one_go["optimizers"]["fields"]["state"][0]["step"] == 20
    assert differences(one_go, checkpoint_of(first)), "ten steps must differ from twenty"
    assert differences(one_go, busy) == []
    assert differences(one_go, resumed) == []


def test_resuming_from_a_checkpoint_file_is_exact_too(tiny_scene: Path, tmp_path: Path):
    one_go = train(make_config(tiny_scene, tmp_path / "one", max_num_iterations=6, steps_per_save=2))
    first = train(make_config(tiny_scene, tmp_path / "first", max_num_iterations=3))
    path = first / FOLDER_FROM_STEP.format(2)
    second = train(make_config(tiny_scene, tmp_path / "second", max_num_iterations=6, load_checkpoint=path))
    assert differences(checkpoint_of(one_go), checkpoint_of(second)) == []


def matrix_of(content: dict[str, Any]) -> str:
    """Name of a weight."""
    return next(name for name, value in content["pipeline"].items() if value.dim() == 2)


def without_a_weight(content: dict[str, Any]) -> None:
    del content["pipeline"][matrix_of(content)]


def without_optimizers(content: dict[str, Any]) -> None:
    del content["optimizers"]


def with_a_weight_of_another_shape(content: dict[str, Any]) -> None:
    content["pipeline"][matrix_of(content)] = torch.zeros(1, 1)


def refusal_to_go_on(
    path: Path, damage: Callable[[dict[str, Any]], None], scene: Path, output: Path, capsys: pytest.CaptureFixture
) -> str:
    """The line that names a damaged checkpoint, before anything is written."""
    content = load(path)
    damage(content)
    torch.save(content, path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train(make_config(scene, output, max_num_iterations=4, load_checkpoint=path))
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert str(path) in line
    assert not output.exists()
    return line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_a_weight, "lacks 1 weights of the model, such as field."),
        (without_optimizers, "does not fit"),
        (with_a_weight_of_another_shape, "does not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    damage: Callable[[dict[str, Any]], None], said: str, tiny_scene: Path, tmp_path: Path, capsys
):
    path = train(make_config(tiny_scene, tmp_path / "first", max_num_iterations=2)) / FOLDER_FROM_STEP.format(1)
    assert said in refusal_to_go_on(path, damage, tiny_scene, tmp_path / "second", capsys)


def with_group(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["optimizers"]["fields"]["param_groups"][0].update(changes)


def with_schedule(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["schedulers"]["fields"].update(changes)


def with_random_states(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(random_states=change(content["random_states"][0]))


def without_a_moment(content: dict[str, Any]) -> None:
    del content["optimizers"]["fields"]["state"][0]["exp_avg"]


def with_moments_of_another_shape(content: dict[str, Any]) -> None:
    content["optimizers"]["fields"]["state"][0]["exp_avg"] = torch.zeros(7)


def behind_its_words(state: dict[str, Any]) -> list[dict[str, Any]]:
    name, words, _, *gauss = state["numpy"]
    return [{**state, "numpy": (name, words, 10**6, *gauss)}]


OTHER_STATES = {
    "a rate in letters": with_group(lr="x"),
    "a rate of NaN": with_group(lr=math.nan),
    "one beta": with_group(betas=(5,)),
    "betas above 1": with_group(betas=(5.0, 5.0)),
    "an eps of NaN": with_group(eps=math.nan),
    "no first moment": without_a_moment,
    "moments of another shape": with_moments_of_another_shape,
    "an epoch in letters": with_schedule(last_epoch="x"),
    "base rates of NaN": with_schedule(base_lrs=[math.nan]),
    "base rates of two groups": with_schedule(base_lrs=[0.1, 0.1]),
    "a schedule whose step is a text": with_schedule(step="x"),
    "a schedule of another optimizer": with_schedule(optimizer="x"),
    "random states of 5": with_random_states(lambda state: [5]),
    "random states in letters": with_random_states(lambda state: "abc"),
    "random states without Python's": with_random_states(lambda state: [{**state, "python": None}]),
    "random states behind their words": with_random_states(behind_its_words),
    "an absurd step": lambda content: content.update(step=10**30),
}


def test_a_trainer_takes_no_states_that_no_training_can_go_on_from(trainer: CrossNormTrainer, capsys):
    path, taken = trainer.checkpoint_dir / "step-000000001.ckpt", []
    whole, optimizers = path.read_bytes(), trainer.optimizers
    for damage, change in OTHER_STATES.items():
        path.write_bytes(whole)
        trainer.optimizers = copy.deepcopy(optimizers)
        content = load(path)
        change(content)
        torch.save(content, path)
        capsys.readouterr()
        try:
            trainer._resume(path)
        except (SystemExit, DataError) as refused:
            said = str(refused) if isinstance(refused, DataError) else capsys.readouterr().err
            if said.count("\n") <= 1 and str(path) in said:
                continue
        taken.append(damage)
    assert taken == []
    path.write_bytes(whole)
    trainer.optimizers = optimizers
    trainer._resume(path)


def test_a_scaler_of_gradients_that_is_not_finite_is_not_taken(trainer: CrossNormTrainer):
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    content = load(trainer.checkpoint_dir / "step-000000001.ckpt")
    good = trainer.grad_scaler.state_dict()
    trainer._take({**content, "scalers": good})
    with pytest.raises(ValueError, match="scaler is not finite"):
        trainer._take({**content, "scalers": {**good, "scale": math.nan}})


@pytest.mark.parametrize("damage", ["base rates of NaN", "random states of 5"])
def test_states_that_no_training_can_go_on_from_are_refused_before_anything_is_written(
    damage: str, trainer: CrossNormTrainer, tiny_scene: Path, tmp_path: Path, capsys
):
    path = trainer.checkpoint_dir / "step-000000001.ckpt"
    refusal_to_go_on(path, OTHER_STATES[damage], tiny_scene, tmp_path / "second", capsys)


def test_a_checkpoint_with_numbers_of_numpy_is_gone_on_from(tiny_scene: Path, tmp_path: Path):
    """As nerfstudio's own trainer writes them: its decaying schedules compute with numpy."""
    first = train(make_config(tiny_scene, tmp_path / "first", max_num_iterations=3))
    path = first / FOLDER_FROM_STEP.format(2)
    expected = train(make_config(tiny_scene, tmp_path / "second", max_num_iterations=6, load_checkpoint=path))
    content = load(path)
    for numbers in (content["schedulers"]["fields"]["_last_lr"], content["schedulers"]["fields"]["base_lrs"]):
        numbers[:] = map(np.float64, numbers)
    content["optimizers"]["fields"]["param_groups"][0]["lr"] = np.float64(
        content["optimizers"]["fields"]["param_groups"][0]["lr"]
    )
    torch.save(content, path)
    found = train(make_config(tiny_scene, tmp_path / "third", max_num_iterations=6, load_checkpoint=path))
    assert differences(checkpoint_of(expected), checkpoint_of(found)) == []


@pytest.mark.parametrize("vis", ["tensorboard", "viewer"])
def test_a_resumed_run_has_the_configuration_of_a_new_one(vis: str, tiny_scene: Path, tmp_path: Path):
    first = train(make_config(tiny_scene, tmp_path / "first", max_num_iterations=2))
    folder = first / "nerfstudio_models"
    config = make_config(tiny_scene, tmp_path / "second", max_num_iterations=4, load_dir=folder, vis=vis)
    config.pipeline.datamanager.data = config.data
    config.save_config()
    assert not (tmp_path / "second").exists()
    config.set_experiment_name()
    expected = copy.deepcopy(config)
    trainer: Any = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    assert yaml.load((run_folder(config) / "config.yml").read_text(), Loader=yaml.Loader) == expected
    trainer.shutdown()


def with_a_weight_of_nan(content: dict[str, Any]) -> str:
    content["pipeline"][matrix_of(content)][0, 0] = math.nan
    return f"pipeline.{matrix_of(content)} is not finite"


def with_a_moment_of_inf(content: dict[str, Any]) -> str:
    content["optimizers"]["fields"]["state"][0]["exp_avg"][0] = math.inf
    return "optimizers.fields.state.0.exp_avg is not finite"


def with_a_moment_of_10_to_the_12(content: dict[str, Any]) -> str:
    content["optimizers"]["fields"]["state"][0]["exp_avg"] = torch.full((1,), math.nan).expand(10**6, 10**6)
    return "optimizers.fields.state.0.exp_avg is not finite"


def with_a_sparse_moment(content: dict[str, Any]) -> str:
    content["optimizers"]["fields"]["state"][0]["exp_avg"] = torch.eye(3).to_sparse()
    return "holds more than tensors and numbers"


@pytest.mark.parametrize(
    "damage", [with_a_weight_of_nan, with_a_moment_of_inf, with_a_moment_of_10_to_the_12, with_a_sparse_moment]
)
@pytest.mark.parametrize("option", ["load_dir", "load_checkpoint"])
def test_training_does_not_go_on_from_numbers_that_are_not_finite(
    damage: Callable[[dict[str, Any]], str], option: str, trainer: CrossNormTrainer, tiny_scene, tmp_path, capsys
):
    path = trainer.checkpoint_dir / "step-000000001.ckpt"
    content = load(path)
    said = damage(content)
    torch.save(content, path)
    capsys.readouterr()
    place = path if option == "load_checkpoint" else path.parent
    with pytest.raises(SystemExit) as end:
        train(make_config(tiny_scene, tmp_path / "second", max_num_iterations=4, **{option: place}))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line and str(path) in line
    assert not (tmp_path / "second").exists()


def test_finished_training_says_that_nothing_is_left(tiny_scene: Path, tmp_path: Path, capsys):
    first = train(make_config(tiny_scene, tmp_path / "first", max_num_iterations=2))
    capsys.readouterr()
    config = make_config(
        tiny_scene, tmp_path / "second", max_num_iterations=2, load_dir=first / "nerfstudio_models"
    )
    second = train(config)
    said = " ".join(capsys.readouterr().out.split())
    assert "The checkpoint has 2 steps already: nothing is left of --max-num-iterations 2." in said
    assert not (second / "nerfstudio_models").exists()


def test_schedule_without_an_end_of_its_own_ends_with_the_run(tiny_scene: Path, tmp_path: Path):
    config = make_config(tiny_scene, tmp_path, max_num_iterations=4)
    scheduler = config.optimizers["fields"]["scheduler"]
    scheduler.max_steps, scheduler.delay_steps, scheduler.final_multiplier = None, 0, 0.05
    run = train(config)
    assert checkpoint_of(run)["schedulers"]["fields"]["_last_lr"] == [pytest.approx(0.05 * 1e-2)]
    assert "max_steps: null" in (run / "config.yml").read_text(), "a longer run may follow with the same config"


def test_random_state_survives_a_checkpoint(tmp_path: Path):
    torch.save(capture_random_state(), tmp_path / "state.pt")
    drawn = random.random(), np.random.normal(), torch.rand(3)
    restore_random_state(load(tmp_path / "state.pt"))
    again = random.random(), np.random.normal(), torch.rand(3)
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])


def test_preserved_random_state_forgets_what_was_drawn_even_after_an_error():
    before = capture_random_state()
    with pytest.raises(KeyError), preserved_random_state():
        random.random(), np.random.normal(), torch.rand(3)
        raise KeyError
    assert random.getstate() == before["python"]
    assert differences(before, capture_random_state()) == []


# --- Saving


@pytest.fixture
def trainer(tiny_scene: Path, tmp_path: Path) -> CrossNormTrainer:
    """After two steps and one save (of step 1)."""
    trainer = make_trainer(make_config(tiny_scene, tmp_path, max_num_iterations=2))
    trainer.train()
    return trainer


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_writing(patch: pytest.MonkeyPatch) -> None:
    def save_half(content: Any, file: Any) -> None:
        save(content, file)
        file.truncate(file.tell() // 2)
        kill()

    save = torch.save
    patch.setattr(torch, "save", save_half)


def kill_at_call(number: int, owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        calls = []

        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                kill()
            return original(*arguments, **options)

        original = getattr(owner, name)
        patch.setattr(owner, name, counted)

    return arrange


MOMENTS = {
    "half of it written": kill_while_writing,
    "before the file reaches the disk": kill_at_call(1, os, "fsync"),
    "before the rename": kill_at_call(1, Path, "replace"),
    "after the rename": kill_at_call(2, os, "fsync"),
    "before pruning": kill_at_call(1, trainer_module, "prune_others"),
    "while pruning": kill_at_call(1, Path, "unlink"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_save_leaves_a_loadable_checkpoint(trainer: CrossNormTrainer, monkeypatch, moment: str):
    run, old = trainer.base_dir, checkpoint_of(trainer.base_dir)
    child = os.fork()
    if child == 0:
        try:
            MOMENTS[moment](monkeypatch)
            trainer.save_checkpoint(7)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the save was not killed where it should have been"

    found = checkpoint_of(run)
    assert found["step"] == (7 if moment in ("after the rename", "before pruning", "while pruning") else 1)
    assert differences(found["pipeline"], old["pipeline"]) == []

    trainer.save_checkpoint(8)
    assert os.listdir(run / "nerfstudio_models") == ["step-000000008.ckpt"]
    assert list(run.rglob("*.tmp")) == [], "what the killed save left is gone"


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (os, "fsync"), (Path, "replace")])
def test_failed_save_raises_and_leaves_what_was_there(trainer: CrossNormTrainer, monkeypatch, owner: Any, name: str):
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OSError, match="No space left"):
            trainer.save_checkpoint(7)
    assert os.listdir(trainer.checkpoint_dir) == ["step-000000001.ckpt"]
    assert checkpoint_of(trainer.base_dir)["step"] == 1
    assert list(trainer.base_dir.rglob("*.tmp")) == []


def test_older_checkpoints_go_unless_all_are_wanted(trainer: CrossNormTrainer):
    trainer.save_checkpoint(7)
    assert os.listdir(trainer.checkpoint_dir) == ["step-000000007.ckpt"]
    trainer.config.save_only_latest_checkpoint = False
    trainer.save_checkpoint(8)
    assert sorted(os.listdir(trainer.checkpoint_dir)) == ["step-000000007.ckpt", "step-000000008.ckpt"]


def test_others_may_read_a_checkpoint_as_the_umask_says(trainer: CrossNormTrainer):
    before = os.umask(0o022)
    try:
        trainer.save_checkpoint(7)
    finally:
        os.umask(before)
    assert (trainer.checkpoint_dir / "step-000000007.ckpt").stat().st_mode & 0o777 == 0o644


# --- Calibration


def test_loaded_checkpoint_renders_what_the_trained_model_renders(trainer: CrossNormTrainer):
    model: Any = trainer.pipeline.model.eval()
    for norm in norms_of(model):
        for domain in norm.domains.values():
            assert not torch.equal(domain.mean, domain.running_mean), "the last save must have calibrated"
    _, pipeline, path, step = eval_setup(trainer.base_dir / "config.yml")
    assert (path.name, step) == ("step-000000001.ckpt", 1)
    dataset: Any = pipeline.datamanager.eval_dataset
    camera = dataset.cameras[0:1]
    for name, values in model.get_outputs_for_camera(camera).items():
        assert torch.equal(pipeline.model.get_outputs_for_camera(camera)[name], values), name


def test_calibration_and_evaluation_draw_from_training_without_a_trace(trainer: CrossNormTrainer):
    """Parameters, moving averages and all generators stay; stored statistics alone are set."""

    def state() -> dict[str, Any]:
        kept = {
            name: value.clone()
            for name, value in trainer.pipeline.state_dict().items()
            if not name.endswith((".rows", ".mean", ".var")) or ".running_" in name
        }
        return {"pipeline": kept, "random": capture_random_state(), "count": trainer.pipeline.datamanager.train_count}

    norm = norms_of(trainer.pipeline.model)[0]
    before, stored = state(), norm.domains["coarse"].mean.clone()
    norm.domains["coarse"].mean.zero_()
    trainer.calibrate_norms()
    assert torch.equal(norm.domains["coarse"].mean, stored), "the same weights and generators: the same batches"
    assert differences(before, state()) == []
    trainer.config.steps_per_eval_batch = trainer.config.steps_per_eval_image = 5
    norm.domains["coarse"].mean.zero_()
    trainer.eval_iteration(5)
    assert torch.equal(norm.domains["coarse"].mean, stored), "pictures are shown with calibrated norms"
    assert differences(before, state()) == []
    norm.domains["coarse"].mean.zero_()
    trainer.eval_iteration(6)
    assert not norm.domains["coarse"].mean.any(), "no evaluation is due"


def test_calibration_gathers_the_asked_number_of_batches_under_the_viewers_lock(trainer, monkeypatch):
    seen = []

    def record(model: Any, batches: Any) -> None:
        seen.append((trainer.train_lock.locked(), [len(rays) for (rays,) in batches]))

    monkeypatch.setattr(trainer_module, "calibrate", record)
    trainer.save_checkpoint(7)
    assert seen == [(True, [32, 32, 32])]


def test_networks_without_norms_are_not_calibrated(tiny_scene: Path, tmp_path: Path, monkeypatch):
    trainer = make_trainer(make_config(tiny_scene, tmp_path, norm="none"))

    def refuse(step: int) -> None:
        raise AssertionError("there is nothing to calibrate")

    monkeypatch.setattr(trainer.pipeline.datamanager, "next_train", refuse)
    trainer.save_checkpoint(0)
    assert checkpoint_of(trainer.base_dir)["step"] == 0


# --- Data and devices


@pytest.mark.parametrize("damage", ["no folder", "no image", "unreadable image"])
def test_bad_data_ends_with_one_line_and_nothing_written(tiny_scene: Path, tmp_path: Path, capsys, damage: str):
    scene = tmp_path / "scene"
    if damage != "no folder":
        scene.mkdir()
        for path in tiny_scene.rglob("*.*"):
            (scene / path.relative_to(tiny_scene)).parent.mkdir(exist_ok=True)
            (scene / path.relative_to(tiny_scene)).write_bytes(path.read_bytes())
        broken = scene / "test" / "r_1.png"
        broken.unlink() if damage == "no image" else broken.write_bytes(b"not a picture")
    with pytest.raises(SystemExit) as exit_:
        ns_train.main(make_config(scene, tmp_path / "outputs"))
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert ("r_1" if damage != "no folder" else "scene") in said
    assert not (tmp_path / "outputs").exists()


def test_training_falls_back_to_the_cpu_and_says_so(tiny_scene: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make_config(tiny_scene, tmp_path, max_num_iterations=1)
    config.machine.device_type = "cuda"
    run = train(config)
    assert "No CUDA device found: training on the CPU.\n" in capsys.readouterr().out
    assert checkpoint_of(run)["step"] == 0


def test_training_names_the_gpu_it_uses(tiny_scene: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")
    config = make_config(tiny_scene, tmp_path)
    config.machine.device_type = "cuda"
    trainer: Any = config.setup(local_rank=0, world_size=1)
    assert trainer.device == "cuda:0"
    assert "Training on GPU number 0.\n" in capsys.readouterr().out
