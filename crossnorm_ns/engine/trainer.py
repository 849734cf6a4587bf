"""nerfstudio's trainer with calibrated norms, atomic exact checkpoints, and the CPU as a fallback."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE

from crossnorm_ns.command import errors_in_one_line, print_error
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.nerfstudio_scene import check_nerfstudio_scene
from crossnorm_ns.engine.checkpoints import (
    latest_checkpoint,
    missing_weights,
    prune_others,
    read_good_checkpoint,
    save_atomically,
)
from crossnorm_ns.engine.processes import (
    LostProcessError,
    gathered,
    largest,
    lost_processes_named,
    set_timeout,
    wait_for_all,
)
from crossnorm_ns.engine.random_state import capture_random_state, preserved_random_state, restore_random_state
from crossnorm_ns.finite import NonFiniteError, first_non_finite, numbers_of_step, tensors_in
from crossnorm_ns.interruption import InterruptedTraining, noted_signals
from crossnorm_ns.limits import POSITIVE, Fault, LimitError, between, check_options
from crossnorm_ns.memory import keep_freed_memory
from crossnorm_ns.norms import calibrate, norms_of
from crossnorm_ns.trial_step import check_states

_NEEDS = {
    "max_num_iterations": between(0, 10**9),
    "machine.seed": between(0, 2**32 - 1),
    "machine.num_devices": between(0, 4096),
    "machine.num_machines": between(1, 4096),
    "pipeline.datamanager.train_num_rays_per_batch": between(1, 2**24),
    "pipeline.datamanager.eval_num_rays_per_batch": between(1, 2**24),
    "pipeline.model.eval_num_rays_per_chunk": between(1, 2**28),
}
"""Of fields of nerfstudio's own classes."""


@dataclass
class CrossNormTrainerConfig(TrainerConfig):
    """Configuration of a training whose norms are calibrated before each save and each evaluation."""

    _target: type = field(default_factory=lambda: CrossNormTrainer)
    calibration_batches: Annotated[int, between(1, 10**6)] = 16
    """Training batches over which the population statistics of norms that train with the batch's are gathered."""
    process_timeout: Annotated[float, between(0.001, 10**9)] = 300.0
    """Seconds that each of several processes waits for the others before it gives them up and ends the training."""
    allow_outside: bool = False
    """Reads files outside of the scene's folder where its files name such, as the dataparsers' own option does."""

    def faults(self) -> Iterator[Fault]:
        """Numbers of nerfstudio's own that no training can have."""
        for name, need in _NEEDS.items():
            value = functools.reduce(lambda part, key: getattr(part, key, None), name.split("."), self)
            if value is not None and not need.holds(value):
                yield name, f"is {value}, but must be {need.what}"
        for name, group in self.optimizers.items():
            rate = getattr(group.get("optimizer"), "lr", None) if isinstance(group, dict) else None
            if rate is not None and not POSITIVE.holds(rate):
                yield f"optimizers.{name}.optimizer.lr", f"is {rate}, but must be {POSITIVE.what}"

    def save_config(self) -> None:
        """Checks values, data and checkpoint, then writes config.yml: a run that cannot start leaves nothing behind.

        Whether a checkpoint fits shows when the model is there: the trainer writes the file behind that.
        """
        datamanager = self.pipeline.datamanager
        parser: Any = getattr(datamanager, "dataparser", None)
        with errors_in_one_line(DataError, LimitError):
            check_options(self)
            if hasattr(parser, "check_data"):
                parser.allow_outside = parser.allow_outside or self.allow_outside
                if datamanager.data is not None:
                    parser.data = datamanager.data
                parser.check_data()
            elif isinstance(parser, NerfstudioDataParserConfig):
                data = datamanager.data or parser.data
                check_nerfstudio_scene(data, parser.downscale_factor, self.allow_outside)
            if (checkpoint := self.checkpoint_to_load()) is not None:
                read_good_checkpoint(checkpoint)
        if checkpoint is None:
            self.write_config()

    def write_config(self) -> None:
        """Writes config.yml."""
        super().save_config()

    def checkpoint_to_load(self) -> Path | None:
        """The checkpoint that a run goes on from, as nerfstudio chooses it; None for a new run.

        Raises:
            DataError: load_dir has none.
        """
        if self.load_dir is None:
            return self.load_checkpoint
        if self.load_step is not None:
            return self.load_dir / f"step-{self.load_step:09d}.ckpt"
        latest = latest_checkpoint(self.load_dir)
        if latest is None:
            raise DataError(f"--load-dir {self.load_dir} has no checkpoint (step-*.ckpt): give its nerfstudio_models.")
        return latest


class CrossNormTrainer(Trainer):
    """Trains up to `max_num_iterations` steps in all; a resumed run continues as if it had never stopped."""

    config: CrossNormTrainerConfig

    def __init__(self, config: CrossNormTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self._given_config = copy.deepcopy(config)  # nerfstudio and we change it on the way
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.print("[bold yellow]No CUDA device found: training on the CPU.")
            config.machine.device_type = "cpu"
        elif config.machine.device_type == "cuda":
            CONSOLE.print(f"Training on {torch.cuda.get_device_name(local_rank)}.")
        if world_size > 1:
            set_timeout(config.process_timeout)
            if config.machine.device_type == "cuda":
                torch.cuda.set_device(local_rank)
        keep_freed_memory()
        self._random_states: list[dict[str, Any]] = []
        self._resumed_from: Path | None = None
        self._signals: list[int] = []
        super().__init__(config, local_rank, world_size)

    def setup_optimizers(self) -> Optimizers:
        """Optimizers whose schedules end with the run where they name no end of their own.

        Model and optimizers of a resumed run are those of its checkpoint: what nerfstudio sets up next writes files.
        """
        groups = {}
        for name, group in self.config.optimizers.items():
            scheduler = group["scheduler"]
            if scheduler is not None and getattr(scheduler, "max_steps", 0) is None:
                scheduler = dataclasses.replace(scheduler, max_steps=self.config.max_num_iterations)
            groups[name] = {**group, "scheduler": scheduler}
        self.optimizers = Optimizers(groups, self.pipeline.get_param_groups())
        if (checkpoint := self.config.checkpoint_to_load()) is not None:
            self._resume(checkpoint)
            if self.local_rank == 0:  # as ns-train does for a new run
                self._given_config.write_config()
        return self.optimizers

    def train(self) -> None:
        """Trains from where the loaded checkpoint stopped up to `max_num_iterations`.

        SIGINT and SIGTERM end it after the step at hand, which is saved. Numbers that are no longer finite end it at
        once, and nothing is saved; so do the loss of one of several processes and a file that cannot be written.
        """
        try:
            with lost_processes_named():
                self._train()
        except NonFiniteError as error:
            print_error(error)
            sys.exit(1)
        except (LostProcessError, OSError) as error:
            print(
                f"error: step {self.step}: {error}; the last checkpoint is {self._last_checkpoint or 'none'}: "
                "resume with --load-dir.",
                file=sys.stderr,
            )
            sys.exit(1)

    def _train(self) -> None:
        total = self.config.max_num_iterations
        if self._start_step >= total:
            CONSOLE.print(
                f"The checkpoint has {self._start_step} steps already: nothing is left of --max-num-iterations {total}."
            )
            return
        if not self._random_states:
            self.calibrate_norms()  # a viewer renders before the first step
        elif comms.get_rank() < len(self._random_states):  # others keep the random numbers that they began with
            restore_random_state(self._random_states[comms.get_rank()])
        self.config.max_num_iterations = total - self._start_step
        try:
            with noted_signals() as self._signals:
                super().train()
        except InterruptedTraining as stop:
            self.save_checkpoint(self.step)
            CONSOLE.print(f"{stop}, saved after step {self.step}: resume with --load-dir {self.checkpoint_dir}.")
            sys.exit(stop.status)
        finally:
            self.config.max_num_iterations = total

    def train_iteration(self, step: int) -> Any:
        """nerfstudio's, which ends the training where a number is not finite, or after a signal."""
        outputs = super().train_iteration(step)
        gradients = not self.grad_scaler.is_enabled()
        culprit = first_non_finite(numbers_of_step(self.pipeline.model, outputs[1], gradients))
        if culprit is not None:
            raise self._not_finite(step, culprit)
        if number := largest(max(self._signals, default=0), self.device):  # in all processes after the same step
            raise InterruptedTraining(number)
        return outputs

    def _not_finite(self, step: int, what: str) -> NonFiniteError:
        return NonFiniteError(
            f"step {step}: {what} is not finite, training stops; "
            f"the last good checkpoint is {self._last_checkpoint or 'none'}. "
            "Is the learning rate too high, or a number of the data not finite?"
        )

    @property
    def _last_checkpoint(self) -> Path | None:
        """What a training that stops here can go on from."""
        return latest_checkpoint(self.checkpoint_dir) or self._resumed_from

    def calibrate_norms(self) -> None:
        """Stores population statistics of the model's norms; draws training batches without any effect on training.

        Several processes call it together: each draws its own rays, and the statistics are those of all.
        Renormalised norms already have the statistics that they train with; one batch makes the first of them.
        """
        model = self.pipeline.model
        norms = [norm for norm in norms_of(model) if norm.formula.uses_columns]
        to_calibrate = any(norm.statistics == "batch" for norm in norms)
        if not to_calibrate and all(norm.domains for norm in norms):
            return
        datamanager = self.pipeline.datamanager
        count = datamanager.train_count
        with preserved_random_state():
            calibrate(model, self._training_rays(self.config.calibration_batches if to_calibrate else 1))
        datamanager.train_count = count

    def _training_rays(self, batches: int) -> Iterator[tuple[RayBundle]]:
        for _ in range(batches):
            rays, _ = self.pipeline.datamanager.next_train(self.step)
            assert isinstance(rays, RayBundle)
            yield (rays,)

    def eval_iteration(self, step: int) -> None:
        """nerfstudio's, with calibrated norms and without an effect on training: so always with the same picture."""
        config = self.config
        due = [config.steps_per_eval_batch, config.steps_per_eval_image, config.steps_per_eval_all_images]
        if not any(step_check(step, steps) for steps in due):
            return
        self.calibrate_norms()
        with preserved_random_state():
            super().eval_iteration(step)

    def save_checkpoint(self, step: int) -> None:
        """Calibrates, then writes a checkpoint atomically; older ones go only after it is complete.

        Several processes call it together, and the first writes; all have the checkpoint when it returns.

        Raises:
            NonFiniteError: a number of it is not finite (calibration sees rays that training has not): it is not
                written, and the older ones stay.
        """
        with self.train_lock:  # a viewer renders under it, in eval mode
            self.calibrate_norms()
        pipeline = getattr(self.pipeline, "module", self.pipeline)
        content = {
            "step": step,
            "pipeline": pipeline.state_dict(),
            "optimizers": {name: part.state_dict() for name, part in self.optimizers.optimizers.items()},
            "schedulers": {name: part.state_dict() for name, part in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        culprit = first_non_finite(tensors_in(content))
        if culprit is not None:
            raise self._not_finite(step, f"{culprit} of the checkpoint to save")
        content["random_states"] = gathered(capture_random_state())
        if comms.is_main_process():
            path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
            save_atomically(content, path)
            if self.config.save_only_latest_checkpoint:
                prune_others(path)
        wait_for_all()

    def _load_checkpoint(self) -> None:
        """Nothing is left to do, see `setup_optimizers`."""

    def _resume(self, path: Path) -> None:
        checkpoint, self._resumed_from = read_good_checkpoint(path), path
        with errors_in_one_line(DataError):
            try:
                self._take(checkpoint)
            except Exception as error:  # of whatever the file holds
                reason = f"{type(error).__name__}: {error}"
                raise DataError(f"{path} does not fit: give the method and options of its run ({reason}).") from error
            missing = missing_weights(self.pipeline.model, checkpoint["pipeline"])  # nerfstudio passes over them
            if missing:
                raise DataError(f"{path} lacks {len(missing)} weights of the model, such as {missing[0]}.")
        CONSOLE.print(f"Going on from {path}.")

    def _take(self, checkpoint: dict[str, Any]) -> None:
        """What nerfstudio does with a checkpoint, and a trial of all that is not weights."""
        self._start_step = checkpoint["step"] + 1
        self.pipeline.load_pipeline(checkpoint["pipeline"], checkpoint["step"])
        self.optimizers.load_optimizers(checkpoint["optimizers"])
        if "schedulers" in checkpoint and self.config.load_scheduler:
            self.optimizers.load_schedulers(checkpoint["schedulers"])
        self.grad_scaler.load_state_dict(checkpoint["scalers"])
        for name, optimizer in self.optimizers.optimizers.items():
            check_states(optimizer, self.optimizers.schedulers.get(name))
        if not all(math.isfinite(number) for number in self.grad_scaler.state_dict().values()):
            raise ValueError("the state of the gradients' scaler is not finite")
        self._random_states = checkpoint.get("random_states", [])
        for state in self._random_states:
            with preserved_random_state():
                restore_random_state(state)
