"""Real trainings in processes of their own, which can be struck by signals at any moment and resumed."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import RawValue
from pathlib import Path
from typing import Any

import torch
from forked import exit_code
from nerfstudio.scripts import train as ns_train

from crossnorm_ns.engine.trainer import CrossNormTrainer
from crossnorm_ns.representation import command
from crossnorm_ns.representation.training import Training

steps_done: Any = RawValue("q")
"""Steps that the process at hand has finished; shared with it."""


@dataclass(frozen=True)
class Subject:
    """A training to strike: its command, and what it leaves."""

    name: str
    data: Path
    steps: int
    first_save: int
    """Steps after which the first checkpoint begins to be written."""

    def folder(self, output: Path) -> Path:
        """Where the unfinished file of a checkpoint lies."""
        return output / "scene" / self.name / "run" if self.is_method else output

    @property
    def is_method(self) -> bool:
        return self.name.endswith("-tiny")

    def checkpoints(self, output: Path) -> list[Path]:
        """All that are complete by their names."""
        folder = self.folder(output)
        return sorted(folder.glob("nerfstudio_models/*") if self.is_method else folder.glob("checkpoint.pt"))

    def content(self, output: Path) -> dict[str, Any]:
        """The newest checkpoint under torch's safe default, without the clock's part."""
        content = torch.load(self.checkpoints(output)[-1], map_location="cpu", weights_only=True)
        if not self.is_method:
            content["state"]["seconds"] = 0
        return content

    def steps_saved(self, output: Path) -> int:
        """Steps that the newest checkpoint has behind it; 0 without one."""
        if not self.checkpoints(output):
            return 0
        content = self.content(output)
        return content["step"] + 1 if self.is_method else content["state"]["step"]

    def is_saving(self, output: Path) -> bool:
        """An unfinished checkpoint is there."""
        try:
            names = os.listdir(self.folder(output))
        except FileNotFoundError:
            return False
        return any(name.startswith((".step-", ".checkpoint")) for name in names)

    def start(self, output: Path) -> "Child":
        """Begins the training, or goes on with what is there: by --load-dir alone, a fit by --resume."""
        if not self.is_method:
            arguments = ["image", "--image", str(self.data), "--side", "16", "--network", "1x8"]
            arguments += ["--steps", str(self.steps), "--output", str(output), "--resume"]
            return Child(lambda: command.main(arguments), output)
        arguments = [self.name, "--data", str(self.data), "--output-dir", str(output), "--timestamp", "run"]
        arguments += ["--max-num-iterations", str(self.steps), "--steps-per-save", str(self.first_save - 1)]
        arguments += ["--machine.device-type", "cpu", "--calibration-batches", "2"]
        arguments += ["--pipeline.datamanager.train-num-rays-per-batch", "32"]
        if self.checkpoints(output):
            arguments += ["--load-dir", str(self.folder(output) / "nerfstudio_models")]
        return Child(lambda: _ns_train(arguments), output)


def _ns_train(arguments: Sequence[str]) -> None:
    sys.argv = ["ns-train", *arguments]
    ns_train.entrypoint()


class Child:
    """A process forked from this one, which has imported already what is slow to import."""

    def __init__(self, main: Callable[[], None], output: Path) -> None:
        self.log = output.with_suffix(".log")
        self.log.touch()
        steps_done.value = 0
        self.started = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            code = 71
            try:
                code = self._run(main)
            finally:
                os._exit(code)

    def _run(self, main: Callable[[], None]) -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        _count_steps()
        return exit_code(main)

    def wait(self) -> int:
        """Its exit code; minus the signal's number where one has killed it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def is_running(self) -> bool:
        """It has not ended; waiting for it is left to `wait`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _count_steps() -> None:
    def counted(original: Any) -> Any:
        def step(self: Any, *arguments: Any) -> Any:
            try:
                return original(self, *arguments)
            finally:
                steps_done.value = arguments[0] + 1 if arguments else self.state.step

        return step

    for owner, name in ((CrossNormTrainer, "train_iteration"), (Training, "step")):
        setattr(owner, name, counted(getattr(owner, name)))


@dataclass
class Strike:
    """One kill, and what was left."""

    subject: str
    signal: str
    while_saving: bool
    """Meant for a moment in which a checkpoint is being written."""
    hit_saving: bool
    """An unfinished checkpoint was there at that moment."""
    exit_code: int
    steps_done: int
    steps_saved: int
    survived: bool = False
    """A checkpoint was there, and the training that went on from it ended as the undisturbed one."""

    @property
    def steps_lost(self) -> int:
        return max(self.steps_done - self.steps_saved, 0)


def strike(subject: Subject, output: Path, number: signal.Signals, moment: float, while_saving: bool) -> Strike | None:
    """Starts a training and sends it a signal; None where it had ended before.

    Args:
        subject: the training.
        output: a new folder for it.
        number: of the signal.
        moment: seconds after the start; for strikes while saving, in which save, counted from 0.
        while_saving: waits for an unfinished checkpoint.
    """
    child, seen, was_saving = subject.start(output), 0, False
    while child.is_running():
        if while_saving:
            saving = subject.is_saving(output)
            seen += saving and not was_saving
            was_saving = saving
            due = saving and seen > moment
        else:
            due = time.perf_counter() - child.started >= moment
            time.sleep(0.001)
        if due:
            os.kill(child.pid, number)
            hit = subject.is_saving(output)
            code = child.wait()
            found = (code, steps_done.value, subject.steps_saved(output))
            return None if code == 0 else Strike(subject.name, number.name, while_saving, hit, *found)
    child.wait()
    return None


def table(strikes: Sequence[Strike]) -> str:
    """Kills, survived, lost steps of each training and signal, in Markdown."""
    lines = ["| training | signal | kills | while saving | survived | lost steps, mean | most |", "|" + " --- |" * 7]
    for key in sorted({(one.subject, one.signal) for one in strikes}):
        some = [one for one in strikes if (one.subject, one.signal) == key]
        lost = [one.steps_lost for one in some]
        cells = [*key, len(some), sum(one.while_saving for one in some), sum(one.survived for one in some)]
        lines.append("| " + " | ".join(map(str, [*cells, f"{sum(lost) / len(lost):.1f}", max(lost)])) + " |")
    return "\n".join(lines) + "\n"


def store(strikes: Sequence[Strike], folder: Path, seed: int) -> None:
    """Writes faults.md and faults.json."""
    from crossnorm_ns.provenance import provenance

    folder.mkdir(parents=True, exist_ok=True)
    found = provenance()
    heading = f"Seed {seed}; {found['machine']}, torch {found['versions']['torch']}."
    (folder / "faults.md").write_text(f"{heading}\n\n{table(strikes)}")
    content = {"seed": seed, **found, "kills": [vars(one) | {"steps_lost": one.steps_lost} for one in strikes]}
    (folder / "faults.json").write_text(json.dumps(content, indent=1) + "\n")
