"""Freed memory is kept for the next large array: seen by the page faults of a process of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")

FAULTS = """
import resource, torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
{action}
faults()  # until there is room
print(faults())
"""
FIT = """
from crossnorm_ns.representation.fit import fit
from crossnorm_ns.representation.options import FitOptions
from crossnorm_ns.representation.tasks import ImageTask
fit(ImageTask(torch.rand(16, 16, 3)), "relu", (4,), FitOptions(steps=1, learning_rate=1e-3))
"""


@pytest.mark.parametrize(
    "action", ["from crossnorm_ns.memory import keep_freed_memory; keep_freed_memory()", FIT], ids=["call", "fit"]
)
def test_large_arrays_cause_no_page_faults_once_memory_is_kept(action: str) -> None:
    command = [sys.executable, "-c", FAULTS.format(action=action)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10_000 and after < 100


def test_a_training_keeps_memory(tiny_scene, tmp_path, monkeypatch) -> None:
    import test_trainer
    from trainings import make_trainer

    calls = []
    monkeypatch.setattr("crossnorm_ns.engine.trainer.keep_freed_memory", lambda: calls.append(True))
    make_trainer(test_trainer.make_config(tiny_scene, tmp_path))
    assert calls == [True]
