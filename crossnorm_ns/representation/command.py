"""The command of the representation tasks: `crossnorm`, or `python -m crossnorm_ns.representation`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from crossnorm_ns.command import errors_in_one_line, read_options
from crossnorm_ns.interruption import InterruptedTraining
from crossnorm_ns.jobs import JobError
from crossnorm_ns.representation.commands_analysis import NTKCommand, SpectrumCommand
from crossnorm_ns.representation.commands_codec import CompressCommand, DecompressCommand, RateDistortionCommand
from crossnorm_ns.representation.commands_table import TableCommand
from crossnorm_ns.representation.commands_tasks import CTCommand, ImageCommand, MRICommand, ShapeCommand
from crossnorm_ns.representation.errors import RepresentationError

COMMANDS = {
    "image": ImageCommand,
    "shape": ShapeCommand,
    "ct": CTCommand,
    "mri": MRICommand,
    "table": TableCommand,
    "ntk": NTKCommand,
    "spectrum": SpectrumCommand,
    "compress": CompressCommand,
    "decompress": DecompressCommand,
    "rate-distortion": RateDistortionCommand,
}
"""By name; each has a `run`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the sub-command that the arguments name.

    Bad input ends with one line on standard error and exit code 2, SIGINT and SIGTERM in training with one that says
    how to go on, and 128 plus their number.

    Args:
        arguments: of the command line; None takes those of the process.
    """
    command = read_options(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="crossnorm",
            description="Coordinate networks with any norm on the tasks of the paper.",
            args=arguments,
        )
    )
    try:
        with errors_in_one_line(RepresentationError, JobError, OSError):
            command.run()
    except InterruptedTraining as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.status) from stop
