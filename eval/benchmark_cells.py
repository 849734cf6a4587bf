"""The cells of a sweep: each is one training and its evaluation, in processes of their own."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossnorm_ns.files import atomic_file
from crossnorm_ns.representation.run_folder import first_difference
from eval.errors import EvaluationError

TRAIN = (sys.executable, "-m", "nerfstudio.scripts.train")
EVALUATE = (sys.executable, "-m")

_NEEDS = (
    (r"tinycudann|tiny-cuda-nn|tcnn", "needs tiny-cuda-nn"),
    (r"not compiled with CUDA|No CUDA|NVIDIA driver|\bnvcc\b|CUDA_HOME|nerfacc/cuda", "needs a CUDA device"),
    (r"KeyError: 'depth_filenames'", "needs data in the format of sdfstudio"),
    (r"urlopen|URLError|ConnectionError|HTTP ?Error|Max retries|name resolution|Name or service", "needs a download"),
)
"""What the end of a log says, and what it means."""


_ENDED_BY_SIGNALS = {
    status: number.name for number in (signal.SIGTERM, signal.SIGINT) for status in (-number, 128 + number)
}
"""Exit statuses of what has been asked to end, as a cluster does when it cancels a job."""


class CellError(RuntimeError):
    """A training or an evaluation that failed.

    Attributes:
        log: what it has printed.
    """

    def __init__(self, reason: str, log: Path) -> None:
        super().__init__(reason)
        self.log = log


class CellBusyError(RuntimeError):
    """Another process is at work in a cell's folder."""


class CellStoppedError(RuntimeError):
    """A training or an evaluation was asked to end."""


class Processes:
    """Processes that can be stopped together."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def __reduce__(self) -> tuple[type[Processes], tuple[()]]:
        return Processes, ()  # those of another process are not there

    def run(self, command: Sequence[str], log: Path, threads: int | None, lock: int) -> int:
        """Runs a command and returns its exit status; minus the signal where one has ended it.

        Args:
            command: the command.
            log: file for all that it prints.
            threads: of each process, where OMP_NUM_THREADS does not say; None leaves them open.
            lock: descriptor that the process holds as long as it lives.

        Raises:
            CellStoppedError: `stop` was called.
        """
        environment = os.environ if threads is None else {"OMP_NUM_THREADS": str(threads)} | os.environ
        with log.open("wb") as output:
            with _without_signal(signal.SIGUSR2), self._lock:
                if self._stopped:
                    raise CellStoppedError
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=(lock,),
                    start_new_session=True,  # else Ctrl-C would reach it, and `stop` would be its second signal
                )
                self._running.add(process)
            try:
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        if self._stopped:
            raise CellStoppedError
        return status

    def stop(self) -> None:
        """Ends all with SIGTERM, and begins no more: our trainer saves a checkpoint first."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def stop_and_wait(self) -> None:
        """The same, until all have ended; may be called by a handler of signals while `run` waits."""
        self.stop()
        for process in self._running:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        method: a registered method of nerfstudio.
        scene: the data.
        seed: of the training.
        folder: for all files.
        training: options of ns-train.
        dataparser: subcommand of ns-train and its options; empty takes the method's own.
        evaluation: module and options of the evaluation, without config and output.
        resumes: whether a training that was interrupted goes on from its checkpoint.
        threads: of each process; None leaves them open.
        obstacle: why it cannot be done, known before; empty where nothing is.
    """

    method: str
    scene: Path
    seed: int
    folder: Path
    training: tuple[str, ...]
    dataparser: str
    evaluation: tuple[str, ...]
    resumes: bool
    threads: int | None = None
    obstacle: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method} on {self.scene.name}, seed {self.seed}"

    @property
    def result(self) -> dict[str, Any] | None:
        """What the evaluation has written; None where it has not."""
        return _read(self.folder / "result.json")

    @property
    def failure(self) -> dict[str, Any] | None:
        """Reason and log of a failure that was noted; None where there is none."""
        return _read(self.folder / "failure.json")

    @property
    def state(self) -> str:
        """What is being done: training or evaluating; empty where nothing is."""
        path = self.folder / "state"
        return path.read_text() if path.is_file() else ""

    def check(self) -> None:
        """Finds out whether the folder belongs to this cell, and notes that it does.

        Raises:
            EvaluationError: it belongs to another.
        """
        path = self.folder / "cell.json"
        now = {
            "method": self.method,
            "scene": str(self.scene.resolve()),
            "seed": self.seed,
            "training": list(self.training),
            "dataparser": self.dataparser,
            "evaluation": list(self.evaluation),
        }
        before = _read(path)
        difference = None if before is None else first_difference(before, now)
        if difference is not None:
            raise EvaluationError(f"{self.folder} holds another cell ({difference}): choose another --output.")
        if before is None:
            _write(path, now)

    def note_failure(self, error: Exception) -> None:
        """Keeps why it failed, so that it is not done again unless asked for."""
        log = error.log if isinstance(error, CellError) else None
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        _write(self.folder / "failure.json", {"reason": reason, "log": None if log is None else str(log)})

    def forget(self) -> None:
        """Removes what a failure or a kill has left of its states."""
        for name in ("failure.json", "state"):
            (self.folder / name).unlink(missing_ok=True)

    def carry_out(self, processes: Processes) -> dict[str, Any]:
        """Trains and evaluates, from where it was interrupted, and returns the result.

        Raises:
            CellError: one of them failed, which is noted.
            CellStoppedError: `processes` were stopped, or one of them was asked to end.
            CellBusyError: another process is at work in the folder.
        """
        with _locked(self.folder / "lock") as lock:
            try:
                trained = self.folder / "trained"
                if not trained.exists():
                    self._run(processes, "training", self._training_command(), lock)
                    trained.touch()
                module, *options = self.evaluation
                command = [*EVALUATE, module, "--load-config", str(self._run_folder() / "config.yml"), *options]
                output = self.folder / "result.json"
                self._run(processes, "evaluating", [*command, "--output", str(output)], lock)
                result = self.result
                if result is None:
                    raise CellError("the evaluation wrote no result", self.folder / "evaluating.log")
                return result
            except CellError as error:
                self.note_failure(error)
                raise
            finally:
                (self.folder / "state").unlink(missing_ok=True)

    def _run(self, processes: Processes, state: str, command: Sequence[str], lock: int) -> None:
        (self.folder / "state").write_text(state)
        log = self.folder / f"{state}.log"
        status = processes.run(command, log, self.threads, lock)
        if status in _ENDED_BY_SIGNALS:
            raise CellStoppedError(f"{state} was ended by {_ENDED_BY_SIGNALS[status]}: the next time it goes on")
        if status:
            raise CellError(failure_reason(log.read_text(errors="replace"), status), log)

    def _run_folder(self) -> Path:
        return self.folder / "run" / self.scene.name / self.method / "cell"

    def _training_command(self) -> list[str]:
        places = ["--data", str(self.scene), "--output-dir", str(self.folder / "run")]
        names = ["--method-name", self.method, "--experiment-name", self.scene.name, "--timestamp", "cell"]
        checkpoints = self._run_folder() / "nerfstudio_models"
        resume = ["--load-dir", str(checkpoints)] if self.resumes and any(checkpoints.glob("*.ckpt")) else []
        options = ["--machine.seed", str(self.seed), *resume, *self.training, *self.dataparser.split()]
        return [*TRAIN, self.method, "--vis", "tensorboard", *places, *names, *options]


def failure_reason(log: str, status: int) -> str:
    """Why a process failed, in a line: from the last traceback, or the last lines, of what it printed."""
    if status < 0:
        return f"killed by signal {-status}" + (", most likely because memory ran out" if status == -9 else "")
    log = re.sub(r"\x1b\[[0-9;]*m", "", log)
    if option := _wrong_option(log):
        return option
    lines = [line.strip() for line in log.splitlines() if line.strip(" │╭╰─╮╯")]
    begin = max((place for place, line in enumerate(lines) if line.startswith("Traceback")), default=len(lines) - 5)
    end = lines[max(begin, 0) :]
    last = next((line.strip("│ ") for line in reversed(end) if re.match(r"[\w.]*(Error|Exception)\b|error:", line)), "")
    last = last or (end[-1].strip("│ ") if end else f"exit status {status}")
    need = next((what for pattern, what in _NEEDS if re.search(pattern, "\n".join(end), re.IGNORECASE)), None)
    return last if need is None else f"{need}: {last}"


def _wrong_option(log: str) -> str:
    """What tyro's box at the end of a log says of an option: its first paragraph; empty where there is no such box."""
    lines = [line.strip(" │") for line in log.rstrip(" \n╰─╯").splitlines()]
    rules = [place for place, line in enumerate(lines) if re.search("[-─]{8}", line)]
    if len(rules) < 2 or not any(line.startswith("For full helptext") for line in lines[rules[-1] :]):
        return ""
    return " ".join(itertools.takewhile(bool, lines[rules[0] + 1 : rules[1]]))


@contextmanager
def _without_signal(number: signal.Signals) -> Iterator[None]:
    """Puts a signal off, for good in processes that are started within: clusters send it to all of a job's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Holds a lock, which processes that inherit the descriptor go on holding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CellBusyError(
                f"{path.parent} is being worked on by another process, perhaps one that an earlier sweep has left: "
                "wait for it, or end it."
            ) from error
        yield file.fileno()


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
