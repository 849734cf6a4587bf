"""Shared fixtures: where the real test data lies; one thread so that results repeat; no network."""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crossnorm_ns.data import make_scene

torch.set_num_threads(1)

OFFLINE = Path(__file__).parent / "offline"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH"))))
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


@pytest.fixture(scope="module", autouse=True)
def returned_memory() -> None:
    """What fits of earlier tests have freed and kept would count for the processes that a test forks."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def writers_of_other_modules_forgotten() -> None:
    """Trainings leave nerfstudio's global event writers; a process forked later would wait for their threads."""
    writer = sys.modules.get("nerfstudio.utils.writer")
    if writer is not None:
        for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER):
            state.clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test data: `CROSSNORM_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("CROSSNORM_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}: set CROSSNORM_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example scene at 24x24 pixels with six training, one validation and two test views."""
    folder = tmp_path_factory.mktemp("scenes") / "tiny"
    make_scene.blender(folder, resolution=24, train=6, val=1, test=2, supersampling=1)
    return folder


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example scan at 24x24 pixels with six views."""
    folder = tmp_path_factory.mktemp("scans") / "tiny"
    make_scene.dtu(folder, resolution=24, views=6, supersampling=1)
    return folder


@pytest.fixture
def own_writers() -> Iterator[None]:
    """nerfstudio's event writers are global; each training of a test starts with none."""
    import nerfstudio.engine.trainer  # noqa: F401 (the writer alone imports itself in a circle)
    from nerfstudio.utils import writer

    before = (writer.EVENT_WRITERS[:], writer.EVENT_STORAGE[:], writer.GLOBAL_BUFFER.copy())
    for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER):
        state.clear()  # a forked process would wait for the thread of a writer that an earlier test has left
    yield
    writer.EVENT_WRITERS[:], writer.EVENT_STORAGE[:] = before[:2]
    writer.GLOBAL_BUFFER.clear()
    writer.GLOBAL_BUFFER.update(before[2])


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """SIGINT and SIGTERM act as in a terminal's program; a shell's background jobs begin without SIGINT."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """A test that waits for ever fails."""

    def give_up(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
