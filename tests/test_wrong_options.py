"""Options that cannot be end in one line that names the option, and exit code 2, before anything is written.

The cases are made from the options of all commands and a seed: for each option values of its kind that it cannot have.
Input files are there and empty: a command that took a wrong value would fail over them, with another line.
"""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import random
import resource
import string
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nerfstudio.configs.method_configs  # noqa: F401 (slow, and eval.benchmark asks it for methods)
import numpy as np
import pytest
import torch
import tyro
from option_cases import refusal, split
from PIL import Image

import eval.blender
import eval.dtu_chamfer
import eval.extract_mesh
import eval.report
import examples.demo
import examples.demo_neus
from crossnorm_ns.data import make_scene
from crossnorm_ns.limits import Need, check_options, faults
from crossnorm_ns.representation.command import COMMANDS
from crossnorm_ns.representation.command import main as crossnorm
from crossnorm_ns.representation.presets import PRESETS, parse_network

SEED = 6
MOST_OF_AN_OPTION = 1000 if os.environ.get("CROSSNORM_FAULTS") == "long" else 4
"""Cases of an option that are tried: drawn from all that there are, where they are more."""
TOO_LONG = "n" * 300
HUGE = str(10**30)
UNREADABLE = "/proc/self/mem" if os.geteuid() == 0 else "unreadable"
"""A file that this user cannot read."""
ZERO_IS_FINE = {"seed", "val", "scan", "slurm-gpus"}
"""Options that may be 0; so may the steps of `crossnorm ntk`, of which there are several."""
NONE_IS_FINE = {"networks", "learning-rates", "growth-samples", "growth-widths"}
"""Options with several values that may have none."""
ANY_TEXT = {"method", "slurm-partition"}
"""Of eval.blender and eval.dtu_chamfer, which note the name of a system; and what a cluster alone knows."""
FLAGS = {"allow-large", "allow-outside", "colors", "normals", "resume", "retry-failed", "tensorboard", "tune"}
# Taken as well: learning rates and thresholds of any size (a training that diverges says so), folders whose names hold
# line breaks and folders "" (the working directory) to write to.
KINDS_OF_INPUT = {"a file": "folder", "a folder": "empty.png", "a file or a folder": "link to nowhere"}
"""What options of input files need, and what is there but is not that."""
NETWORKS = ["", "10", "x", "10x", "x28", "0x5", "5x0", "-1x5", "nanxinf", "1.5x2", "10x1000000", "9999x1", f"1x{HUGE}"]
DEVICES = ["", "gpu", "hpu", "privateuseone", "cuda:99", "meta", "cpu:x", "cuda:-1", HUGE]


@dataclass
class Command:
    """A command, and words that it cannot do without."""

    run: Callable[[], object]
    owner: Any
    """Dataclass or function with its options."""
    first: list[str]
    """Words before its options."""


def commands() -> dict[str, Command]:
    found = {
        f"crossnorm {name}": Command(lambda: crossnorm(sys.argv[1:]), owner, [name]) for name, owner in COMMANDS.items()
    }
    for module in pkgutil.iter_modules(eval.__path__, "eval."):
        content = importlib.import_module(module.name)
        if hasattr(content, "Arguments"):
            found[module.name] = Command(content.run, content.Arguments, [])
    for function in (make_scene.blender, make_scene.dtu):
        found[f"make_scene {function.__name__}"] = Command(make_scene.main, function, [function.__name__])
    for module in (examples.demo, examples.demo_neus):
        found[module.__name__] = Command(module.run, module.Demo, [])
    return found


COMMANDS_OF_ALL = commands()


@dataclass
class Option:
    """An option of a command."""

    name: str
    kind: Any
    """Its type, without notes and None."""
    items: Any
    """Type of its items, where it has several values."""
    needs: str
    """What its notes say, in words."""
    positional: bool
    required: bool

    @property
    def single(self) -> Any:
        return self.kind if self.items is None else self.items


def options_of(owner: Any) -> list[Option]:
    hints = typing.get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        missing = dataclasses.MISSING
        fields = {f.name: f.default is missing and f.default_factory is missing for f in dataclasses.fields(owner)}
    else:
        parameters = inspect.signature(owner).parameters
        fields = {name: parameter.default is inspect.Parameter.empty for name, parameter in parameters.items()}
    found = []
    for name, required in fields.items():
        notes, kind = split(hints[name])
        item_notes, items = split(typing.get_args(kind)[0]) if typing.get_origin(kind) is tuple else ((), None)
        needs = " ".join(note.what for note in (notes if items is None else item_notes) if isinstance(note, Need))
        positional = tyro.conf.Positional in notes
        found.append(Option(name.replace("_", "-"), kind, items, needs, positional, required))
    return found


def is_input(option: Option) -> bool:
    return option.single is Path and option.needs in KINDS_OF_INPUT


def fine_value(option: Option) -> str:
    if typing.get_origin(option.single) is Literal:
        return typing.get_args(option.single)[0]
    if option.single is Path:
        return ("folder" if "folder" in option.needs else "empty.png") if is_input(option) else "new.ply"
    return "1"


def wrong_values(option: Option, chance: random.Random) -> list[str]:
    """Values that an option with this type cannot have, whatever the command is."""
    word = "".join(chance.choices(string.ascii_letters + "äß\t\x1b", k=chance.randint(1, 40)))
    single, zero = option.single, ["0"]
    if option.name in ZERO_IS_FINE or (option.name, option.items) == ("steps", int):
        zero = []
    if typing.get_origin(single) is Literal:
        values = ["", "unknown", "nan", HUGE, word]
    elif single is int:
        below = str(-chance.randint(1, 10**20))
        values = [word, "", "1.5", "nan", "inf", below, HUGE, str(2**64), *zero]
    elif single is float:
        values = [word, "", "nan", "inf", "-inf", "0", f"-{HUGE}", str(-chance.random())]
    elif is_input(option):
        values = ["nowhere", "no\nwhere.png", "empty.png/below", TOO_LONG, KINDS_OF_INPUT[option.needs]]
    elif single is Path:
        kinds = ["folder", "folder/."] if option.needs.startswith("a file") else ["empty.png"]
        values = ["empty.png/below", TOO_LONG, f"folder/{TOO_LONG}/more", "link to nowhere", "/dev/null", *kinds]
    elif "layers x width" in option.needs:
        values = [*NETWORKS, f"{chance.randint(10**3, 10**9)}x{chance.randint(10**4, 10**9)}"]
    elif "device" in option.needs:
        values = DEVICES
    elif option.name in ("methods", "scenes", "dataparser"):
        values = ["", "nothing,like,that", word]
    else:
        assert single is bool or option.name in ANY_TEXT, option
        values = []
    return values


def cases() -> Iterator[tuple[str, Option, list[str]]]:
    chance = random.Random(SEED)
    for name, command in COMMANDS_OF_ALL.items():
        options = options_of(command.owner)
        for option in options:
            wrong: list[list[str]] = [[value] for value in wrong_values(option, chance)]
            if option.items is not None and option.name not in NONE_IS_FINE:
                wrong.append([])
            for values in chance.sample(wrong, min(len(wrong), MOST_OF_AN_OPTION)):
                words = []
                for other in options:
                    given = values if other is option else [fine_value(other)] if other.required else None
                    if given is None:
                        continue
                    # "=" keeps tyro from taking a number below 0 for an option
                    one = [f"--{other.name}={given[0]}"] if len(given) == 1 else [f"--{other.name}", *given]
                    words += given if other.positional else one
                yield name, option, words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, in a process that may take 2 GiB more than it has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "scene").mkdir(parents=True)
    (tmp_path / "folder" / "scene" / "transforms_train.json").touch()
    for name in ("empty.png", "unreadable"):
        (tmp_path / name).touch()
    (tmp_path / "unreadable").chmod(0)
    (tmp_path / "link to nowhere").symlink_to("nowhere")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", COMMANDS_OF_ALL)
def test_wrong_values_of_every_option_end_in_one_line_that_names_it(name, folder, monkeypatch, capsys) -> None:
    command = COMMANDS_OF_ALL[name]
    for _, option, words in (case for case in cases() if case[0] == name):
        error = refusal(command.run, [*command.first, *words], monkeypatch, capsys)
        names = (option.name.upper(), f"'{option.name}'") if option.positional else (f"--{option.name}",)
        assert any(part in error for part in names), (words, error)


def test_no_kind_of_device_that_torch_knows_ends_in_a_traceback() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.device("nope")
    kinds = str(error.value).partition("Expected one of ")[2].partition(" device type")[0].split(", ")
    assert {"cpu", "hpu", "privateuseone"} <= set(kinds)
    taken = {kind for kind in kinds if not list(faults(eval.blender.Arguments(device=kind)))}
    assert "cpu" in taken and "hpu" not in taken


def test_no_command_and_no_option_is_left_out() -> None:
    assert len(COMMANDS_OF_ALL) == 19
    tried = {(name, option.name) for name, option, _ in cases()}
    every = {(name, option.name) for name in COMMANDS_OF_ALL for option in options_of(COMMANDS_OF_ALL[name].owner)}
    assert {option for _, option in every - tried} == ANY_TEXT | FLAGS
    assert len(list(cases())) > 400


WITH_OTHERS = {
    "rays of a picture": (make_scene.main, ["blender", "new", "--resolution", "60000"], "--resolution"),
    "weights of growing networks": (
        lambda: crossnorm(sys.argv[1:]),
        ["ntk", "--network", "3x16", "--growth-widths", "16", "16384"],
        "--growth-widths",
    ),
    "frequencies of few samples": (
        lambda: crossnorm(sys.argv[1:]),
        ["spectrum", "--samples", "16", "--frequencies", "1", "8"],
        "frequencies",
    ),
    "beams of a scan": (
        lambda: crossnorm(sys.argv[1:]),
        ["ct", "--image", "picture.png", "--downscale", "1", "--num-angles", "1000000"],
        "num_angles",
    ),
    "a picture that is smaller": (
        lambda: crossnorm(sys.argv[1:]),
        ["image", "--image", "picture.png", "--side", "65"],
        "picture.png",
    ),
    "a picture that cannot be read": (lambda: crossnorm(sys.argv[1:]), ["image", "--image", UNREADABLE], UNREADABLE),
    "a run that cannot be read": (
        eval.extract_mesh.run,
        ["--load-config", UNREADABLE, "--output", "a.ply"],
        UNREADABLE,
    ),
    "results that cannot be read": (eval.report.run, [UNREADABLE, "--table", "dtu"], UNREADABLE),
    "no such option": (eval.dtu_chamfer.run, ["--dataset-dir", "a", "--nothing", "b"], "--nothing"),
    "a value for a flag": (eval.extract_mesh.run, ["--load-config", "a", "--output", "b", "--colors", "c"], "c"),
    "nothing given": (eval.extract_mesh.run, [], "--load-config"),
    "no value": (eval.blender.run, ["--output"], "--output"),
    "control characters": (eval.blender.run, ["--every", "\x1b[31m\n2"], "--every"),
    "no such command": (lambda: crossnorm(sys.argv[1:]), ["paint"], "paint"),
    "no such format": (make_scene.main, ["llff", "new"], "llff"),
}
"""Command lines with options that do not go together or not with a file, and with what is no option's value."""


@pytest.mark.parametrize("name", WITH_OTHERS)
def test_options_that_do_not_go_together_end_in_one_line(name: str, folder, monkeypatch, capsys) -> None:
    run, words, part = WITH_OTHERS[name]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)).save("picture.png")
    assert part in refusal(run, words, monkeypatch, capsys)


def test_what_people_do_is_within_the_limits(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.touch()
    mesh = eval.extract_mesh.Arguments(load_config=image, output=tmp_path / "mesh.ply", resolution=1024)
    kernels = COMMANDS["ntk"](samples=4096, network="4x4096", growth_samples=(64, 4096), growth_widths=(32, 4096))
    large = COMMANDS["image"](image=image, network="8x3500", batch_size=33_554_432, chunk_size=33_554_432)
    shape = COMMANDS["shape"](shape=image, preset="paper", resolution=1024)
    for options in (mesh, kernels, large, shape):
        check_options(options)
    for presets in PRESETS.values():
        for preset in presets.values():
            assert all(map(parse_network, preset.networks))
