"""A disk that is full while a checkpoint is written: one clear line, and the checkpoint before it stays."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_kills
from states import differences

pytestmark = pytest.mark.usefixtures("own_writers")  # trainings are forked


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", test_kills.METHODS)
def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoint_before(
    small_disk: Path, tmp_path: Path, name: str
) -> None:
    training = test_kills.make_subject(name, tmp_path)
    undisturbed = training.start(tmp_path / "undisturbed")
    assert undisturbed.wait() == 0
    output, filler = small_disk, small_disk / "filler"  # the log lies beside the disk
    child = training.start(output)
    while child.is_running() and not training.checkpoints(output):
        time.sleep(0.001)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**12))
    assert child.wait() not in (0, 70), child.log.read_text()
    errors = [line for line in child.log.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0], child.log.read_text()
    assert "Traceback" not in child.log.read_text()
    assert 0 < training.steps_saved(output) < training.steps
    assert not training.is_saving(output)
    filler.unlink()
    again = training.start(output)
    assert again.wait() == 0, again.log.read_text()
    expected = training.content(tmp_path / "undisturbed")
    assert differences(expected, training.content(output)) == []
