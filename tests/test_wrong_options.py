"""A command line that cannot be read ends in one line that names the option, and exit code 2."""

import sys
from collections.abc import Callable

import pytest

import eval.blender
import eval.dtu_chamfer
import eval.extract_mesh
from crossnorm_ns.representation.command import main as crossnorm


def run_crossnorm() -> None:
    crossnorm(sys.argv[1:])


GIVEN = {
    "image": ["--image", "a.png"],
    "shape": ["--shape", "a.ply"],
    "ct": ["--image", "a.png"],
    "mri": ["--volume", "a.npy"],
    "table": ["ct", "--inputs", "a.png"],
    "ntk": [],
    "spectrum": [],
    "compress": ["a.png", "a.cninr"],
    "rate-distortion": ["--image", "a.png"],
}
"""What each command of `crossnorm` that has a seed cannot do without."""
CASES: dict[str, tuple[Callable[[], object], list[str], str]] = {
    "no number": (eval.blender.run, ["--every", "x"], "--every"),
    "a real number for a whole one": (
        eval.extract_mesh.run,
        ["--load-config", "a", "--output", "b", "--resolution", "1.5"],
        "--resolution",
    ),
    "no such choice": (eval.blender.run, ["--protocol", "best"], "--protocol"),
    "no such option": (eval.dtu_chamfer.run, ["--dataset-dir", "a", "--nothing", "b"], "--nothing"),
    "nothing given": (eval.extract_mesh.run, [], "--load-config"),
    "no value": (eval.blender.run, ["--output"], "--output"),
    "control characters": (eval.blender.run, ["--every", "\x1b[31m\n2"], "--every"),
    **{name: (run_crossnorm, [name, *given, "--seed", "x"], "--seed") for name, given in GIVEN.items()},
    "no such command": (run_crossnorm, ["paint"], "paint"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_options_end_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run, arguments, option = CASES[name]
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        run()
    out, error = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert error.startswith("error: ") and error.count("\n") == 1 and error.isascii(), error
    assert option in error and "\x1b" not in error
