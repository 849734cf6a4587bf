"""ns-train's command line for processes that torchrun starts: each trains as one of them.

    torchrun --nproc-per-node 2 -m crossnorm_ns.engine.launch mipnerf-cn --data data/lego blender-cn

takes the options of `ns-train` but for --machine.num-devices and the like, which torchrun's own options say.
"""

from __future__ import annotations

import os
import sys

import torch
import tyro
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.scripts.train import train_loop
from nerfstudio.utils import comms
from torch import distributed

from crossnorm_ns.command import errors_in_one_line, read_options
from crossnorm_ns.engine.processes import LostProcessError, gathered, lost_processes_named


def main() -> None:
    """Trains as one of torchrun's processes."""
    run(read_options(lambda: tyro.cli(AnnotatedBaseConfigUnion, description=__doc__)))


def run(config: TrainerConfig) -> None:
    """Trains as one of torchrun's processes, and ends the program where it cannot."""
    with errors_in_one_line(ValueError):
        if not distributed.is_torchelastic_launched():
            raise ValueError("this module wants to be started by torchrun: for one process take ns-train")
        if config.load_config is not None:
            raise ValueError("--load-config is an option of ns-train alone: give the method and its options instead")
    try:
        with lost_processes_named():
            _train(config)
    except LostProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _train(config: TrainerConfig) -> None:
    """What ns-train does with a configuration, the first process on behalf of all."""
    if config.data:
        config.pipeline.datamanager.data = config.data
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpus = config.machine.device_type == "cuda" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    config.set_timestamp()
    config.timestamp = gathered(config.timestamp)[0]
    if comms.is_main_process():
        config.print_to_terminal()
        config.save_config()
    distributed.barrier()  # data that the first process refuses end all
    train_loop(local_rank, comms.get_world_size(), config, comms.get_rank())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
