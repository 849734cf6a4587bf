"""Reading the `config.yml` of a nerfstudio run without running code that somebody wrote into it.

nerfstudio reads it with `yaml.Loader`, which calls whatever the file names. Here only what configurations consist of
is built: config dataclasses, paths, enumerations, tuples, and references to classes and collate functions of known
packages.
"""

import dataclasses
import importlib
import inspect
import os
import types
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from crossnorm_ns.limits import faults
from crossnorm_ns.reading import FileError, read_text
from eval.errors import EvaluationError

ALLOWED_MODULES = (
    *(f"crossnorm_ns.{name}" for name in ("data", "engine", "fields", "models")),
    *(
        f"nerfstudio.{name}"
        for name in (
            "cameras",
            "configs",
            "data",
            "engine",
            "field_components",
            "fields",
            "model_components",
            "models",
            "pipelines",
            "utils.writer",
        )
    ),
    "torch.optim",
)
"""Modules (and those below them) whose classes a configuration may name."""

REFUSED_MODULES = (
    "nerfstudio.configs.external_methods",
    "nerfstudio.data.dataparsers.colmap_dataparser",
    "nerfstudio.data.dataparsers.minimal_dataparser",
    "nerfstudio.data.datasets.depth_dataset",
    "nerfstudio.models.generfacto",
)
"""Modules among these whose classes unpickle the data that they read, run commands with file names in them, or fetch
code or models from the network."""

ALLOWED_FUNCTIONS = (
    "nerfstudio.data.datamanagers.base_datamanager.variable_res_collate",
    "nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate",
)
"""Functions that a configuration may name: collate functions of data managers."""

TAG = "tag:yaml.org,2002:python/"

MOST_BYTES = 100_000
"""Of a file: runs have less than ten thousand."""
MOST_VALUES = 1000
"""Of a file, keys included, and each alias counted as what it stands for: runs have less than 500."""
MOST_CHARACTERS = 4096
"""Of a text."""
MOST_DIGITS = 100
"""Of a number: characters, with sign, point and exponent."""


def read_config(path: Path) -> Any:
    """Builds the configuration in a `config.yml`.

    A field that the file lacks, since its class gained it later, has the class's default.

    Raises:
        EvaluationError: the file is missing, is no YAML, names something outside the allowed modules or something that
            is not there (any more), holds fields that its classes do not have, or values that these cannot have.
    """
    try:
        text = read_text(path.absolute(), MOST_BYTES)
    except FileError as error:
        raise EvaluationError(f"{error} Give the config.yml of a finished run.") from error
    try:
        config = yaml.load(text, Loader=_ConfigLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise EvaluationError(f"{path}{line}: {error.problem}") from error
    except _READING_ERRORS as error:
        raise EvaluationError(f"{path} is no YAML file ({' '.join(str(error).split())}).") from error
    if dataclasses.is_dataclass(config):
        for name, text in faults(config, types_too=True):
            raise EvaluationError(f"{path}: {name} {text}.")
    return config


_READING_ERRORS = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What PyYAML raises of text that is no YAML, that is nested too deep, or whose numbers, dates and flags are none."""


class _ConfigLoader(yaml.SafeLoader):
    """A safe loader that also knows the tags which configurations are written with."""

    def get_single_node(self) -> yaml.Node | None:
        """The file's nodes, if they are as few and as small as those of runs, with no alias of itself."""
        root = super().get_single_node()
        waiting, count = [root] if root is not None else [], 0
        while waiting:
            node = waiting.pop()
            count += 1
            if count > MOST_VALUES:
                raise _refuse(node, f"more than the {MOST_VALUES:,} values that are read, aliases included.")
            if isinstance(node, yaml.ScalarNode):
                _check_scalar(node)
            elif isinstance(node, yaml.MappingNode):
                waiting += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
        return root

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Nothing to merge: runs are written without it, and merges of merges grow without bound."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise _refuse(key, "merge keys (<<) are not read: no run is written with them.")


def _refuse(node: yaml.Node, message: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _check_scalar(node: yaml.ScalarNode) -> None:
    """Refuses texts and numbers of lengths that no run has, and numbers to the base of 60 (1:30), which may be slow."""
    is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if len(node.value) > (MOST_DIGITS if is_number else MOST_CHARACTERS):
        raise _refuse(node, f"a {'number' if is_number else 'text'} of {len(node.value):,} characters.")
    if is_number and ":" in node.value:
        raise _refuse(node, f"{node.value!r} is no number: write it to the base of ten.")


def _is_below(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _find(name: str, node: yaml.Node) -> Any:
    """The class or function with this dotted name, defined in an allowed module."""
    module_name, _, attribute = name.rpartition(".")
    if not _is_below(module_name, ALLOWED_MODULES):
        raise _refuse(
            node,
            f"refused to load {name!r}: it is none of the classes that runs of nerfstudio and crossnorm-ns consist of. "
            "If the file is a run of another plug-in, render it with ns-render and evaluate the pictures (--renders).",
        )
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise _refuse(
            node, f"{name!r} cannot be found ({error}): evaluate with the versions that trained the run."
        ) from error
    if any(_is_below(module, REFUSED_MODULES) for module in (module_name, getattr(found, "__module__", None) or "")):
        raise _refuse(
            node,
            f"refused to load {name!r}: it may run what its data say, or what it fetches from the network. "
            "If you trust them, render the run with ns-render and evaluate the pictures (--renders).",
        )
    is_class = inspect.isclass(found) and _is_below(found.__module__, ALLOWED_MODULES)
    is_function = isinstance(found, types.FunctionType) and f"{found.__module__}.{found.__name__}" in ALLOWED_FUNCTIONS
    if not (is_class or is_function):
        raise _refuse(node, f"refused to load {name!r}: neither a class nor a collate function of that module.")
    return found


def _construct_name(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    return _find(name, node)


def _construct_tuple(loader: _ConfigLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_dataclass(loader: _ConfigLoader, name: str, node: yaml.MappingNode) -> Any:
    """Sets the fields of a new instance without calling `__init__` and `__post_init__`, as unpickling does."""
    config_class = _find(name, node)
    if not dataclasses.is_dataclass(config_class) or not isinstance(config_class, type):
        raise _refuse(node, f"refused to build {name!r}: only configuration dataclasses are built.")
    state = loader.construct_mapping(node, deep=True)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    unknown = sorted(str(key) for key in state if key not in fields)
    if unknown:
        raise _refuse(
            node, f"{name} has no field {', '.join(unknown)}: evaluate with the versions that trained the run."
        )
    instance = object.__new__(config_class)
    for key, field in fields.items():
        if key in state:
            value = state[key]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            raise _refuse(node, f"{name} needs the field {key}, which the file lacks: is it cut off?")
        object.__setattr__(instance, key, value)
    return instance


def _construct_call(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    """Paths, enumeration members and subscripted classes (`VanillaDataManager[DepthDataset]`)."""
    if not isinstance(node, yaml.SequenceNode):
        raise _refuse(node, f"refused to build {name!r} with named arguments.")
    arguments = loader.construct_sequence(node, deep=True)
    module, _, attribute = name.rpartition(".")
    if module in ("pathlib", "pathlib._local") and attribute in ("PosixPath", "WindowsPath"):
        path = Path(*(str(argument) for argument in arguments))
        if b"\0" in os.fsencode(path):
            raise _refuse(node, "a path with a null character.")
        return path
    if name in ("_operator.getitem", "operator.getitem"):
        if len(arguments) != 2 or not all(inspect.isclass(argument) for argument in arguments):
            raise _refuse(node, f"refused to call {name!r}: only classes are subscripted with classes.")
        return arguments[0][arguments[1]]
    found = _find(name, node)
    if not (inspect.isclass(found) and issubclass(found, Enum)):
        raise _refuse(node, f"refused to call {name!r}: only paths and enumerations are built with arguments.")
    try:
        return found(*arguments)
    except (TypeError, ValueError) as error:
        raise _refuse(node, f"{error}: evaluate with the versions that trained the run.") from error


_ConfigLoader.add_constructor(f"{TAG}tuple", _construct_tuple)
_ConfigLoader.add_multi_constructor(f"{TAG}name:", _construct_name)
_ConfigLoader.add_multi_constructor(f"{TAG}object:", _construct_dataclass)
_ConfigLoader.add_multi_constructor(f"{TAG}object/apply:", _construct_call)
