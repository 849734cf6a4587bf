"""What options of commands and fields of configurations can be: annotations of them, and the check that reads these.

Whatever cannot be right is refused before memory is taken and before a file is written. The limits are far above what
anybody does: they are there for slips, and for files that somebody else wrote.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import tyro

P = ParamSpec("P")
R = TypeVar("R")

Fault = tuple[str, str]
"""Dotted name of a field, and what is wrong with its value: `is 0, but must be from 1 to 64`."""


class LimitError(ValueError):
    """A value that an option or a field cannot have: the message names it, and says what it must be."""


@dataclass(frozen=True)
class Need:
    """Beside the type, in an annotation: what a value must be."""

    what: str
    """In words behind "must be"."""
    holds: Callable[[Any], bool]
    """Whether a value is that; what the file system says against a path may be raised."""


def _number(what: str, holds: Callable[[Any], bool]) -> Need:
    return Need(what, lambda value: not isinstance(value, bool) and holds(value))


def between(least: int | float, most: int | float) -> Need:
    """A number from `least` to `most`."""
    return _number(f"from {least:,} to {most:,}", lambda value: least <= value <= most)


def _is_there(path: Path, kind: Callable[[Path], bool]) -> bool:
    path.stat()
    return kind(path)


def _is_writable(folder: Path) -> bool:
    """Whether a folder is there, or can be made, and takes files."""
    while not _exists(folder):
        folder = folder.absolute().parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _takes_a_file(path: Path) -> bool:
    return (path.is_file() or not _exists(path)) and path.name != "" and _is_writable(path.parent)


def _exists(path: Path) -> bool:
    """Also where it is a link to nowhere.

    Raises:
        OSError: no file can have such a name, or nobody may look.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_device(name: str) -> bool:
    import torch

    try:
        return torch.zeros(1, device=name).item() == 0
    except (RuntimeError, AssertionError, ImportError):  # of a name, of a device or of its module that is not there
        return False


MOST_WEIGHTS = 2**28
"""Of a network: 1 GiB in float32."""
MOST_LAYERS = 1000
"""Of a network."""
MOST_BYTES = 2**35
"""Of an array: 32 GiB, a grid of 2,048^3 numbers in float32."""

POSITIVE = _number("a positive number", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = _number("a number from 0 on", lambda value: 0 <= value < math.inf)
NOT_EMPTY = Need("one or more", lambda values: len(values) > 0)

Count = Annotated[int, between(1, 10**9)]
Seed = Annotated[int, between(0, 2**63 - 1)]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, between(0, 1)]
PositiveShare = Annotated[float, _number("a number above 0, up to 1", lambda value: 0 < value <= 1)]
Layers = Annotated[int, between(1, MOST_LAYERS)]
Width = Annotated[int, between(1, 2**24)]
Degrees = Annotated[int, between(0, 64)]
GridSide = Annotated[int, between(2, 2048)]
PictureSide = Annotated[int, between(1, 2**16)]
Batch = Annotated[int, between(1, 2**28)]
SamplesOfRay = Annotated[int, between(1, 2**16)]
Device = Annotated[str, Need("a device of torch that is here, such as cpu, cuda or cuda:1", _is_device)]
InputFile = Annotated[Path, Need("a file", lambda path: _is_there(path, Path.is_file))]
InputFolder = Annotated[Path, Need("a folder", lambda path: _is_there(path, Path.is_dir))]
InputPath = Annotated[Path, Need("a file or a folder", lambda path: _is_there(path, Path.exists))]
OutputFile = Annotated[Path, Need("a file, or a new one in a folder that takes files", _takes_a_file)]
OutputFolder = Annotated[Path, Need("a folder that takes files, or a new one in such", _is_writable)]


def num_weights(*sizes: int) -> int:
    """Of linear layers between so many values: inputs, hidden layers, outputs."""
    return sum(before * after for before, after in zip(sizes[:-1], sizes[1:], strict=True))


def weights_fault(name: str, width: int, *sizes: int) -> Iterator[Fault]:
    """That of the field called so, whose networks between so many values are too large."""
    if (weights := num_weights(*sizes)) > MOST_WEIGHTS:
        yield name, f"is {width}, but all layers together then have {weights:,} weights, more than {MOST_WEIGHTS:,}"


def faults(config: Any, types_too: bool = False) -> Iterator[Fault]:
    """What is wrong with the values of a dataclass and of those in it, field by field.

    A class may have a method `faults` of its own, for values that do not go together; it is asked where each of them
    is right by itself.

    Args:
        config: an instance.
        types_too: looks at the types too, for values that no command line has read.
    """
    hints, fine = typing.get_type_hints(type(config), include_extras=True), True
    for field in dataclasses.fields(config):
        for name, text in _faults_of(field.name, getattr(config, field.name), hints[field.name], types_too):
            fine = False
            yield name, text
    if fine and hasattr(config, "faults"):
        yield from config.faults()


def _faults_of(name: str, value: Any, hint: Any, types_too: bool) -> Iterator[Fault]:
    if types_too and not _is_of_type(value, hint):
        yield name, f"is {_shown(value)}, but must be of the type {_type_name(hint)}"
        return
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str | Path) and not _is_utf8(str(text)):
            yield name, f"is {str(text)!r}, but must be UTF-8: rename it"
            return
    for need, part in _needs(hint, value):
        try:
            if not need.holds(part):
                yield name, f"is {_shown(part)}, but must be {need.what}"
        except OSError as error:
            yield name, f"is {_shown(part)}, but must be {need.what} ({error.strerror})"
    parts = value if isinstance(value, dict) else {"": value}
    for key, part in parts.items():
        inner = f"{name}.{key}" if key else name
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield from ((f"{inner}.{inside}", text) for inside, text in faults(part, types_too))
        elif isinstance(part, dict):
            yield from _faults_of(inner, part, dict, types_too)


def _needs(hint: Any, value: Any) -> Iterator[tuple[Need, Any]]:
    """What a hint says of a value, and of the items of a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return
    if origin is Annotated:
        yield from ((need, value) for need in arguments[1:] if isinstance(need, Need))
        yield from _needs(arguments[0], value)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _needs(argument, value)
    elif origin is tuple:
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        for item, part in zip(items, value, strict=True):
            yield from _needs(item, part)


def _is_utf8(text: str) -> bool:
    """Names of files need not be, but what results and pictures can hold of them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_of_type(value: Any, hint: Any) -> bool:
    import typeguard

    try:
        typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        return _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


class _Shortened(reprlib.Repr):
    """Of large values the beginning, of a dataclass the name."""

    def repr_instance(self, x: Any, level: int) -> str:
        return f"a {type(x).__name__}" if dataclasses.is_dataclass(x) else super().repr_instance(x, level)


_shortened = _Shortened()
_shortened.maxstring = _shortened.maxother = 200


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Path) else _shortened.repr(value)


def option_name(name: str) -> str:
    """A dotted name of a field as tyro has it on a command line."""
    return f"--{name.replace('_', '-')}"


def _name_of(name: str, hint: Any) -> str:
    return name.upper() if tyro.conf.Positional in typing.get_args(hint) else option_name(name)


def check_options(options: Any) -> None:
    """Refuses options of a command that are not what their annotations say; of other things than a dataclass, none.

    Raises:
        LimitError: names the first of them.
    """
    if not dataclasses.is_dataclass(options):
        return
    hints = typing.get_type_hints(type(options), include_extras=True)
    for name, text in faults(options):
        raise LimitError(f"{_name_of(name, hints[name.partition('.')[0]])} {text}.")


def check_fields(config: Any) -> None:
    """Refuses a configuration of which a field is not what its annotation says.

    Raises:
        LimitError: names the first of them.
    """
    for name, text in faults(config):
        raise LimitError(f"{name} {text}")


def within_limits(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses arguments which are not what its annotations say, with their names as options.

    Raises:
        LimitError: for the first of them.
    """
    signature, hints = inspect.signature(function), typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            for _, text in _faults_of(name, value, hints[name], False):
                raise LimitError(f"{_name_of(name, hints[name])} {text}.")
        return function(*args, **kwargs)

    return checked
