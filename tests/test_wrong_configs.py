"""Fields of our methods that cannot be: in a run's config.yml, for commands of `eval`, and as options of ns-train.

The cases are made from the fields of the classes and a seed. Each ends in one line that names the field, and exit code
2, before anything is written.
"""

import copy
import dataclasses
import importlib
import math
import os
import pkgutil
import random
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
import yaml
from chamfer_files import write_reference
from nerfstudio.plugins.types import MethodSpecification
from nerfstudio.scripts import train as ns_train
from option_cases import refusal, split

import eval.blender
import eval.dtu_chamfer
import eval.extract_mesh
import method_configs
from crossnorm_ns.command import errors_in_one_line
from crossnorm_ns.engine import launch
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.limits import Need, faults

SEED = 7
MOST_OF_A_FIELD = 1000 if os.environ.get("CROSSNORM_FAULTS") == "long" else 1
"""Cases of a field that are tried: drawn from all that there are, where they are more."""
METHODS: dict[str, CrossNormTrainerConfig] = {
    specification.config.method_name: specification.config
    for module in pkgutil.iter_modules(method_configs.__path__)
    for specification in vars(importlib.import_module(f"method_configs.{module.name}")).values()
    if isinstance(specification, MethodSpecification)
}
COMMANDS = {
    "mipnerf-cn": (eval.blender.run, []),
    "neus-cn": (eval.extract_mesh.run, ["--output", "mesh.ply"]),
    "volsdf-cn": (eval.dtu_chamfer.run, ["--dataset-dir", "dtu", "--scan", "24"]),
}
"""For each kind of model a command that reads its runs."""


def parts_of(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All dataclasses in a configuration, with the dotted names before their fields'."""
    if isinstance(config, dict):
        for key, part in config.items():
            yield from parts_of(part, f"{name}{key}.")
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        yield name, config
        for field in dataclasses.fields(config):
            yield from parts_of(getattr(config, field.name), f"{name}{field.name}.")


def kind_of(config: Any, field: str) -> tuple[tuple[Any, ...], Any, bool]:
    """Notes of a field's type, the type without them, and whether it may be None."""
    hint = typing.get_type_hints(type(config), include_extras=True)[field]
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    optional = typing.get_origin(bare) in (typing.Union, types.UnionType) and type(None) in typing.get_args(bare)
    return *split(hint), optional


def wrong_numbers(config: Any, field: str) -> list[Any]:
    """Numbers that no field of this type can have, and those that its notes refuse at their ends."""
    _, kind, _ = kind_of(config, field)
    return [-(10**30), 10**30, -1] if kind is int else [math.nan, math.inf, -math.inf, -1e30]


def wrong_values(config: Any, field: str) -> list[Any]:
    """Values of other types than a field's, and numbers that it cannot have."""
    _, kind, optional = kind_of(config, field)
    others = ["word", [1, 2], {"key": 1}, (3, "x"), *([] if optional else [None])]
    if kind in (int, float):
        own = isinstance(config, CrossNormTrainerConfig) or type(config).__module__.startswith("crossnorm_ns")
        return [*others, True, *(wrong_numbers(config, field) if own else [])]
    if typing.get_origin(kind) is Literal:
        return [*others, "", 3]
    if kind is bool:
        return [*others, 2, 0.5]
    if kind is str:
        return [1, *others[1:]]
    if typing.get_origin(kind) is dict:
        return ["word", 1, [1, 2], {"key": "word"}, {1: 2.0}]
    return ["word", 1, [1, 2]]  # a class


def configs(method: str) -> Iterator[tuple[str, CrossNormTrainerConfig]]:
    """A method with one field of its model that is wrong, and the field's dotted name."""
    chance = random.Random(SEED)
    for prefix, part in parts_of(METHODS[method].pipeline.model, "pipeline.model."):
        for field in dataclasses.fields(part):
            wrong = wrong_values(part, field.name)
            for value in chance.sample(wrong, min(len(wrong), MOST_OF_A_FIELD)):
                config = copy.deepcopy(METHODS[method])
                (owner,) = [other for name, other in parts_of(config) if name == prefix]
                setattr(owner, field.name, value)
                yield f"{prefix}{field.name}", config


@pytest.mark.parametrize("method", COMMANDS)
def test_wrong_values_in_a_config_file_end_in_one_line_that_names_file_and_field(
    method: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    write_reference(tmp_path / "dtu")
    (run, words), count = COMMANDS[method], 0
    for name, config in configs(method):
        Path("config.yml").write_text(yaml.dump(config))
        error = refusal(run, ["--load-config", "config.yml", *words], monkeypatch, capsys)
        assert error.startswith(f"error: config.yml: {name} is "), error
        count += 1
    assert count > 20


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("sdf_field", {"sdf_width": 100_000}),
        ("sdf_field", {"color_width": 100_000, "color_depth": 1000}),
        ("sdf_field", {"sdf_skip": 8}),
        ("sdf_field", {"sdf_width": 20, "num_features": 10**6}),
        (None, {"num_importance": 63}),
    ],
)
def test_fields_that_do_not_go_together_are_named(part, changes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(METHODS["neus-cn"])
    owner = getattr(config.pipeline.model, part) if part else config.pipeline.model
    for name, value in changes.items():
        setattr(owner, name, value)
    Path("config.yml").write_text(yaml.dump(config))
    error = refusal(eval.extract_mesh.run, ["--load-config", "config.yml", "--output", "a.ply"], monkeypatch, capsys)
    assert f"pipeline.model.{part + '.' if part else ''}{next(iter(changes))} is " in error


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("mipnerf-cn", {"num_samples": 2**16, "eval_num_rays_per_chunk": 2**28}),
        ("mipnerf-cn", {"eval_num_rays_per_chunk": 2**20}),
        ("neus-cn", {"num_importance": 2**16, "eval_num_rays_per_chunk": 4096}),
        ("vanilla-nerf-cn", {"num_coarse_samples": 10**9}),
        ("nerfacto-cn", {"num_proposal_samples_per_ray": (256, 10**6)}),
    ],
)
def test_more_samples_at_a_time_than_any_method_has_are_refused(method, changes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(METHODS[method])
    for name, value in changes.items():
        setattr(config.pipeline.model, name, value)
    Path("config.yml").write_text(yaml.dump(config))
    error = refusal(eval.extract_mesh.run, ["--load-config", "config.yml", "--output", "a.ply"], monkeypatch, capsys)
    assert "config.yml: pipeline.model.eval_num_rays_per_chunk is " in error


def test_lack_of_memory_is_one_line(monkeypatch, capsys) -> None:
    """As torch says it on a CPU, numpy, and Python."""

    def take(allocate: Callable[[], object]) -> None:
        with errors_in_one_line(OSError):
            allocate()

    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)):
        error = refusal(partial(take, allocate), [], monkeypatch, capsys)
        assert error.startswith("error: There is not enough memory (")
    with pytest.raises(RuntimeError, match="another"):
        take(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_a_class_that_no_model_can_be_built_of_is_one_line(tmp_path, monkeypatch, capsys, scan) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(METHODS["neus-cn-tiny"])
    config.data = config.pipeline.datamanager.data = scan
    config.pipeline.model._target = METHODS["mipnerf-cn"].pipeline.model._target
    config.output_dir, config.timestamp = tmp_path, "now"
    config.save_config()
    config.get_checkpoint_dir().mkdir()
    torch.save({"step": 1, "pipeline": {}}, config.get_checkpoint_dir() / "step-000000001.ckpt")
    capsys.readouterr()
    words = ["--load-config", str(config.get_base_dir() / "config.yml"), "--output", "a.ply"]
    error = refusal(eval.extract_mesh.run, words, monkeypatch, capsys, quiet=False)
    assert "config.yml: its model cannot be built" in error


@pytest.mark.parametrize("method", [*COMMANDS, "vanilla-nerf-cn", "nerfacto-cn"])
def test_wrong_numbers_of_a_method_end_its_training_in_one_line(method, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tried, chance = 0, random.Random(SEED)
    for prefix, part in parts_of(METHODS[method]):
        for field in dataclasses.fields(part):
            kind = kind_of(part, field.name)[1]
            if not is_ours(part, field.name) or kind not in (int, float):
                continue
            wrong = wrong_numbers(part, field.name)
            for value in chance.sample(wrong, min(len(wrong), MOST_OF_A_FIELD)):
                config = copy.deepcopy(METHODS[method])
                (owner,) = [other for name, other in parts_of(config) if name == prefix]
                setattr(owner, field.name, value)
                error = refusal(config.save_config, [], monkeypatch, capsys)
                assert error.startswith(f"error: --{prefix}{field.name} is ".replace("_", "-")), error
                tried += 1
    assert tried >= 2


def is_ours(config: Any, field: str) -> bool:
    """Whether a class of this package says so, and none of nerfstudio's alone."""
    owners = [base for base in type(config).__mro__ if field in base.__dict__.get("__annotations__", {})]
    return owners[0].__module__.startswith("crossnorm_ns")


def test_every_number_of_our_configurations_says_what_it_can_be() -> None:
    for config in METHODS.values():
        for _, part in parts_of(config):
            for field in dataclasses.fields(part):
                notes, kind, _ = kind_of(part, field.name)
                if is_ours(part, field.name) and kind in (int, float):
                    assert any(isinstance(note, Need) for note in notes), f"{type(part).__name__}.{field.name}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("machine.seed", -1),
        ("machine.seed", 2**64),
        ("max_num_iterations", -5),
        ("pipeline.datamanager.train_num_rays_per_batch", 0),
        ("pipeline.datamanager.eval_num_rays_per_batch", 10**30),
        ("pipeline.model.eval_num_rays_per_chunk", 0),
        ("optimizers.fields.optimizer.lr", -1.0),
        ("optimizers.fields.optimizer.lr", math.nan),
    ],
)
@pytest.mark.parametrize("method", ["mipnerf-cn", "nerfacto-cn"])
def test_numbers_of_nerfstudio_that_no_training_can_have_are_refused(
    method, name, value, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(METHODS[method])
    prefix, _, field = name.rpartition(".")
    (owner,) = [part for found, part in parts_of(config) if found.rstrip(".") == prefix]
    setattr(owner, field, value)
    error = refusal(config.save_config, [], monkeypatch, capsys)
    assert error.startswith(f"error: --{name} is ".replace("_", "-"))


def test_ns_train_and_torchrun_say_it_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["neus-cn", "--pipeline.model.num-samples", "0", "dtu-cn"]
    error = refusal(ns_train.entrypoint, words, monkeypatch, capsys, quiet=False)
    assert error == "error: --pipeline.model.num-samples is 0, but must be from 2 to 65,536.\n"
    words = ["neus-cn", "--pipeline.model.sdf-norm", "xn", "dtu-cn"]
    assert "--pipeline.model.sdf-norm" in refusal(launch.main, words, monkeypatch, capsys)


def test_published_and_large_configurations_are_within_the_limits() -> None:
    for config in METHODS.values():
        assert not list(faults(config, types_too=True))
    large = copy.deepcopy(METHODS["neus-cn"])
    field = large.pipeline.model.sdf_field
    field.sdf_width = field.color_width = field.num_features = 2896  # 100 million weights
    assert not list(faults(large))
