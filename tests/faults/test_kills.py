"""Trainings that are killed at random moments: nothing is lost that was saved, and what resumes ends the same.

The short form strikes a few times; CROSSNORM_FAULTS=long strikes 60 times and writes docs/results/faults.{json,md}.
"""

import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from representation_files import write_image
from states import differences
from subjects import Strike, Subject, store, strike, table

from crossnorm_ns.data import make_scene

LONG = os.environ.get("CROSSNORM_FAULTS") == "long"
SEED = 6
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS_EACH = 20 if LONG else 3
pytestmark = pytest.mark.usefixtures("own_writers")  # trainings are forked
METHODS = ("mipnerf-cn-tiny", "neus-cn-tiny", "fit") if LONG else ("mipnerf-cn-tiny", "fit")
strikes: list[Strike] = []


def make_subject(name: str, folder: Path) -> Subject:
    """Trains long enough for three checkpoints on the way."""
    scene = folder / "scene"
    if name == "fit":
        return Subject(name, write_image(folder / "image.png", 16, 16), steps=1000 if LONG else 600, first_save=250)
    if name.startswith("mipnerf"):
        make_scene.blender(scene, resolution=24, train=6, val=1, test=2, supersampling=1)
    else:
        make_scene.dtu(scene, resolution=24, views=6, supersampling=1)
    return Subject(name, scene, steps=26 if LONG else 14, first_save=7 if LONG else 5)


@pytest.fixture(scope="module", params=METHODS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Any, float]:
    """A training, its checkpoint when nothing disturbs it, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("faults")
    subject, start = make_subject(request.param, folder), time.perf_counter()
    child = subject.start(folder / "undisturbed")
    assert child.wait() == 0, child.log.read_text()
    return subject, subject.content(folder / "undisturbed"), time.perf_counter() - start


def test_a_killed_training_has_a_checkpoint_and_resumes_to_the_bit(
    subject: tuple[Subject, Any, float], tmp_path: Path
) -> None:
    training, undisturbed, seconds = subject
    rng = random.Random(f"{SEED} {training.name}")
    for index in range(KILLS_EACH):
        number, while_saving = SIGNALS[index % 3], index // 3 % 3 == 0 if LONG else index == 0
        found, output = None, tmp_path
        for attempt in itertools.count():
            output = tmp_path / f"{index}-{attempt}"
            moment = rng.randrange(3 if LONG else 2) if while_saving else rng.uniform(0, seconds)
            found = strike(training, output, number, moment, while_saving)
            if found is not None:
                break
            assert attempt < 10, "the training always ends before the strike"
        strikes.append(found)
        said = output.with_suffix(".log").read_text()
        if found.steps_done > training.first_save:  # the next step was done: the first checkpoint was complete
            assert found.steps_saved >= training.first_save, (found, said)
        if found.exit_code == 128 + number:
            assert found.steps_saved == found.steps_done and found.signal in said, (found, said)
        else:
            assert found.exit_code in (-number, 70), (found, said)
            assert number == signal.SIGKILL or found.steps_done in (0, training.steps), (found, said)
        child = training.start(output)
        assert child.wait() == 0, child.log.read_text()
        assert differences(undisturbed, training.content(output)) == [], found
        assert not training.is_saving(output), "what the killed save left is gone"
        found.survived = True


def test_a_kill_that_lost_something_is_not_counted_as_survived() -> None:
    well, badly = (Strike("fit", "SIGTERM", True, True, 143, 9, 9, survived=how) for how in (True, False))
    assert "| fit | SIGTERM | 2 | 2 | 1 | 0.0 | 0 |" in table([well, badly])


@pytest.mark.skipif(not LONG, reason="figures are those of the long form: CROSSNORM_FAULTS=long")
def test_figures_of_all_kills_are_stored() -> None:
    store(strikes, Path(__file__).parents[2] / "docs" / "results", SEED)
    assert len(strikes) == 60 and all(one.survived for one in strikes)
    assert sum(one.while_saving for one in strikes) >= 20
