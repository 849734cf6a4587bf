"""Fits that are asked to stop, and fits whose numbers go bad."""

import functools
import json
import math
import os
import re
import signal
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from representation_files import Watched, ball, write_image
from states import differences

from crossnorm_ns.finite import first_non_finite
from crossnorm_ns.interruption import InterruptedTraining, raised_signals
from crossnorm_ns.representation import cells, fit, progress, runs
from crossnorm_ns.representation.command import main
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.run_folder import RunFolder, load_network, load_tensors
from crossnorm_ns.representation.tasks import ImageTask, ShapeTask

pytestmark = pytest.mark.usefixtures("usual_signals")
STEPS = 30


@pytest.fixture
def image(tmp_path):
    return ImageTask.open(write_image(tmp_path / "image.png", 16, 16))


def fitted(task, folder, act=lambda step: None, *, method="pe+cn", resume=False, **changes):
    """A small fit that calls `act` after each step."""
    chosen = FitOptions(**{"steps": STEPS, "learning_rate": 5e-3, "evaluate_every": 10, "save_every": 7, **changes})
    watch = lambda steps, metric: Watched(act)  # noqa: E731
    return fit.fit(task, method, (10, 10), chosen, folder=folder, resume=resume, progress=watch)


def checkpoint_of(folder):
    content = load_tensors(folder / "checkpoint.pt")
    content["state"]["seconds"] = 0
    return content


# --- Signals


@pytest.mark.parametrize("task_name", ["image", "shape"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_fit_after_the_step_at_hand_and_it_resumes_exactly(image, tmp_path, number, task_name):
    task = image if task_name == "image" else ShapeTask(torch.from_numpy(ball(12)), batch_size=64)
    fitted(task, tmp_path / "whole")
    before = signal.getsignal(number)
    for at in (4, 20):  # before the first checkpoint, and where the network is evaluated
        with pytest.raises(InterruptedTraining) as stop:
            fitted(task, tmp_path / "run", lambda step, at=at: step == at and os.kill(os.getpid(), number), resume=True)
        assert signal.getsignal(number) is before
        assert checkpoint_of(tmp_path / "run")["state"]["step"] == at
        where = f"after step {at}: --resume goes on from {tmp_path / 'run' / 'checkpoint.pt'}"
        assert str(stop.value) == f"stopped by {number.name} {where}"
    fitted(task, tmp_path / "run", resume=True)
    assert differences(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "run")) == []
    steps = [[entry["step"] for entry in RunFolder(tmp_path / name).read_history()] for name in ("whole", "run")]
    assert steps[0] == steps[1] == [10, 20, 30]


def test_a_command_that_is_asked_to_stop_says_in_one_line_how_to_go_on(tmp_path, monkeypatch, capsys):
    arguments = ["image", "--image", str(write_image(tmp_path / "image.png", 16, 16)), "--side", "16"]
    arguments += ["--network", "2x8", "--steps", "20", "--output", str(tmp_path / "run")]
    watch = Watched(lambda step: step == 5 and os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(progress, "progress_bar", lambda title: lambda steps, metric: watch)
        main(arguments)
    assert end.value.code == 128 + signal.SIGTERM
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped by SIGTERM after step 5: --resume goes on from ")
    assert not (tmp_path / "run" / "result.json").exists(), "only a finished run has a result"
    main([*arguments, "--resume"])
    assert RunFolder(tmp_path / "run").read_result()["steps"] == 20


@dataclass(frozen=True)
class StoppingCell(cells.Cell):
    """Sends its parent SIGTERM after five steps, and goes on."""

    def __call__(self):
        watch = Watched(lambda step: step == 5 and os.kill(os.getppid(), signal.SIGTERM))
        return runs.execute(self.spec, self.folder, progress=lambda steps, metric: watch)


def test_a_table_that_is_asked_to_stop_saves_what_it_is_at_and_begins_nothing_else(tmp_path):
    spec = runs.RunSpec("image", write_image(tmp_path / "image.png", 128, 128), "pe", network="1x4", steps=10**7)
    todo = [StoppingCell(spec, tmp_path / name) for name in ("first", "second")]
    with pytest.raises(InterruptedTraining, match="stopped by SIGTERM, all is well"), raised_signals(", all is well"):
        list(cells.run_local(todo, workers=1))
    assert 5 <= checkpoint_of(tmp_path / "first")["state"]["step"] < 10**7
    assert not (tmp_path / "first" / "result.json").exists()
    assert not (tmp_path / "second").exists()


# --- Numbers


def plant_in_image(training):
    training.task.signal[3, 1] = math.nan


def plant_in_points(training):
    training._fixed.points[0, 0] = math.inf


def plant_in_weight(training):
    next(training.network.parameters()).data[0, 0] = math.nan


def plant_in_gradient(training):
    dict(training.network.named_parameters())["mlp.layers.1.bias"].register_hook(lambda gradient: gradient * math.inf)


def plant_in_statistic(training):
    next(buffer for name, buffer in training.network.named_buffers() if "running_var" in name)[0] = math.nan


def raise_learning_rate(training):
    training.options = types.SimpleNamespace(learning_rate_at=lambda step: 1e38, seed=0)


PLANTS = {
    plant_in_image: "the loss",
    plant_in_points: "the loss",
    plant_in_weight: "the loss",
    plant_in_gradient: "the gradient of mlp.layers.1.bias",
    plant_in_statistic: "the statistic mlp.",
    raise_learning_rate: "",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_numbers_that_are_not_finite_end_a_fit_and_leave_the_last_good_checkpoint(image, tmp_path, monkeypatch, plant):
    with pytest.raises(InterruptedTraining):
        fitted(image, tmp_path / "good", lambda step: step == 14 and os.kill(os.getpid(), signal.SIGTERM))
    trainings = []
    monkeypatch.setattr(fit, "Training", lambda *given: trainings.append(Training(*given)) or trainings[-1])
    run = fitted(image, tmp_path / "run", lambda step: step == 16 and plant(trainings[0]))
    good = tmp_path / "run" / "checkpoint.pt"
    assert run.ending == "diverged" and run.steps in (17, 18)
    assert run.trouble.startswith(f"step {run.steps}: {PLANTS[plant]}")
    assert run.trouble.endswith(f" is not finite; the last good checkpoint is {good}")
    content = load_tensors(good)
    assert content["state"]["step"] == 14
    assert first_non_finite(content["network"].items()) is None
    assert run.best_step == 10 and math.isfinite(run.metrics["psnr"])
    assert first_non_finite(load_network(good.with_name("best.pt")).state_dict().items()) is None
    assert differences(checkpoint_of(tmp_path / "good")["network"], content["network"]) == []


Training = fit.Training


def test_a_checkpoint_that_is_due_in_the_bad_step_is_not_written(image, tmp_path, monkeypatch):
    trainings = []
    monkeypatch.setattr(fit, "Training", lambda *given: trainings.append(Training(*given)) or trainings[-1])
    fitted(image, tmp_path / "run", lambda step: step == 13 and plant_in_gradient(trainings[0]))
    assert load_tensors(tmp_path / "run" / "checkpoint.pt")["state"]["step"] == 7


@pytest.mark.parametrize("at", [14, STEPS])
def test_a_bad_state_of_the_optimiser_ends_a_fit_before_it_is_saved(image, tmp_path, monkeypatch, at):
    """It is not among the numbers that each step looks at."""
    trainings = []
    monkeypatch.setattr(fit, "Training", lambda *given: trainings.append(Training(*given)) or trainings[-1])
    step = Training.step

    def plant(training):
        step(training)
        if training.state.step == at:
            next(iter(training.optimizer.state.values()))["exp_avg_sq"][0] = math.inf

    monkeypatch.setattr(Training, "step", plant)
    run = fitted(image, tmp_path / "run")
    good = tmp_path / "run" / "checkpoint.pt"
    culprit = "optimizer.state.0.exp_avg_sq of the checkpoint to save is not finite"
    assert run.trouble == f"step {at}: {culprit}; the last good checkpoint is {good}"
    assert run.ending == "diverged" and load_tensors(good)["state"]["step"] == at - at % 7 - (7 if at == 14 else 0)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("network",), "network."),
        (("state", "best_weights"), "best."),
        (("optimizer", "state", 0), "optimizer.state.0.exp_avg"),
    ],
)
def test_a_fit_does_not_go_on_from_numbers_that_are_not_finite(image, tmp_path, place, said):
    fitted(image, tmp_path / "run", steps=14)
    path = tmp_path / "run" / "checkpoint.pt"
    content = load_tensors(path)
    numbers = functools.reduce(lambda part, key: part[key], place, content)
    next(value for value in numbers.values() if value.dim() == 2)[0, 0] = math.nan
    torch.save(content, path)
    with pytest.raises(RepresentationError, match=rf"checkpoint.pt holds no .*\({re.escape(said)}.* is not finite"):
        fitted(image, tmp_path / "run", steps=14, resume=True)


def with_state(**changes):
    return lambda content: content["state"].update(changes)


def with_group(**changes):
    return lambda content: content["optimizer"]["param_groups"][0].update(changes)


def with_moment(name, change):
    def damage(content):
        state = content["optimizer"]["state"][0]
        state[name] = change(state[name])

    return damage


OTHER_STATES = {
    "seconds in letters": with_state(seconds="x"),
    "seconds of NaN": with_state(seconds=math.nan),
    "an absurd step": with_state(step=10**30),
    "a best step in letters": with_state(best_step="x"),
    "a best step to come": with_state(best_step=10**6),
    "a best loss in letters": with_state(best_loss="x"),
    "no best loss": with_state(best_loss=None),
    "another best loss": with_state(best_loss=-1.0),
    "best metrics in letters": with_state(best_metrics={"psnr": "x", "loss": "y"}),
    "best metrics without the task's": lambda content: content["state"]["best_metrics"].pop("psnr"),
    "no best metrics": with_state(best_metrics={}, best_loss=math.inf),
    "one beta": with_group(betas=(5,)),
    "betas above 1": with_group(betas=(5.0, 5.0)),
    "an eps in letters": with_group(eps="x"),
    "an eps of NaN": with_group(eps=math.nan),
    "a moment of one number": with_moment("exp_avg", lambda moment: torch.zeros(())),
    "a moment stretched from one number": with_moment("exp_avg", lambda moment: torch.zeros(1).expand(moment.shape)),
    "no first moment": lambda content: content["optimizer"]["state"][0].pop("exp_avg"),
}


def test_a_fit_does_not_go_on_from_other_states(image, tmp_path):
    fitted(image, tmp_path / "run", steps=14)
    path = tmp_path / "run" / "checkpoint.pt"
    whole, taken = path.read_bytes(), []
    for damage, change in OTHER_STATES.items():
        path.write_bytes(whole)
        content = load_tensors(path)
        change(content)
        torch.save(content, path)
        try:
            with pytest.raises(RepresentationError, match=r"checkpoint.pt holds no checkpoint of a fit \(.+\)"):
                fitted(image, tmp_path / "run", steps=14, resume=True)
        except (Exception, pytest.fail.Exception) as error:
            taken.append((damage, error))
    assert taken == []
    path.write_bytes(whole)
    assert fitted(image, tmp_path / "run", steps=14, resume=True).steps == 14


def test_an_absurd_learning_rate_ends_a_fit_and_so_it_does_when_it_is_resumed(image, tmp_path):
    absurd = {"method": "relu", "learning_rate": 1e18, "save_every": 1}
    first = fitted(image, tmp_path / "run", evaluate_every=50, **absurd)
    again = fitted(image, tmp_path / "run", resume=True, evaluate_every=50, **absurd)
    assert (first.ending, again.ending) == ("diverged", "diverged")
    assert first.trouble == again.trouble and "step 2: the loss is not finite" in first.trouble
    assert first.metrics == first.last_metrics == {}


def test_an_evaluation_that_is_not_finite_ends_a_fit_and_saves_nothing(image, tmp_path):
    absurd = {"method": "relu", "learning_rate": 1e18, "save_every": 1}
    run = fitted(image, tmp_path / "run", evaluate_every=1, **absurd)
    assert run.trouble == "step 1: the loss of the evaluation is not finite; the last good checkpoint is none"
    assert json.loads((tmp_path / "run" / "history.jsonl").read_text())["loss"] is None
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_command_whose_numbers_go_bad_ends_with_one_line_and_status_1(tmp_path, capsys):
    arguments = ["image", "--image", str(write_image(tmp_path / "image.png", 16, 16)), "--side", "16"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--network", "2x8", "--learning-rate", "1e18", "--output", str(tmp_path / "run")])
    assert end.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: step ") and "is not finite; the last good checkpoint is none" in line
    assert RunFolder(tmp_path / "run").read_result()["ending"] == "diverged"


def test_in_a_table_a_diverged_run_is_an_outcome_that_never_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "run_local", lambda todo, workers: ((c, c()) for c in todo))
    np.save(tmp_path / "cube.npy", ball(64))
    arguments = ["table", "shape", "--inputs", str(tmp_path / "cube.npy"), "--methods", "relu", "--networks", "1x4"]
    arguments += ["--learning-rates", "1e-3", "1e30", "--steps", "3", "--output", str(tmp_path / "out")]
    main(arguments)
    endings = {
        result["spec"]["learning_rate"]: result["ending"]
        for result in json.loads((tmp_path / "out" / "results.json").read_text())
    }
    assert endings == {1e-3: "steps", 1e30: "diverged"}
    assert "| 1x4 | 0.001 |" in (tmp_path / "out" / "table.md").read_text()
