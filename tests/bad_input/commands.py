"""Commands carried out in processes forked from this one, within bounds, and what came of them."""

import contextlib
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from forked import exit_code

SECONDS = 10
"""Of processor time that a command may take."""
PATIENCE = 60
"""Seconds after which one is taken to hang that does not use the processor."""
MEMORY = 2**31
"""Bytes that a process may take in all."""


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    """Its exit code: 70 after an exception that it let through; minus the signal's number where one has killed it."""
    err: str
    """What it wrote on standard error, paths from the folder that it was called in."""
    found: Any
    """What its function returned, None where it ended before."""
    written: list[str]
    """Files and folders that are new, gone or changed."""
    seconds: float
    """By the wall's clock."""
    memory: int
    """Bytes that its process took at most, with all packages that it has imported."""


def carried_out(command: Callable[[], Any], folder: Path) -> Ending:
    """Calls a function in a process of its own, in a folder where also its temporary files go."""
    before, started = _listing(folder), time.perf_counter()
    with contextlib.ExitStack() as stack:
        out, err, result = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        pid = os.fork()
        if pid == 0:
            code = 71
            try:
                code = _child(command, folder, out, err, result)
            finally:
                os._exit(code)
        descriptor = os.pidfd_open(pid)
        stack.callback(os.close, descriptor)
        if not select.select([descriptor], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
        code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (err, result):
            file.seek(0)
            texts.append(file.read())
    return Ending(
        code=code,
        err=texts[0].decode(errors="replace").replace(f"{folder}/", ""),
        found=pickle.loads(texts[1]) if texts[1] else None,
        written=_differences(before, _listing(folder)),
        seconds=seconds,
        memory=usage.ru_maxrss * 1024,
    )


def _child(command: Callable[[], Any], folder: Path, out: IO[bytes], err: IO[bytes], result: IO[bytes]) -> int:
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder)
    os.environ["CROSSNORM_KERNELS"] = "plain"  # others would be built first
    tempfile.tempdir = None
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def kept() -> None:
        result.write(pickle.dumps(command()))
        result.flush()

    return exit_code(kept)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that is below a folder."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)
    return found


def _differences(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
