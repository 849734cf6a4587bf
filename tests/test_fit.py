"""The fitting loop against a plain one; resuming to the bit; what it writes; how it ends."""

import copy
import json
import math

import pytest
import torch
from representation_files import ball, blob, write_image

from crossnorm_ns.functional.metrics import psnr
from crossnorm_ns.networks import make_network
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.evaluation import outputs_of
from crossnorm_ns.representation.fit import fit
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.run_folder import RunFolder, load_network
from crossnorm_ns.representation.tasks import CTTask, ImageTask, MRITask, ShapeTask

HIDDEN = (10, 10)


@pytest.fixture
def image(tmp_path):
    return ImageTask.open(write_image(tmp_path / "image.png", 16, 16))


@pytest.fixture
def shape():
    return ShapeTask(torch.from_numpy(ball(12)), batch_size=64)


def options(steps=30, learning_rate=5e-3, **others):
    return FitOptions(**{"evaluate_every": 10, **others, "steps": steps, "learning_rate": learning_rate})


def assert_equal_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("method", ["relu", "pe", "pe+cn", "relu+bn", "siren", "wire"])
def test_training_follows_a_plain_loop(image, method):
    run = fit(image, method, HIDDEN, options(steps=12, evaluate_every=12, seed=3))
    torch.manual_seed(3)
    network = make_network(method, 2, 3, HIDDEN)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, foreach=False, fused=False)
    for _ in range(12):
        optimizer.zero_grad()
        ((network(image.points) - image.signal) ** 2).mean().backward()
        optimizer.step()
    expected = float(psnr(network(image.points).detach(), image.signal))
    assert run.last_metrics["psnr"] == pytest.approx(expected, abs=1e-3)


def test_drawn_points_are_those_of_the_seed(shape):
    run = fit(shape, "relu", HIDDEN, options(steps=5, seed=4))
    torch.manual_seed(4)
    network, generator = make_network("relu", 3, 1, HIDDEN), torch.Generator().manual_seed(4)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(5):
        index = torch.randint(12**3, (64,), generator=generator)
        loss = torch.nn.BCEWithLogitsLoss()(network(shape.coordinates()[index])[:, 0], shape.signal[index].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(outputs_of(run.network, shape), outputs_of(network, shape), atol=1e-5, rtol=1e-4)


def test_equal_seeds_give_equal_bits_and_others_do_not(shape):
    runs = [fit(shape, "pe+cn", HIDDEN, options(steps=8, seed=seed)) for seed in (1, 1, 2)]
    assert_equal_bits(runs[0].network.state_dict(), runs[1].network.state_dict())
    assert runs[0].last_metrics != runs[2].last_metrics


def test_evaluations_do_not_disturb_training(shape):
    runs = [fit(shape, "pe+cn", HIDDEN, options(steps=12, evaluate_every=every)) for every in (1, 12)]
    assert runs[0].last_metrics == runs[1].last_metrics


def test_fitting_leaves_the_global_random_numbers_alone(image):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fit(image, "relu", HIDDEN, options(steps=2))
    assert torch.equal(torch.get_rng_state(), before)


class Killed(Exception):
    pass


def killed_at(step):
    """Progress that ends the run in its midst, as a kill would."""

    class Killer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, now):
            if now == step:
                raise Killed

        def update(self, now, entry):
            pass

    return lambda steps, metric: Killer()


@pytest.mark.parametrize("method", ["pe+cn", "siren"])
@pytest.mark.parametrize("task_name", ["image", "shape"])
def test_a_resumed_run_is_equal_to_the_bit(request, tmp_path, task_name, method):
    task = request.getfixturevalue(task_name)
    chosen = options(steps=30, save_every=7, schedule="cosine", final_factor=0.1)
    whole = fit(task, method, HIDDEN, chosen, folder=tmp_path / "whole")
    with pytest.raises(Killed):
        fit(task, method, HIDDEN, chosen, folder=tmp_path / "parts", progress=killed_at(24))
    with (tmp_path / "parts" / "history.jsonl").open("a") as file:
        file.write('{"step": 25, "los')
    resumed = fit(task, method, HIDDEN, chosen, folder=tmp_path / "parts", resume=True)
    assert_equal_bits(whole.network.state_dict(), resumed.network.state_dict())
    for name in ("best.pt", "last.pt"):
        loaded = [load_network(tmp_path / folder / name).state_dict() for folder in ("whole", "parts")]
        assert_equal_bits(*loaded)
    histories = [RunFolder(tmp_path / folder).read_history() for folder in ("whole", "parts")]
    timeless = [[{**entry, "seconds": 0} for entry in history] for history in histories]
    assert timeless[0] == timeless[1]
    assert [entry["step"] for entry in histories[1]] == [10, 20, 30]


def test_networks_are_written_where_training_is_interrupted(image, tmp_path):
    with pytest.raises(Killed):
        fit(image, "pe+cn", HIDDEN, options(steps=30), folder=tmp_path / "run", progress=killed_at(24))
    best = image.metrics(outputs_of(load_network(tmp_path / "run" / "best.pt"), image))
    history = RunFolder(tmp_path / "run").read_history()
    assert best["loss"] == pytest.approx(min(entry["loss"] for entry in history), rel=1e-5)
    last, whole = load_network(tmp_path / "run" / "last.pt"), fit(image, "pe+cn", HIDDEN, options(steps=24))
    for name, parameter in last.named_parameters():
        torch.testing.assert_close(parameter, dict(whole.network.named_parameters())[name])


def test_the_highest_value_is_that_of_all_evaluations():
    task = CTTask(blob(16)[8].contiguous(), 6)
    run = fit(task, "relu", HIDDEN, options(steps=60, learning_rate=0.1, evaluate_every=3))
    values = {entry["step"]: entry["psnr"] for entry in run.history}
    step = max(values, key=values.__getitem__)
    assert run.highest("psnr") == {"psnr": values[step], "step": step}
    assert step != run.best_step and values[step] > run.metrics["psnr"]


def test_a_finished_run_that_is_resumed_stays_as_it_is(image, tmp_path):
    first = fit(image, "pe+cn", HIDDEN, options(), folder=tmp_path / "run")
    second = fit(image, "pe+cn", HIDDEN, options(), folder=tmp_path / "run", resume=True)
    assert_equal_bits(first.network.state_dict(), second.network.state_dict())
    assert first.history == second.history


def test_a_constant_learning_rate_can_be_continued_for_more_steps(image, tmp_path):
    fit(image, "pe", HIDDEN, options(steps=10), folder=tmp_path / "run")
    longer = fit(image, "pe", HIDDEN, options(steps=20), folder=tmp_path / "run", resume=True)
    assert longer.last_metrics == fit(image, "pe", HIDDEN, options(steps=20)).last_metrics


def test_a_folder_with_a_run_is_not_overwritten(image, tmp_path):
    fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run")
    with pytest.raises(RepresentationError, match="holds a run already"):
        fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("task", "other"),
    [
        (CTTask(blob(16)[8].contiguous(), 6), CTTask(blob(16)[8].contiguous(), 7)),
        (CTTask(blob(16)[8].contiguous(), 6), CTTask(blob(16)[8].contiguous(), 6, "diagonal")),
        (MRITask(blob(12), 300), MRITask(blob(12), 400)),
        (MRITask(blob(12), 300), MRITask(blob(12), 300, seed=1)),
    ],
    ids=["angles", "detector", "draws", "seed of the draws"],
)
def test_a_run_on_other_measurements_of_the_same_signal_is_not_continued(tmp_path, task, other):
    first = fit(task, "relu", HIDDEN, options(steps=2), folder=tmp_path / "run")
    with pytest.raises(RepresentationError, match="holds another run .*measurements"):
        fit(other, "relu", HIDDEN, options(steps=2), folder=tmp_path / "run", resume=True)
    again = fit(copy.deepcopy(task), "relu", HIDDEN, options(steps=2), folder=tmp_path / "run", resume=True)
    assert again.metrics == first.metrics


@pytest.mark.parametrize("change", ["method", "learning_rate", "signal"])
def test_another_run_is_not_continued(image, tmp_path, change):
    fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run")
    other = copy.copy(image)
    if change == "signal":
        other.signal = image.signal + 0.01
    method, rate = "pe" if change == "method" else "relu", 1e-3 if change == "learning_rate" else 5e-3
    with pytest.raises(RepresentationError, match=f"holds another run .*{change}"):
        fit(other, method, HIDDEN, options(learning_rate=rate), folder=tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused(image, tmp_path):
    fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run")
    data = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(RepresentationError, match="cannot be read as saved tensors"):
        fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run", resume=True)


def test_checkpoints_run_no_code(image, tmp_path):
    fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run")
    torch.save({"format": print}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(RepresentationError, match="holds more than tensors"):
        fit(image, "relu", HIDDEN, options(), folder=tmp_path / "run", resume=True)


def test_the_best_network_has_the_lowest_loss_of_the_history(image, tmp_path):
    run = fit(image, "pe+cn", HIDDEN, options(steps=60, learning_rate=0.3, evaluate_every=3), folder=tmp_path / "run")
    losses = {entry["step"]: entry["loss"] for entry in run.history}
    assert run.best_step == min(losses, key=losses.__getitem__) < 60
    found = image.metrics(outputs_of(load_network(tmp_path / "run" / "best.pt"), image))
    assert found["loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    last = image.metrics(outputs_of(load_network(tmp_path / "run" / "last.pt"), image))
    assert last["loss"] == pytest.approx(losses[60], rel=1e-6)


def test_the_history_is_json_lines_with_what_progress_needs(image, tmp_path):
    fit(image, "pe", HIDDEN, options(), folder=tmp_path / "run")
    entries = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [10, 20, 30]
    assert all(entry.keys() >= {"seconds", "learning_rate", "loss", "psnr", "ssim"} for entry in entries)
    assert entries[0]["seconds"] < entries[1]["seconds"] < entries[2]["seconds"]


def test_a_time_budget_ends_training_early(image, tmp_path):
    run = fit(image, "pe+cn", HIDDEN, options(steps=10**6, max_seconds=0.2), folder=tmp_path / "run")
    assert run.ending == "time"
    assert 0.2 <= run.seconds < 2
    assert run.history[-1]["step"] == run.steps < 10**6
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1]), ("exponential", [1, 0.1, 0.01]), ("cosine", [1, 0.505, 0.01])],
)
def test_schedules_start_in_the_middle_and_end_where_they_should(schedule, expected):
    chosen = FitOptions(100, 1.0, schedule, 0.01)
    assert [chosen.learning_rate_at(step) for step in (0, 50, 100)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"learning_rate": -1.0}, "learning rate is -1"),
        ({"final_factor": 0.0}, "final factor"),
        ({"max_seconds": 0.0}, "max_seconds"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(RepresentationError, match=message):
        options(**wrong)


def test_unknown_methods_and_options_are_refused(image):
    with pytest.raises(RepresentationError, match="unknown method 'resnet'"):
        fit(image, "resnet", HIDDEN, options())
    with pytest.raises(RepresentationError, match="no option 'omega_0'"):
        fit(image, "pe", HIDDEN, options(), network_options={"omega_0": 3.0})


def test_events_for_tensorboard_are_written_on_request(image, tmp_path):
    pytest.importorskip("tensorboard")
    fit(image, "relu", HIDDEN, options(tensorboard=True), folder=tmp_path / "with")
    fit(image, "relu", HIDDEN, options(), folder=tmp_path / "without")
    assert list((tmp_path / "with").glob("events.out.tfevents.*"))
    assert not list((tmp_path / "without").glob("events.out.tfevents.*"))


def test_cross_normalization_is_ahead_on_a_real_image(shared_data):
    task = ImageTask.open(shared_data / "kodak" / "kodim19.png", side=64)
    chosen = {"steps": 150, "schedule": "cosine", "final_factor": 0.01, "evaluate_every": 150}
    plain = max(fit(task, "pe", (28,) * 10, options(learning_rate=r, **chosen)).metrics["psnr"] for r in (1e-3, 5e-3))
    crossed = fit(task, "pe+cn", (28,) * 10, options(learning_rate=1e-2, **chosen)).metrics["psnr"]
    assert crossed > plain + 2
